"""The compiled loops of sce; see `sce` for the formulas."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wsmerge.engine.methods.kinds import EXACT
from wsmerge.engine.methods.loops import compiled
from wsmerge.engine.methods.trimming_loops import key_of

__all__ = ["erase", "keep_varying", "variances"]

Float32 = NDArray[np.float32]


@compiled
def variances(rows: Float32, out: Float32) -> None:
    """Variance of each element over the rows, around their mean."""
    count = rows.shape[0]
    for i in range(out.size):
        mean = 0.0
        for j in range(count):
            mean += np.float64(rows[j, i])
        mean /= count
        total = 0.0
        for j in range(count):
            total += (np.float64(rows[j, i]) - mean) ** 2
        out[i] = np.float32(total / count)


@compiled
def keep_varying(rows: Float32, variance: Float32, least: np.uint32) -> None:
    """Multiply by 0 where the variance has a key below `least`."""
    for j in range(rows.shape[0]):
        for i in range(variance.size):
            rows[j, i] *= np.float32(1) if key_of(EXACT, variance[i]) >= least else np.float32(0)


@compiled
def erase(rows: Float32, base: Float32, weights: Float32, out: Float32) -> None:
    """Write base + the weighted mean of those deltas that have the sign of their sum."""
    count = rows.shape[0]
    for i in range(out.size):
        sign = np.float32(0)
        for j in range(count):
            sign += rows[j, i]
        total, share = np.float32(0), np.float32(0)
        for j in range(count):
            delta = rows[j, i]
            kept = delta > np.float32(0) if sign >= np.float32(0) else delta < np.float32(0)
            mask = weights[j] if kept else np.float32(0)
            total += delta * mask
            share += mask
        out[i] = base[i] + total / max(share, np.float32(1e-6))
