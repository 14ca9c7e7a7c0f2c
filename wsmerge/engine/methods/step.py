"""What one output tensor is merged from, and the interface of the methods that compute it block by block.

    values[i]  = input i, rounded to the step's dtype      float32, inputs x elements
    merged     = method(values)                            float32, holding values of the step's dtype

mergekit computes in the dtype that the recipe's `dtype` names, else in the dtype to which the inputs promote, and rounds to
it after every operation. A method here does the same unless the step is precise: then it computes in float32 throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.dtypes import DType
from wsmerge.core.tensors import TensorInput, TensorSpec

__all__ = [
    "Bits16",
    "BitsLoop",
    "BitsMethod",
    "BitsSource",
    "BlockMethod",
    "Float32",
    "MergeStep",
    "StepInput",
    "StepReader",
]

Float32 = NDArray[np.float32]
Bits16 = NDArray[np.uint16]
BitsLoop = Callable[[int, Bits16, Bits16], None]
"""Takes the first element, bit patterns (inputs x elements in the step's order), and writes the merged ones; C-contiguous."""


@dataclass(frozen=True, slots=True)
class StepInput:
    """One model's part in a step.

    Attributes:
        tensor: what is read.
        is_base: whether it is the base that deltas are taken from.
        is_delta: whether it is a delta already (a direction in place of a model): methods on deltas take it as it is.
        parameters: the method's parameters of scope `input` and `non_base`, by name, evaluated.
    """

    tensor: TensorInput
    is_base: bool = False
    is_delta: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MergeStep:
    """How one output tensor is merged, before directions are added and the output's dtype is taken.

    Attributes:
        method: name of the merge method.
        spec: the result's name (the output tensor's, which also keys random numbers), dtype and shape. The dtype is the
            one that mergekit computes in; F32 where the step is precise.
        inputs: in the order of the recipe; the order of summing.
        parameters: the method's shared parameters, by name, evaluated.
        precise: compute in float32 throughout and leave rounding to the output.
        seed: of methods that draw random numbers.
        mergekit_rng: whether mergekit's own kernel draws them.
        gives: the dtype of the result where it is not the step's: masks of float32 widen what some methods give.
    """

    method: str
    spec: TensorSpec
    inputs: tuple[StepInput, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    precise: bool = False
    seed: int = 0
    mergekit_rng: bool = False
    gives: DType | None = None

    @property
    def result_dtype(self) -> DType:
        """The dtype of the result."""
        return self.gives or self.dtype

    @property
    def dtype(self) -> DType:
        """The dtype that the method computes in."""
        return self.spec.dtype

    @property
    def base(self) -> StepInput | None:
        """The base, None where there is none."""
        return next((item for item in self.inputs if item.is_base), None)

    @property
    def non_base(self) -> tuple[StepInput, ...]:
        """The inputs that are not the base, in order."""
        return tuple(item for item in self.inputs if not item.is_base)


class StepReader(Protocol):
    """Reads a step's inputs from start to end, chunk by chunk; given to methods that need statistics first."""

    def chunks(self, inputs: Sequence[int] | None = None) -> Iterator[tuple[int, Float32]]:
        """For each chunk its first element and its values, inputs x elements, C-contiguous.

        The values are the caller's to overwrite, and valid until the next chunk.

        Args:
            inputs: positions of the inputs to read, ascending; None for all.
        """


@runtime_checkable
class BitsSource(Protocol):
    """A step reader that may give inputs as they are stored."""

    def bit_windows(self) -> Iterator[tuple[int, Bits16]] | None:
        """For each window its first element, a multiple of 16, and all inputs' bit patterns, inputs x elements.

        Valid until the next window. None unless the step and all of its inputs are bfloat16.
        """


class BlockMethod(Protocol):
    """A merge method on chunks of elements. One instance serves all threads and keeps no state."""

    def prepare(self, step: MergeStep, reader: StepReader) -> Any:  # noqa: ANN401 - each method's own statistics
        """What `compute` needs to know of the whole tensor, for example thresholds; None where it needs nothing."""

    def compute(self, step: MergeStep, prepared: Any, first: int, values: Float32, out: Float32) -> None:  # noqa: ANN401
        """Write the merged elements `first`, `first + 1`, ... into `out`.

        Args:
            step: the step.
            prepared: what `prepare` returned.
            first: element of the tensor at which `values` and `out` begin.
            values: inputs x elements, in the step's order, holding values of the step's dtype; may be overwritten.
            out: the merged values.
        """


@runtime_checkable
class BitsMethod(Protocol):
    """A block method that, for some steps all in bfloat16, takes elements as they are stored and gives them so."""

    def bits_loop(self, step: MergeStep, prepared: Any) -> BitsLoop | None:  # noqa: ANN401 - each method's own statistics
        """What writes the merged bit patterns, equal to those that `compute` gives; None where the step needs that.

        Args:
            step: the step, whose dtype and inputs are bfloat16.
            prepared: what `prepare` returned.
        """
