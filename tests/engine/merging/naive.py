"""Merge methods the slow way, in float64, one formula a function. Deltas are models less the base, or w itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Deltas = Sequence[Float64]


def linear(models: Deltas, weights: Sequence[float]) -> Float64:
    return sum((w * x for w, x in zip(weights, models, strict=True)), np.zeros(models[0].shape)) / sum(weights)


def slerp(base: Float64, other: Float64, t: float) -> Float64:
    dot = float(np.vdot(base, other)) / math.sqrt(float(np.vdot(base, base)) * float(np.vdot(other, other)))
    if abs(dot) > 0.9995:
        return (1 - t) * base + t * other
    angle = math.acos(dot)
    return (math.sin((1 - t) * angle) * base + math.sin(t * angle) * other) / math.sin(angle)


def model_stock(base: Float64, models: Deltas) -> Float64:
    deltas = [x - base for x in models]
    cosines = [
        float(np.vdot(x, y)) / math.sqrt(float(np.vdot(x, x)) * float(np.vdot(y, y)))
        for x, y in combinations(deltas, 2)
    ]
    cosine, count = sum(cosines) / len(cosines), len(models)
    t = count * cosine / (1 + (count - 1) * cosine)
    return t * sum(models, np.zeros(base.shape)) / count + (1 - t) * base


def task_arithmetic(base: Float64, deltas: Deltas, weights: Sequence[float]) -> Float64:
    return base + sum((w * d for w, d in zip(weights, deltas, strict=True)), np.zeros(base.shape))


def ties(base: Float64, deltas: Deltas, weights: Sequence[float], density: float, *, normalize: bool = True) -> Float64:
    return base + _consensus([_largest(delta, density) for delta in deltas], weights, normalize=normalize)


def breadcrumbs(
    base: Float64, deltas: Deltas, weights: Sequence[float], density: float, gamma: float = 0.01
) -> Float64:
    kept = []
    for delta in deltas:
        order = np.argsort(-np.abs(delta.ravel()), kind="stable")
        first = int(gamma * delta.size)
        mask = np.zeros(delta.size)
        mask[order[first : first + int(density * delta.size)]] = 1
        kept.append(delta * mask.reshape(delta.shape))
    return task_arithmetic(base, kept, weights)


def sce(base: Float64, deltas: Deltas) -> Float64:
    energy = np.array([np.mean(delta**2) for delta in deltas])
    weights = energy / energy.sum() if energy.sum() >= 1e-6 else np.full(len(deltas), 1 / len(deltas))
    sign = np.where(sum(deltas, np.zeros(base.shape)) >= 0, 1, -1)
    counts = [w * (np.sign(delta) == sign) for w, delta in zip(weights, deltas, strict=True)]
    total = np.maximum(sum(counts, np.zeros(base.shape)), 1e-6)
    return base + sum((c * d for c, d in zip(counts, deltas, strict=True)), np.zeros(base.shape)) / total


def _largest(delta: Float64, density: float) -> Float64:
    """The elements of largest magnitude; of equal ones those of lowest index."""
    keep = max(1, int(density * delta.size))
    mask = np.zeros(delta.size)
    mask[np.argsort(-np.abs(delta.ravel()), kind="stable")[:keep]] = 1
    return delta * mask.reshape(delta.shape)


def _consensus(deltas: Deltas, weights: Sequence[float], *, normalize: bool) -> Float64:
    weighted = [w * d for w, d in zip(weights, deltas, strict=True)]
    sign = np.where(sum(weighted, np.zeros(deltas[0].shape)) >= 0, 1, -1)
    agree = [np.sign(term) == sign for term in weighted]
    merged = sum((term * mask for term, mask in zip(weighted, agree, strict=True)), np.zeros(deltas[0].shape))
    if not normalize:
        return merged
    divisor = sum((w * mask for w, mask in zip(weights, agree, strict=True)), np.zeros(deltas[0].shape))
    return merged / np.where(divisor == 0, 1, divisor)


Over = Callable[[Float64, Deltas, Sequence[float]], Float64]

OVER_DELTAS: Mapping[str, tuple[Mapping[str, Any], Over]] = {
    "task_arithmetic": ({}, task_arithmetic),
    "ties": ({"density": 0.4}, lambda base, deltas, weights: ties(base, deltas, weights, 0.4)),
    "dare_linear": ({"density": 1.0}, task_arithmetic),
    "breadcrumbs": (
        {"density": 0.5, "gamma": 0.1},
        lambda base, deltas, weights: breadcrumbs(base, deltas, weights, 0.5, 0.1),
    ),
    "della_linear": ({"density": 0.999999, "epsilon": 1e-12}, task_arithmetic),
}
"""Methods on deltas: parameters of each input beside its weight, and the formula. Those at random keep everything."""
