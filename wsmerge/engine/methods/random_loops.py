"""The compiled loops of random masks; see `random` for the generator."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wsmerge.engine.methods.kinds import KIND_BF16, KIND_F16
from wsmerge.engine.methods.loops import compiled
from wsmerge.engine.methods.random import FIRST_FACTOR, GOLDEN, SECOND_FACTOR
from wsmerge.engine.methods.trimming_loops import key_of

__all__ = ["draws", "keep_bits", "keep_drawn", "mask_row"]

Float32 = NDArray[np.float32]
Draws = NDArray[np.uint32]
Bits = NDArray[np.uint8]
Places = NDArray[np.uint32]

# Typed once: numba makes a float of a uint64 plus a signed integer.
_GOLDEN = np.uint64(GOLDEN)
_FIRST_FACTOR = np.uint64(FIRST_FACTOR)
_SECOND_FACTOR = np.uint64(SECOND_FACTOR)
_ONE = np.uint64(1)
_S27, _S30, _S31, _S32 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(32)
_DIGIT = 256


@compiled
def draw(key: np.uint64, element: np.uint64) -> np.uint32:
    """The 32 bits of one element."""
    z = key + ((element >> _ONE) + _ONE) * _GOLDEN
    z = (z ^ (z >> _S30)) * _FIRST_FACTOR
    z = (z ^ (z >> _S27)) * _SECOND_FACTOR
    z = z ^ (z >> _S31)
    return np.uint32(z >> _S32) if element & _ONE else np.uint32(z)


@compiled
def draws(key: np.uint64, first: int, out: Draws) -> None:
    """The bits of the elements `first`, `first + 1`, ..."""
    start = np.uint64(first)
    for i in range(out.size):
        out[i] = draw(key, start + np.uint64(i))


@compiled
def keep_drawn(key: np.uint64, limit: np.uint32, first: int, x: Float32) -> None:
    """Multiply each element by 1 with the probability that `limit` stands for, else by 0."""
    start = np.uint64(first)
    for i in range(x.size):
        x[i] *= np.float32(1) if draw(key, start + np.uint64(i)) < limit else np.float32(0)


@compiled
def keep_bits(bits: Bits, first: int, x: Float32) -> None:
    """Multiply element i by bit `first + i`, counted from the lowest bit of the first byte."""
    for i in range(x.size):
        element = first + i
        x[i] *= np.float32((bits[element >> 3] >> (element & 7)) & 1)


@compiled
def mask_row(kind: int, first: int, x: Float32, key: np.uint64, limits: Draws, places: Places, bits: Bits) -> None:
    """Draw a row's mask: its element of rank r (from 0, by rising magnitude, lower index first) is kept below limits[r].

    Args:
        kind: the work dtype.
        first: element of the tensor at which the row begins.
        x: the row's deltas; multiplied by the mask.
        key: of the stream of random numbers.
        limits: one a rank.
        places: scratch, 2 x row.
        bits: the tensor's mask, zero where the row is; its bits are set.
    """
    _sort_places(kind, x, places)
    start = np.uint64(first)
    for rank in range(x.size):
        place = places[0, rank]
        kept = draw(key, start + np.uint64(place)) < limits[rank]
        element = first + np.int64(place)
        if kept:
            bits[element >> 3] |= np.uint8(1 << (element & 7))
        x[place] *= np.float32(1) if kept else np.float32(0)


@compiled
def _sort_places(kind: int, x: Float32, places: Places) -> None:
    """Put the indices of `x` in order of magnitude into places[0]: a radix sort, a byte a pass."""
    passes = 2 if kind in (KIND_BF16, KIND_F16) else 4
    counts = np.empty(_DIGIT, np.int64)
    for i in range(x.size):
        places[0, i] = np.uint32(i)
    for digit in range(passes):
        source, target = places[digit % 2], places[1 - digit % 2]
        shift = 8 * digit
        counts[:] = 0
        for i in range(x.size):
            counts[(key_of(kind, x[i]) >> shift) & 0xFF] += 1
        total = 0
        for value in range(_DIGIT):
            count = counts[value]
            counts[value] = total
            total += count
        for i in range(x.size):
            place = source[i]
            value = (key_of(kind, x[place]) >> shift) & 0xFF
            target[counts[value]] = place
            counts[value] += 1
