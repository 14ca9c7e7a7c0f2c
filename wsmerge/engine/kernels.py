"""The inner loops, on chunks that stay in a core's cache.

Compiled by numba where it is installed, without the GIL, and cached on disk; otherwise the same loops as numpy calls.
Both give the same bits: each element is computed by the same operations in the same order, however the work is cut.

    low_rank    out[e] = sum_r b[e // columns, r] * a[r, e % columns]     float32, r ascending, fused multiply-adds
    round_bf16  out = bfloat16(base + delta), nearest even                one rounding
    dot         sum_i x[i] * y[i]                                         float64 sums of float32 products
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.dtypes import BF16, from_float32, to_float32

__all__ = ["Kernels", "kernels_name", "load_kernels", "numpy_kernels"]

Float32 = NDArray[np.float32]
Bits16 = NDArray[np.uint16]


class _LowRank(Protocol):
    def __call__(self, b: Float32, a: Float32, first: int, out: Float32) -> None: ...


class _Decode(Protocol):
    def __call__(self, bits: Bits16, out: Float32) -> None: ...


class _Encode(Protocol):
    def __call__(self, values: Float32, out: Bits16) -> None: ...


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
        encode_bf16: float32 to bfloat16 bit patterns, nearest even.
        round_bf16: float32 sums of `base` and `delta` to bfloat16 bit patterns.
        dot: inner product of two chunks.
    """

    name: str
    low_rank: _LowRank
    decode_bf16: _Decode
    encode_bf16: _Encode
    round_bf16: _Round
    dot: _Dot


def kernels_name() -> str:
    """Which kernels `load_kernels` gives; loads none."""
    return "numba" if importlib.util.find_spec("numba") else "numpy"


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
    return Kernels("numpy", _numpy_low_rank, _numpy_decode_bf16, _numpy_encode_bf16, _numpy_round_bf16, _numpy_dot)


def _numpy_low_rank(b: Float32, a: Float32, first: int, out: Float32) -> None:
    columns = a.shape[1]
    last = first + out.size
    rows = slice(first // columns, -(-last // columns))
    product = np.zeros((rows.stop - rows.start, columns), np.float32)
    for r in range(b.shape[1]):  # one rank after the other, as the compiled loop does; `@` would sum in another order
        product = _numpy_fused(b[rows, r, None], a[r], product)
    start = first - rows.start * columns
    out[:] = product.reshape(-1)[start : start + out.size]


def _numpy_fused(x: Float32, y: Float32, z: Float32) -> Float32:
    """The sum x * y + z with one rounding, broadcast; bit for bit the fused multiply-add of processors.

    The product of two float32 is exact in float64. Their sum with z is rounded to odd there (towards zero, last bit set
    where anything was dropped), so that rounding it to float32 sees on which side of a tie it lies.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        product, addend = x.astype(np.float64) * y, z.astype(np.float64)
        total = product + addend
        addend_part = total - product
        error = (product - (total - addend_part)) + (addend - addend_part)
        bits = total.view(np.int64)
        even = np.isfinite(total) & (error != 0) & (bits & 1 == 0)
        bits += even * np.where((error > 0) == (total > 0), 1, -1)
        return total.astype(np.float32)


def _numpy_decode_bf16(bits: Bits16, out: Float32) -> None:
    out[:] = to_float32(bits, BF16)


def _numpy_encode_bf16(values: Float32, out: Bits16) -> None:
    with np.errstate(invalid="ignore", over="ignore"):  # the compiled loop is silent on NaN and infinity too
        out[:] = from_float32(values, BF16)


def _numpy_round_bf16(base: Float32, delta: Float32, out: Bits16) -> None:
    with np.errstate(invalid="ignore", over="ignore"):  # the compiled loop is silent on NaN and infinity too
        out[:] = from_float32(base + delta, BF16)


def _numpy_dot(x: Float32, y: Float32) -> float:
    return float(np.dot(x.astype(np.float64), y.astype(np.float64)))


def _numba_kernels(numba: Any) -> Kernels:  # noqa: ANN401 - numba ships no types
    from wsmerge.engine.products import low_rank  # noqa: PLC0415 - imports numba

    compiled = numba.njit(nogil=True, cache=True, error_model="numpy")
    # A sum in several lanes is as good a sum as one in order, and several times faster; nothing written depends on it.
    reduced = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract"})
    return Kernels(
        "numba",
        low_rank,
        compiled(_decode_bf16_loop),
        compiled(_encode_bf16_loop),
        compiled(_round_bf16_loop),
        reduced(_dot_loop),
    )


def _decode_bf16_loop(bits: Bits16, out: Float32) -> None:
    words = out.view(np.uint32)
    for i in range(bits.size):
        words[i] = np.uint32(bits[i]) << np.uint32(16)


def _encode_bf16_loop(values: Float32, out: Bits16) -> None:
    words = values.view(np.uint32)
    for i in range(out.size):
        word = words[i]
        rounded = (word + np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        # NaN: rounding could carry it into infinity.
        is_nan = (word & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
        out[i] = np.uint16((word >> np.uint32(16)) | np.uint32(0x40)) if is_nan else np.uint16(rounded)


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
