"""Reading a step's inputs: any range, in chunks, rounded to the step's dtype; judged by torch and by whole arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from wsmerge.core.dtypes import BF16, F16, F32, F64, DType, from_float32, to_float32
from wsmerge.core.tensors import StoredName, TensorSpec
from wsmerge.engine.costs import METHOD_CHUNK_ELEMENTS
from wsmerge.engine.kernels import load_kernels
from wsmerge.engine.methods.step import MergeStep, StepInput
from wsmerge.engine.reader import BitsReader, ChunkReader, StepChunks

SIZE = 5 * METHOD_CHUNK_ELEMENTS + 123


@dataclass(frozen=True)
class InMemory:
    """A tensor of elements that are in memory."""

    bits: NDArray[Any]
    spec: TensorSpec
    label: str = "memory"
    made_of: tuple[StoredName, ...] = ()

    def read_into(self, start: int, out: memoryview) -> None:
        out[:] = self.bits.tobytes()[start : start + len(out)]


def made(dtype: DType, seed: int) -> InMemory:
    generator = np.random.default_rng(seed)
    exponents = generator.integers(-30, 30, SIZE) if dtype is not F16 else generator.integers(-10, 8, SIZE)
    values = generator.standard_normal(SIZE) * np.ldexp(1.0, exponents)
    values[:6] = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0]
    bits = values if dtype is F64 else from_float32(values.astype(np.float32), dtype)
    return InMemory(bits, TensorSpec("w", dtype, (SIZE,)))


def step_of(inputs, dtype):
    return MergeStep("linear", TensorSpec("w", dtype, (SIZE,)), tuple(StepInput(item) for item in inputs))


def chunks_of(step):
    return StepChunks(lambda: ChunkReader(load_kernels(), len(step.inputs)), BitsReader(), step)


def as_torch(item):
    kinds = {F16: torch.float16, F32: torch.float32, F64: torch.float64}
    if item.spec.dtype is BF16:
        return torch.from_numpy(item.bits.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(item.bits.copy()).to(kinds[item.spec.dtype])


@pytest.mark.parametrize("target", [BF16, F16, F32])
@pytest.mark.parametrize("held", [BF16, F16, F32, F64])
def test_values_are_rounded_as_torch_rounds(held, target):
    item = made(held, 1)
    kind = {BF16: torch.bfloat16, F16: torch.float16, F32: torch.float32}[target]
    expected = as_torch(item).to(kind).to(torch.float32).numpy()
    parts = [values[0].copy() for _, values in chunks_of(step_of([item], target)).chunks()]
    np.testing.assert_array_equal(np.concatenate(parts).view(np.uint32)[5:], expected.view(np.uint32)[5:])
    np.testing.assert_array_equal(np.concatenate(parts)[:6], expected[:6])  # whatever a NaN's bits


def test_chunks_cover_every_element_once_and_in_order():
    inputs = [made(dtype, seed) for seed, dtype in enumerate((BF16, F32, F16))]
    step = step_of(inputs, F32)
    whole = np.stack([to_float32(item.bits, item.spec.dtype) for item in inputs])
    seen = 0
    for first, values in chunks_of(step).chunks():
        assert first == seen
        assert values.shape[0] == 3
        assert values.shape[1] <= METHOD_CHUNK_ELEMENTS
        np.testing.assert_array_equal(values, whole[:, first : first + values.shape[1]])
        seen += values.shape[1]
    assert seen == SIZE


@pytest.mark.parametrize("chosen", [[0], [2], [0, 2], [2, 1]])
def test_only_the_chosen_inputs_are_read(chosen):
    inputs = [made(BF16, seed) for seed in range(3)]
    step = step_of(inputs, BF16)
    whole = np.stack([to_float32(item.bits, BF16) for item in inputs])
    for first, values in chunks_of(step).chunks(chosen):
        np.testing.assert_array_equal(values, whole[chosen, first : first + values.shape[1]])


@pytest.mark.parametrize(("first", "end"), [(0, 1), (3, 4), (17, 40_001), (METHOD_CHUNK_ELEMENTS, SIZE), (5, 5)])
def test_any_range_gives_the_same_values(first, end):
    inputs = [made(dtype, seed) for seed, dtype in enumerate((F64, F16))]
    step = step_of(inputs, BF16)
    reader = ChunkReader(load_kernels(), 2)
    whole = np.concatenate([values.copy() for _, values in reader.chunks(step, 0, SIZE)], axis=1)
    parts = [values.copy() for _, values in reader.chunks(step, first, end)]
    found = np.concatenate(parts, axis=1) if parts else np.empty((2, 0), np.float32)
    np.testing.assert_array_equal(found, whole[:, first:end])


def test_bfloat16_inputs_of_a_bfloat16_step_come_as_they_are_stored():
    inputs = [made(BF16, seed) for seed in range(3)]
    windows = chunks_of(step_of(inputs, BF16)).bit_windows()
    assert windows is not None
    seen = 0
    for first, bits in windows:
        assert first == seen
        np.testing.assert_array_equal(bits, np.stack([item.bits[first : first + bits.shape[1]] for item in inputs]))
        seen += bits.shape[1]
    assert seen == SIZE


@pytest.mark.parametrize(("held", "dtype"), [((BF16, F32), BF16), ((BF16, BF16), F32), ((F16, F16), F16)])
def test_and_no_others_do(held, dtype):
    inputs = [made(item, seed) for seed, item in enumerate(held)]
    assert chunks_of(step_of(inputs, dtype)).bit_windows() is None
