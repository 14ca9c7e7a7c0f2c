"""Naive references of merge methods, in float64 and over whole tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Array = NDArray[Any]


def kept_by_magnitude(delta: Array, before: int, kept: int) -> NDArray[np.bool_]:
    """By falling magnitude, of equal ones the lower index first: pass over `before` elements, keep the next `kept`."""
    order = np.argsort(-np.abs(delta).reshape(-1), kind="stable")
    mask = np.zeros(delta.size, bool)
    mask[order[before : before + kept]] = True
    return mask.reshape(delta.shape)


def combined(
    base: Array,
    deltas: Sequence[Array],
    weights: Sequence[float],
    *,
    consensus: bool,
    normalize: bool,
    scale: float = 1,
) -> Float64:
    """base + scale * weighted sum of deltas, with or without the sign consensus."""
    scaled = np.stack([weight * delta.astype(np.float64) for weight, delta in zip(weights, deltas, strict=True)])
    mask = np.ones(scaled.shape, bool)
    if consensus:
        mask = np.sign(scaled) == np.where(scaled.sum(axis=0) >= 0, 1, -1)
    mixed = (scaled * mask).sum(axis=0)
    if normalize:
        columns = np.reshape(weights, (-1,) + (1,) * base.ndim)
        divisor = (columns * mask).sum(axis=0)
        mixed = mixed / np.where(divisor == 0, 1, divisor)
    total: Float64 = base.astype(np.float64) + scale * mixed
    return total


def slerp(x: Array, y: Array, t: float) -> Float64:
    """Spherical interpolation of two tensors as they are; linear where the cosine is beyond 0.9995."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    cosine = float((x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y))
    if abs(cosine) > 0.9995:
        line: Float64 = (1 - t) * x + t * y
        return line
    theta = np.arccos(cosine)
    arc: Float64 = (np.sin((1 - t) * theta) * x + np.sin(t * theta) * y) / np.sin(theta)
    return arc


def model_stock(base: Array, others: Sequence[Array]) -> Float64:
    """The mean of the others, drawn towards the base."""
    deltas = [(other.astype(np.float64) - base).reshape(-1) for other in others]
    unit = np.stack([delta / np.linalg.norm(delta) for delta in deltas])
    count = len(deltas)
    cosine = (unit @ unit.T)[np.triu_indices(count, 1)].mean()
    t = count * cosine / (1 + (count - 1) * cosine)
    drawn: Float64 = t * np.mean(np.stack(others).astype(np.float64), axis=0) + (1 - t) * base
    return drawn


def sce(base: Array, others: Sequence[Array], density: float) -> Float64:
    """Select the elements of largest variance, weigh by energy, erase what disagrees in sign."""
    deltas = np.stack([other.astype(np.float64) - base for other in others])
    if density < 1:
        variance = deltas.var(axis=0)
        deltas = deltas * kept_by_magnitude(variance, 0, int(np.count_nonzero(variance) * density))
    energy = (deltas**2).reshape(len(deltas), -1).mean(axis=1)
    weights = energy / energy.sum() if abs(energy.sum()) >= 1e-6 else np.full(len(deltas), 1 / len(deltas))
    columns = weights.reshape((-1,) + (1,) * base.ndim)
    mask = columns * (np.sign(deltas) == np.where(deltas.sum(axis=0) >= 0, 1, -1))
    merged: Float64 = base + (deltas * mask).sum(axis=0) / np.maximum(mask.sum(axis=0), 1e-6)
    return merged
