"""Steps made of arrays, and what the native methods and mergekit make of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.dtypes import BF16, F16, F32, DType, from_float32, to_float32
from wsmerge.core.tensors import StoredName, TensorSpec
from wsmerge.engine.methods.native import native_method
from wsmerge.engine.methods.step import BlockMethod, MergeStep, StepInput

__all__ = ["DTYPES", "Case", "Chunks", "Stored", "mergekit_result", "native_result", "rounded"]

DTYPES = {"bf16": BF16, "fp16": F16, "fp32": F32}
Values = NDArray[np.float32]


@dataclass(frozen=True)
class Stored:
    """A named tensor, of which native methods need the name only."""

    label: str
    spec: TensorSpec
    made_of: tuple[StoredName, ...] = ()

    def read_into(self, start: int, out: memoryview) -> None:
        raise NotImplementedError


@dataclass(frozen=True)
class Case:
    """Inputs of a step.

    Attributes:
        values: inputs x any shape.
        dtype: whose values they are.
        base: position of the base, None where there is none.
        each: parameters of the inputs; a single value goes to all.
        shared: parameters of the method.
    """

    values: Values
    dtype: DType = F32
    base: int | None = None
    each: Mapping[str, Any] = None  # type: ignore[assignment] # no mutable default
    shared: Mapping[str, Any] = None  # type: ignore[assignment] # as above
    precise: bool = False
    name: str = "layer.weight"
    seed: int = 0
    direct: tuple[int, ...] = ()

    def step(self, method: str) -> MergeStep:
        spec = TensorSpec(self.name, self.dtype, self.values.shape[1:])
        inputs = []
        for i in range(len(self.values)):
            own = {name: value[i] if isinstance(value, list) else value for name, value in (self.each or {}).items()}
            stored = Stored(f"model {i}: {self.name}", spec)
            inputs.append(StepInput(stored, is_base=i == self.base, is_delta=i in self.direct, parameters=own))
        return MergeStep(method, spec, tuple(inputs), self.shared or {}, precise=self.precise, seed=self.seed)


@dataclass(frozen=True)
class Chunks:
    """A reader of values that are in memory."""

    values: Values
    size: int

    def chunks(self, inputs: Sequence[int] | None = None) -> Iterator[tuple[int, Values]]:
        wanted = list(range(len(self.values))) if inputs is None else list(inputs)
        for first in range(0, self.values.shape[1], self.size):
            yield first, self.values[wanted, first : first + self.size].copy()


def rounded(values: NDArray[Any], dtype: DType) -> Values:
    """The nearest values of `dtype`."""
    return to_float32(from_float32(values.astype(np.float32), dtype), dtype)


def native(case: Case, method: str) -> BlockMethod:
    found = native_method(case.step(method))
    assert found is not None
    return found


def native_result(case: Case, method: str, *, size: int = 16384) -> Values:
    """What the native method gives, computed in chunks of `size`."""
    step, flat = case.step(method), case.values.reshape(len(case.values), -1)
    block = native(case, method)
    prepared = block.prepare(step, Chunks(flat, size))
    out = np.full(flat.shape[1], 7, np.float32)
    for first in range(0, out.size, size):
        block.compute(step, prepared, first, flat[:, first : first + size].copy(), out[first : first + size])
    return out.reshape(case.values.shape[1:])


def mergekit_result(case: Case, method: str) -> Values:
    """What mergekit gives."""
    import torch  # noqa: PLC0415 - as mergekit

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries that mergekit imports
        from mergekit.merge_methods.api import merge_tensors  # noqa: PLC0415 - seven seconds

    torch.set_num_threads(1)
    dtype = getattr(torch, case.dtype.recipe_name)
    tensors = [torch.tensor(value).to(dtype) for value in case.values]
    each = {}
    for name, value in (case.each or {}).items():
        listed = value if isinstance(value, list) else [value] * len(tensors)
        each[name] = [item for i, item in enumerate(listed) if i != case.base]
    merged = merge_tensors(tensors, method, parameters={**each, **(case.shared or {})}, base_index=case.base)
    assert merged.dtype is dtype
    result: Values = merged.float().numpy()
    return result
