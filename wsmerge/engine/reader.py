"""Reads the inputs of a merge step as float32 values of the step's dtype, a chunk at a time, into reused buffers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.dtypes import BF16, F16, F32, DType, from_float32
from wsmerge.engine.costs import BITS_WINDOW_ELEMENTS, METHOD_CHUNK_ELEMENTS, WINDOW_ELEMENTS
from wsmerge.engine.kernels import Kernels
from wsmerge.engine.methods.step import Bits16, Float32, MergeStep

__all__ = ["BitsReader", "ChunkReader", "StepChunks"]


class ChunkReader:
    """One worker's buffers for reading steps of up to `most_inputs` inputs. Not to be shared between threads.

    Files are read a window at a time, which holds several chunks: a system call costs as much as some thousand elements.
    """

    def __init__(self, kernels: Kernels, most_inputs: int) -> None:
        self._kernels = kernels
        self._values = np.empty(most_inputs * METHOD_CHUNK_ELEMENTS, np.float32)
        self._stored = [np.empty(0, np.uint8)] * most_inputs
        self._bits = np.empty(METHOD_CHUNK_ELEMENTS, np.uint16)

    def chunks(
        self, step: MergeStep, first: int, end: int, inputs: Sequence[int] | None = None
    ) -> Iterator[tuple[int, Float32]]:
        """Elements `first` to `end` of the inputs, rounded to the step's dtype.

        Yields:
            For each chunk its first element and its values, inputs x elements, valid until the next chunk.
        """
        chosen = tuple(range(len(step.inputs)) if inputs is None else inputs)
        for window in range(first, end, WINDOW_ELEMENTS):
            stop = min(window + WINDOW_ELEMENTS, end)
            self._load(step, chosen, window, stop - window)
            for start in range(window, stop, METHOD_CHUNK_ELEMENTS):
                count = min(METHOD_CHUNK_ELEMENTS, stop - start)
                yield start, self._chunk(step, chosen, start - window, count)

    def _load(self, step: MergeStep, chosen: Sequence[int], first: int, count: int) -> None:
        for row, number in enumerate(chosen):
            tensor = step.inputs[number].tensor
            width = tensor.spec.dtype.itemsize
            if self._stored[row].size < count * width:
                self._stored[row] = np.empty(count * width, np.uint8)
            tensor.read_into(width * first, self._stored[row][: count * width].data)

    def _chunk(self, step: MergeStep, chosen: Sequence[int], start: int, count: int) -> Float32:
        values = self._values[: len(chosen) * count].reshape(len(chosen), count)
        for row, number in enumerate(chosen):
            held = step.inputs[number].tensor.spec.dtype
            stored = self._stored[row][start * held.itemsize : (start + count) * held.itemsize]
            self._decode(stored.view(held.storage), held, values[row])
            if held is not step.dtype and step.dtype is not F32:
                self._round(values[row], step.dtype)
        return values

    def _decode(self, stored: NDArray[Any], held: DType, out: Float32) -> None:
        if held is BF16:
            self._kernels.decode_bf16(stored, out)
        else:
            with np.errstate(over="ignore"):  # a float64 beyond float32's range becomes infinite, as in torch
                out[:] = stored

    def _round(self, values: Float32, dtype: DType) -> None:
        if dtype is BF16:
            bits = self._bits[: values.size]
            self._kernels.encode_bf16(values, bits)
            self._kernels.decode_bf16(bits, values)
        elif dtype is F16:
            values[:] = from_float32(values, dtype)


class BitsReader:
    """One worker's buffer for reading steps all in bfloat16 as they are stored."""

    def __init__(self) -> None:
        self._held = np.empty(0, np.uint16)

    def read(self, step: MergeStep, first: int, count: int) -> Bits16:
        """Elements `first` to `first + count` of all inputs, inputs x count; valid until the next call."""
        inputs = len(step.inputs)
        if self._held.size < inputs * count:
            self._held = np.empty(inputs * count, np.uint16)
        found = self._held[: inputs * count].reshape(inputs, count)
        for row, item in zip(found, step.inputs, strict=True):
            item.tensor.read_into(BF16.itemsize * first, row.view(np.uint8).data)
        return found


class StepChunks:
    """A step's inputs from start to end; what `BlockMethod.prepare` is given. The reader is made when it is first used."""

    def __init__(self, reader: Callable[[], ChunkReader], bits: BitsReader, step: MergeStep) -> None:
        self._reader = reader
        self._bits = bits
        self._step = step

    def bit_windows(self) -> Iterator[tuple[int, Bits16]] | None:
        """For each window its first element and all inputs' bit patterns; None unless all is bfloat16."""
        held = {item.tensor.spec.dtype for item in self._step.inputs} | {self._step.dtype}
        return self._windows() if held == {BF16} else None

    def _windows(self) -> Iterator[tuple[int, Bits16]]:
        numel = self._step.spec.numel
        for first in range(0, numel, BITS_WINDOW_ELEMENTS):
            yield first, self._bits.read(self._step, first, min(BITS_WINDOW_ELEMENTS, numel - first))

    def chunks(self, inputs: Sequence[int] | None = None) -> Iterator[tuple[int, Float32]]:
        """For each chunk its first element and its values, inputs x elements, valid until the next chunk."""
        yield from self._reader().chunks(self._step, 0, self._step.spec.numel, inputs)
