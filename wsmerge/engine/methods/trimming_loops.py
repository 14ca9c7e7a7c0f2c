"""The compiled loops of trimming by magnitude.

    key(x) = the bits of |x| in the work dtype, as an unsigned number: it grows as |x| does, and NaN is above infinity

A narrow dtype has 32,768 keys, which one table counts. A float32 key is found in two passes, its upper half first.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba.core import types
from numpy.typing import NDArray

from wsmerge.engine.methods.kinds import KIND_BF16, KIND_F16
from wsmerge.engine.methods.loops import compiled, ir, unary

__all__ = ["TABLE", "count_equal", "count_high", "count_low", "keep_between", "key_of", "nth_equal"]

Float32 = NDArray[np.float32]
Counts = NDArray[np.int64]

TABLE: Final = 1 << 16
STRIP: Final = 2048


def _word_magnitude(builder: Any, value: Any) -> Any:  # noqa: ANN401 - numba ships no types
    word = ir.IntType(32)
    return builder.and_(builder.bitcast(value, word), word(0x7FFFFFFF))


def _upper_magnitude(builder: Any, value: Any) -> Any:  # noqa: ANN401 - numba ships no types
    return builder.lshr(_word_magnitude(builder, value), ir.IntType(32)(16))


def _half_magnitude(builder: Any, value: Any) -> Any:  # noqa: ANN401 - numba ships no types
    short = ir.IntType(16)
    bits = builder.bitcast(builder.fptrunc(value, ir.HalfType()), short)
    return builder.zext(builder.and_(bits, short(0x7FFF)), ir.IntType(32))


_word_key = unary(types.uint32, _word_magnitude)
_upper_key = unary(types.uint32, _upper_magnitude)
_half_key = unary(types.uint32, _half_magnitude)


@compiled
def key_of(kind: int, x: Any) -> Any:  # noqa: ANN401 - a float32 in, a uint32 out
    """The key of a value of the work dtype."""
    if kind == KIND_BF16:
        return _upper_key(x)
    if kind == KIND_F16:
        return _half_key(x)
    return _word_key(x)


@compiled
def count_high(kind: int, x: Float32, tables: Counts) -> None:
    """Count the keys, or the upper 16 bits of float32 ones.

    Args:
        kind: the work dtype.
        x: values of it.
        tables: 2 x TABLE; the counts are the sum of both. Two, since equal neighbours would wait for one another.
    """
    keys = np.empty(STRIP, np.uint16)
    even, odd = tables[0], tables[1]
    for start in range(0, x.size, STRIP):
        part = x[start : start + STRIP]
        if kind == KIND_BF16:
            for i in range(part.size):
                keys[i] = _upper_key(part[i])
        elif kind == KIND_F16:
            for i in range(part.size):
                keys[i] = _half_key(part[i])
        else:
            for i in range(part.size):
                keys[i] = _upper_key(part[i])
        pairs = part.size // 2
        for i in range(pairs):
            even[keys[2 * i]] += 1
            odd[keys[2 * i + 1]] += 1
        if part.size % 2:
            even[keys[part.size - 1]] += 1


@compiled
def count_low(x: Float32, high: int, table: Counts) -> None:
    """Count the lower 16 bits of the float32 keys whose upper 16 bits are `high`."""
    for i in range(x.size):
        key = _word_key(x[i])
        if key >> 16 == high:
            table[key & 0xFFFF] += 1


@compiled
def count_equal(kind: int, x: Float32, key: np.uint32) -> int:
    """How many elements have the key."""
    found = np.int32(0)
    for i in range(x.size):
        if key_of(kind, x[i]) == key:
            found += np.int32(1)
    return int(found)


@compiled
def nth_equal(kind: int, x: Float32, key: np.uint32, n: int) -> int:
    """Index of the n-th element (from 1) that has the key, -1 where there are fewer."""
    for i in range(x.size):
        if key_of(kind, x[i]) == key:
            n -= 1
            if n == 0:
                return i
    return -1


@compiled
def keep_between(kind: int, x: Float32, low: np.uint32, high: np.uint32) -> None:
    """Multiply the elements with low <= key < high by 1 and the others by 0, so that NaN and infinity do not vanish."""
    for i in range(x.size):
        key = key_of(kind, x[i])
        x[i] *= np.float32(1) if low <= key < high else np.float32(0)
