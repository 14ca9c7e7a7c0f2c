"""Deltas the slow way: dense float64, one formula a function. What the code under test is judged by."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]


def lora_delta(a: NDArray[Any], b: NDArray[Any], *, alpha: float, rank: int, rslora: bool = False) -> Float64Array:
    """s * B @ A with s = alpha / r, or alpha / sqrt(r)."""
    scale = alpha / math.sqrt(rank) if rslora else alpha / rank
    return scale * (b.astype(np.float64) @ a.astype(np.float64))


def factor_rounding_bound(a: NDArray[Any], b: NDArray[Any], *, scale: float = 1.0) -> Float64Array:
    """How far s * B @ A can be off, element by element, when s * B was rounded to float32: half an ulp of each product.

    The factor 1.01 stands for the float64 sums on both sides.
    """
    products = abs(scale) * (np.abs(b.astype(np.float64)) @ np.abs(a.astype(np.float64)))
    return 1.01 * 2.0**-24 * products + 1e-300


def half_ulp(values: Float64Array) -> Float64Array:
    """Half the distance between neighbouring float32 numbers at `values`: the most that one rounding can move them."""
    with np.errstate(over="ignore"):
        return np.abs(np.spacing(np.abs(values).astype(np.float32))).astype(np.float64) / 2


def norm(dense: Float64Array) -> float:
    """Square root of the sum of squares, summed exactly."""
    return math.sqrt(math.fsum(float(x) * float(x) for x in dense.ravel()))


def inner(left: Float64Array, right: Float64Array) -> float:
    """Sum of products, summed exactly."""
    return math.fsum(float(x) * float(y) for x, y in zip(left.ravel(), right.ravel(), strict=True))
