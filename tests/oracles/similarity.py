"""Similarity the slow way: every delta as one dense float64 vector."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Dense = Mapping[str, NDArray[np.float64]]


def flat(dense: Dense, names: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> NDArray[np.float64]:
    """The deltas for `names` one after the other; zeros where there is none."""
    return np.concatenate([dense.get(name, np.zeros(shapes[name])).ravel() for name in names] or [np.zeros(0)])


def reference(
    update: Dense,
    direction: Dense,
    shapes: Mapping[str, tuple[int, ...]],
    keep: Callable[[str], bool] = bool,
    rank: Callable[[str], int | None] = lambda _: None,
) -> dict[str, float]:
    """Inner product, norms, cosine, projection and the nulls' standard deviations over the tensors that `keep` takes.

    Where `rank` gives the direction's delta a rank, the null's random directions keep its subspaces.
    """
    names = [name for name in shapes if keep(name)]
    u, w = (flat(dense, names, shapes) for dense in (update, direction))
    norms = float(np.linalg.norm(u)), float(np.linalg.norm(w))
    variance = isotropic = 0.0
    for name in names:
        if name in update and name in direction:
            square = float(np.sum(direction[name] ** 2))
            isotropic += float(np.sum(update[name] ** 2)) * square / update[name].size
            inside = update[name] if rank(name) is None else core_inside(update[name], direction[name])
            variance += float(np.mean(inside**2)) * square if inside.size else 0.0
    product = norms[0] * norms[1]
    return {
        "inner": float(u @ w),
        "update_norm": norms[0],
        "direction_norm": norms[1],
        "cosine": float(u @ w) / product if product else np.nan,
        "projection": float(u @ w) / norms[1] ** 2 if norms[1] else np.nan,
        "null_std": float(np.sqrt(variance)) / product if product else 0.0,
        "isotropic_std": float(np.sqrt(isotropic)) / product if product else 0.0,
    }


def core_inside(update: NDArray[np.float64], direction: NDArray[np.float64]) -> NDArray[np.float64]:
    """U^T X V, with X the update and U, V the singular vectors of the direction."""
    left, values, right = np.linalg.svd(direction, full_matrices=False)
    kept = values > 1e-5 * values.max(initial=0.0)
    core: NDArray[np.float64] = left[:, kept].T @ update @ right[kept].T
    return core


def dense_of(source: Any) -> dict[str, NDArray[np.float64]]:
    """Every delta of a source of deltas, whole, tied outputs left out."""
    found: dict[str, NDArray[np.float64]] = {}
    for name, shape in source.shapes.items():
        if source.base.tied.get(name) in source.shapes:
            continue
        if source.rank(name) is None:
            values = np.empty(int(np.prod(shape)), np.float32)
            source.read_dense(name, 0, values)
            found[name] = values.astype(np.float64).reshape(shape)
        else:
            delta = source.low_rank(name)
            found[name] = delta.b.astype(np.float64) @ delta.a.astype(np.float64)
    return found


def naive_auroc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Every pair looked at: won, lost or drawn."""
    wins = [1.0 if p > n else 0.5 if p == n else 0.0 for p in positive for n in negative]
    return sum(wins) / len(wins)
