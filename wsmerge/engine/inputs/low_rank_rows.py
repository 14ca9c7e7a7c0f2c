"""Chunks of a low-rank product, of base values and of their sum, in a thread's reused buffers.

product = s * (b @ a)                                     float32: sum over the ranks, then times s
sum over more than 192 ranks = the sums of 192 at most    as torch's sgemm (MKL 2024.2) cuts them
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.dtypes import BF16, F16, F32, DType, from_float32, to_float32
from wsmerge.core.tensors import TensorInput
from wsmerge.engine.kernels import load_kernels

__all__ = ["LowRankRows", "StackedRows", "chunks", "encode_sum", "read_values", "round_to", "scratch"]

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

_CHUNK_ELEMENTS: Final = 1 << 16
_SEGMENT_RANKS: Final = 192
_scratch = threading.local()


class LowRankRows:
    """s * (b @ a), written a range of elements at a time. Threads may share it.

    Args:
        b: rows x rank; rounded to float32.
        a: rank x columns; rounded to float32.
        scale: s; rounded to float32 where float32 is written, as torch does.
    """

    def __init__(self, b: NDArray[np.floating[Any]], a: NDArray[np.floating[Any]], scale: float = 1.0) -> None:
        self._parts = [
            (np.ascontiguousarray(b[:, ranks], np.float32), np.ascontiguousarray(a[ranks], np.float32))
            for ranks in _segments(b.shape[1])
        ]
        self._scale = scale

    def write(self, first: int, out: Float32) -> None:
        """Write the elements from `first` on into `out`, a chunk at most."""
        low_rank = load_kernels().low_rank
        low_rank(*self._parts[0], first, out)
        with np.errstate(invalid="ignore", over="ignore"):  # what float32 cannot hold becomes infinite, as in torch
            for b, a in self._parts[1:]:
                part = scratch("part", out.size)
                low_rank(b, a, first, part)
                out += part
            if self._scale != 1:
                np.multiply(out, np.float32(self._scale), out=out)

    def write64(self, first: int, out: Float64) -> None:
        """As `write`, in float64: rank after rank, so that any range gives the same bits."""
        columns = self._parts[0][1].shape[1]
        rows = slice(first // columns, -(-(first + out.size) // columns))
        total = np.zeros((rows.stop - rows.start, columns))
        for b, a in self._parts:
            for r in range(b.shape[1]):
                total += b[rows, r, None].astype(np.float64) * a[r]
        np.multiply(total.reshape(-1)[first - rows.start * columns :][: out.size], self._scale, out=out)


class StackedRows:
    """Products of equal shapes, one after the other; the matrices of stacked experts. Threads may share it."""

    def __init__(self, parts: Sequence[LowRankRows], size: int) -> None:
        self._parts = parts
        self._size = size

    def write(self, first: int, out: Float32) -> None:
        """Write the elements from `first` on into `out`, a chunk at most."""
        for part, start, place in self._pieces(first, out.size):
            part.write(start, out[place])

    def write64(self, first: int, out: Float64) -> None:
        """As `write`, in float64."""
        for part, start, place in self._pieces(first, out.size):
            part.write64(start, out[place])

    def _pieces(self, first: int, count: int) -> Iterator[tuple[LowRankRows, int, slice]]:
        done = 0
        while done < count:
            number, start = divmod(first + done, self._size)
            length = min(self._size - start, count - done)
            yield self._parts[number], start, slice(done, done + length)
            done += length


def scratch(use: str, count: int, storage: Any = np.float32) -> NDArray[Any]:  # noqa: ANN401 - whatever numpy takes for one
    """This thread's buffer for `use`, as `count` elements (a chunk at most); holds what its last user left.

    Buffers are allocated at a thread's first use and kept, since a page's first touch costs far more than the second. A
    tensor that reads another one must not rely on a buffer across that call: the other uses the same buffers.
    """
    buffers: dict[str, Float64] = _scratch.__dict__
    if use not in buffers:
        buffers[use] = np.empty(_CHUNK_ELEMENTS)
    held: NDArray[Any] = buffers[use].view(storage)
    return held[:count]


def chunks(first: int, count: int) -> Iterator[tuple[int, slice]]:
    """Elements `first` to `first + count` in chunks: the first element of each, and its place among the `count`."""
    for start in range(0, count, _CHUNK_ELEMENTS):
        yield first + start, slice(start, min(start + _CHUNK_ELEMENTS, count))


def read_values(tensor: TensorInput, first: int, out: Float32) -> None:
    """Write the values of a float tensor from element `first` on into `out`, a chunk at most."""
    held = tensor.spec.dtype
    stored = scratch("stored", out.size, held.storage)
    tensor.read_into(first * held.itemsize, stored.view(np.uint8).data)
    if held is BF16:
        load_kernels().decode_bf16(stored, out)
    else:
        with np.errstate(over="ignore"):  # a float64 beyond float32's range becomes infinite, as in torch
            out[:] = stored


def round_to(dtype: DType, values: Float32) -> None:
    """Round `values` to `dtype` in place; nothing happens to float32 and wider."""
    if dtype in (BF16, F16):
        values[:] = to_float32(from_float32(values, dtype), dtype)


def encode_sum(values: Float32, delta: Float32, dtype: DType, out: NDArray[Any]) -> None:
    """Write values + delta, summed in float32 and rounded once, into `out` (elements of `dtype.storage`)."""
    with np.errstate(invalid="ignore", over="ignore"):  # a base may hold NaN or infinity, and keeps them
        if dtype is BF16:
            load_kernels().round_bf16(values, delta, out)
        elif dtype is F32:
            np.add(values, delta, out=out)
        else:
            out[:] = from_float32(values + delta, dtype)


def _segments(rank: int) -> list[slice]:
    """How torch's sgemm cuts the ranks: in halves where they are fewer than two segments."""
    if rank <= _SEGMENT_RANKS:
        return [slice(0, rank)]
    length = rank // 2 if rank < 2 * _SEGMENT_RANKS else _SEGMENT_RANKS
    return [slice(start, min(start + length, rank)) for start in range(0, rank, length)]
