"""The inner loops of updates: compiled by numba where it is installed, else numpy calls.

difference      out[e] = float32(own[e]) - float32(base[e])     of bfloat16, rounded once; both forms give the same bits
run products    out[j] = sum_e x[e] * y[e] over run j           float64 sums of float32 products
"""

from __future__ import annotations

from functools import cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.dtypes import BF16, to_float32

__all__ = ["load_difference", "load_run_products", "numpy_difference", "numpy_run_products"]

Bits16 = NDArray[np.uint16]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


class _Difference(Protocol):
    def __call__(self, own: Bits16, base: Bits16, out: Float32) -> None: ...


class _RunProducts(Protocol):
    def __call__(self, x: Float32, y: Float32, ends: Int64, out: Float64) -> None: ...


@cache
def load_difference() -> _Difference:
    """The fastest form that can run here."""
    try:
        import numba  # noqa: PLC0415 - half a second, needed only where weights are compared
    except ImportError:
        return numpy_difference
    compiled: _Difference = numba.njit(nogil=True, cache=True, error_model="numpy")(_difference_loop)
    return compiled


def numpy_difference(own: Bits16, base: Bits16, out: Float32) -> None:
    """The difference as numpy calls."""
    with np.errstate(invalid="ignore", over="ignore"):  # the compiled loop is silent on NaN and infinity too
        np.subtract(to_float32(own, BF16), to_float32(base, BF16), out=out)


def _difference_loop(own: Bits16, base: Bits16, out: Float32) -> None:
    # The inner casts keep numba from widening the words to 64 bits.
    for i in range(out.size):
        out[i] = np.uint32(np.uint32(own[i]) << np.uint32(16)).view(np.float32) - np.uint32(
            np.uint32(base[i]) << np.uint32(16)
        ).view(np.float32)


@cache
def load_run_products() -> _RunProducts:
    """The fastest form that can run here.

    Both take two blocks, flat, the element that each run ends before, and where the products go.
    """
    try:
        import numba  # noqa: PLC0415 - half a second, needed only where weights are compared
    except ImportError:
        return numpy_run_products
    # A sum in several lanes is as good a sum as one in order, and several times faster.
    made = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract"})
    compiled: _RunProducts = made(_run_products_loop)
    return compiled


def numpy_run_products(x: Float32, y: Float32, ends: Int64, out: Float64) -> None:
    """The run products as numpy calls."""
    first = 0
    for run, last in enumerate(ends.tolist()):
        out[run] = np.dot(x[first:last].astype(np.float64), y[first:last].astype(np.float64))
        first = last


def _run_products_loop(x: Float32, y: Float32, ends: Int64, out: Float64) -> None:
    first = 0
    for run in range(ends.size):
        total = 0.0
        for i in range(first, ends[run]):
            total += np.float64(x[i]) * np.float64(y[i])
        out[run] = total
        first = ends[run]
