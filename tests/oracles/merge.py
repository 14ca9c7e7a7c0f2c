"""The naive reference of a merge: float64 sums, and rounding by looking at every candidate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.deltas import Delta


def bf16_values(bits: NDArray[np.uint16]) -> NDArray[np.float64]:
    """The values of bfloat16 bit patterns, through their definition as the upper half of a float32."""
    with np.errstate(invalid="ignore"):  # converting a signalling NaN raises the flag
        return (bits.astype(np.uint32) * np.uint32(65536)).view(np.float32).astype(np.float64)


def nearest_bf16(values: NDArray[np.float64]) -> NDArray[np.uint16]:
    """The bfloat16 bit pattern nearest to each finite value; of two equally near ones, the even one."""
    guess = (values.astype(np.float32).view(np.uint32) // np.uint32(65536)).astype(np.uint16)
    candidates = np.stack([guess - np.uint16(1), guess, guess + np.uint16(1)])
    distance = np.abs(bf16_values(candidates) - values)
    distance[np.isnan(distance)] = np.inf
    # Even patterns first, so that argmin takes them where two are equally near.
    order = np.argsort(candidates & np.uint16(1), axis=0, kind="stable")
    best = np.argmin(np.take_along_axis(distance, order, 0), axis=0)
    chosen: NDArray[np.uint16] = np.take_along_axis(np.take_along_axis(candidates, order, 0), best[None], 0)[0]
    return chosen


def merged(base: NDArray[Any], terms: Iterable[tuple[float, Delta]]) -> NDArray[np.float64]:
    """base + sum k * w, all in float64; `base` holds values."""
    total = base.astype(np.float64)
    for k, delta in terms:
        total = total + k * delta.dense()
    return total
