"""The inner loops, on chunks that stay in a core's cache.

Compiled by numba where it is installed, without the GIL, and cached on disk; otherwise the same loops as numpy calls.
Both give the same bits: each element is computed by the same operations in the same order, however the work is cut.

    low_rank    out[e] = sum_r b[e // columns, r] * a[r, e % columns]     float32, r ascending
    round_bf16  out = bfloat16(base + delta), nearest even                one rounding
    dot         sum_i x[i] * y[i]                                         float64 sums of float32 products
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.dtypes import BF16, from_float32, to_float32

__all__ = ["Kernels", "load_kernels", "numpy_kernels"]

Float32 = NDArray[np.float32]
Bits16 = NDArray[np.uint16]


class _LowRank(Protocol):
    def __call__(self, b: Float32, a: Float32, first: int, out: Float32) -> None: ...


class _Decode(Protocol):
    def __call__(self, bits: Bits16, out: Float32) -> None: ...


class _Round(Protocol):
    def __call__(self, base: Float32, delta: Float32, out: Bits16) -> None: ...


class _Dot(Protocol):
    def __call__(self, x: Float32, y: Float32) -> float: ...


@dataclass(frozen=True, slots=True)
class Kernels:
    """One implementation of the inner loops.

    Attributes:
        name: `numba` or `numpy`, for provenance.
        low_rank: writes elements `first`, `first + 1`, ... of b @ a, row-major, into `out`.
            b: rows x rank, a: rank x columns, float32 and C-contiguous.
        decode_bf16: bfloat16 bit patterns to float32; exact.
        round_bf16: float32 sums of `base` and `delta` to bfloat16 bit patterns.
        dot: inner product of two chunks.
    """

    name: str
    low_rank: _LowRank
    decode_bf16: _Decode
    round_bf16: _Round
    dot: _Dot


@cache
def load_kernels() -> Kernels:
    """The fastest kernels that can run here."""
    try:
        import numba  # noqa: PLC0415 - half a second, needed only where weights are computed
    except ImportError:
        return numpy_kernels()
    return _numba_kernels(numba)


def numpy_kernels() -> Kernels:
    """The kernels as numpy calls, for platforms without numba."""
    return Kernels("numpy", _numpy_low_rank, _numpy_decode_bf16, _numpy_round_bf16, _numpy_dot)


def _numpy_low_rank(b: Float32, a: Float32, first: int, out: Float32) -> None:
    columns = a.shape[1]
    last = first + out.size
    rows = slice(first // columns, -(-last // columns))
    product = np.zeros((rows.stop - rows.start, columns), np.float32)
    for r in range(b.shape[1]):  # one rank after the other, as the compiled loop does; `@` would sum in another order
        product += b[rows, r, None] * a[r]
    start = first - rows.start * columns
    out[:] = product.reshape(-1)[start : start + out.size]


def _numpy_decode_bf16(bits: Bits16, out: Float32) -> None:
    out[:] = to_float32(bits, BF16)


def _numpy_round_bf16(base: Float32, delta: Float32, out: Bits16) -> None:
    with np.errstate(invalid="ignore", over="ignore"):  # the compiled loop is silent on NaN and infinity too
        out[:] = from_float32(base + delta, BF16)


def _numpy_dot(x: Float32, y: Float32) -> float:
    return float(np.dot(x.astype(np.float64), y.astype(np.float64)))


def _numba_kernels(numba: Any) -> Kernels:  # noqa: ANN401 - numba ships no types
    compiled = numba.njit(nogil=True, cache=True, error_model="numpy")
    # A sum in several lanes is as good a sum as one in order, and several times faster; nothing written depends on it.
    reduced = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract"})
    return Kernels(
        "numba",
        compiled(_low_rank_loop),
        compiled(_decode_bf16_loop),
        compiled(_round_bf16_loop),
        reduced(_dot_loop),
    )


def _low_rank_loop(b: Float32, a: Float32, first: int, out: Float32) -> None:
    columns = a.shape[1]
    rank = b.shape[1]
    done = 0
    while done < out.size:
        row = (first + done) // columns
        column = (first + done) % columns
        count = min(columns - column, out.size - done)
        segment = out[done : done + count]
        segment[:] = np.float32(0)
        r = 0
        # Four ranks a pass keep the running sum in a register; the order of the additions is that of one at a time.
        while r + 4 <= rank:
            b0, b1, b2, b3 = b[row, r], b[row, r + 1], b[row, r + 2], b[row, r + 3]
            a0 = a[r, column : column + count]
            a1 = a[r + 1, column : column + count]
            a2 = a[r + 2, column : column + count]
            a3 = a[r + 3, column : column + count]
            for j in range(count):
                segment[j] = (((segment[j] + b0 * a0[j]) + b1 * a1[j]) + b2 * a2[j]) + b3 * a3[j]
            r += 4
        while r < rank:
            b0 = b[row, r]
            a0 = a[r, column : column + count]
            for j in range(count):
                segment[j] += b0 * a0[j]
            r += 1
        done += count


def _decode_bf16_loop(bits: Bits16, out: Float32) -> None:
    words = out.view(np.uint32)
    for i in range(bits.size):
        words[i] = np.uint32(bits[i]) << np.uint32(16)


def _round_bf16_loop(base: Float32, delta: Float32, out: Bits16) -> None:
    total = base + delta
    words = total.view(np.uint32)
    for i in range(out.size):
        word = words[i]
        if (word & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000):  # NaN: rounding could carry it into infinity
            out[i] = np.uint16((word >> np.uint32(16)) | np.uint32(0x40))
        else:
            out[i] = np.uint16((word + np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


def _dot_loop(x: Float32, y: Float32) -> float:
    total = 0.0
    for i in range(x.size):
        total += np.float64(x[i]) * np.float64(y[i])
    return total
