"""The methods on deltas: a base, and what each other input changes in it.

delta_j = x_j - base, or the input itself where it is a delta already
kept_j  = sparse(delta_j)                            by magnitude, at random, or all of it
out     = base + lambda * sum_j w_j * kept_j / divisor

divisor   without consensus: sum_j w_j, 1 where that is below 1e-8; with it: the sum of the weights whose terms agree
          in sign with the whole, 1 where that is 0; 1 without `normalize`
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.dtypes import DType
from wsmerge.engine.methods.generated import DeltaShape, Mask, delta_loop
from wsmerge.engine.methods.kinds import kind_of, narrowed
from wsmerge.engine.methods.step import Bits16, BitsLoop, MergeStep, StepReader

__all__ = [
    "DeltaMethod",
    "Deltas",
    "Prepared",
    "Sparsifier",
    "delta_chunks",
    "number",
    "number_of",
    "split",
    "weight_sum",
]

Float32 = NDArray[np.float32]

# Sums of so many weights are taken by torch in an order that depends on the processor.
_WIDE_SUM = 8


class Sparsifier(Protocol):
    """What is kept of the deltas. One instance serves all threads and keeps no state."""

    def prepare(self, step: MergeStep, reader: StepReader) -> Any:  # noqa: ANN401 - each one's own statistics
        """What `apply` needs to know of the whole tensor."""

    def apply(self, step: MergeStep, prepared: Any, first: int, rows: Float32) -> None:  # noqa: ANN401 - as above
        """Replace the deltas (`rows`, deltas x elements, from element `first` on) by what is kept of them."""

    def masks(self, prepared: Any) -> Sequence[Mask] | None:  # noqa: ANN401 - as above
        """What is kept of each delta, as loops on bfloat16 know it; None where they do not."""


@dataclass(frozen=True, slots=True)
class Deltas:
    """Where the deltas of a step come from.

    Attributes:
        kind: the work dtype.
        base: position of the base among the inputs.
        direct: for each other input whether it is a delta already.
    """

    kind: int
    base: int
    direct: tuple[bool, ...]

    def take(self, values: Float32) -> tuple[Float32, Float32]:
        """The deltas (deltas x elements, in place of `values`) and the elements of the base."""
        from wsmerge.engine.methods.delta_loops import subtract  # noqa: PLC0415 - loads numba

        base = values[self.base] if self.base == 0 else values[self.base].copy()
        if self.base:
            for row in reversed(range(self.base)):  # the base's row is freed by moving those before it down
                values[row + 1] = values[row]
        for row, direct in enumerate(self.direct, 1):
            if not direct:
                subtract(self.kind, values[row], base)
        return values[1:], base


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a method on deltas computes with: `terms` as the loops take them, and the sparsifier's statistics."""

    deltas: Deltas
    terms: Float32
    sparse: Any


class DeltaMethod:
    """A method on deltas, block by block.

    Args:
        consensus: whether terms that disagree in sign with the whole are left out.
        normalize: mergekit's default of the parameter of that name.
        sparsifier: what is kept of the deltas; None for all.
    """

    def __init__(self, *, consensus: bool, normalize: bool, sparsifier: Sparsifier | None = None) -> None:
        self._consensus = consensus
        self._normalize = normalize
        self._sparsifier = sparsifier

    def prepare(self, step: MergeStep, reader: StepReader) -> Prepared:
        """The weights and the sparsifier's statistics."""
        sparse = self._sparsifier.prepare(step, reader) if self._sparsifier and step.non_base else None
        return Prepared(split(step), self._terms(step), sparse)

    def compute(self, step: MergeStep, prepared: Prepared, first: int, values: Float32, out: Float32) -> None:
        """Write the merged elements `first`, `first + 1`, ... into `out`."""
        from wsmerge.engine.methods import delta_loops  # noqa: PLC0415 - loads numba

        deltas = prepared.deltas
        if not deltas.direct:
            out[:] = values[deltas.base]
            return
        rows, base = deltas.take(values)
        if self._sparsifier:
            self._sparsifier.apply(step, prepared.sparse, first, rows)
        loop = delta_loops.agree if self._consensus else delta_loops.combine
        loop(deltas.kind, rows, base, prepared.terms, out)

    def bits_loop(self, step: MergeStep, prepared: Prepared) -> BitsLoop | None:
        """As `compute`, on bfloat16 as it is stored; None where masks are not of a kind that such loops know."""
        deltas, count = prepared.deltas, len(prepared.deltas.direct)
        masks = self._sparsifier.masks(prepared.sparse) if self._sparsifier and count else [Mask("all")] * count
        if not count or any(deltas.direct) or masks is None:
            return None
        divisor, factor = prepared.terms[-2:]
        shape = DeltaShape(
            inputs=len(step.inputs),
            base_at=deltas.base,
            masks=tuple(mask.kind for mask in masks),
            scaled=tuple(mask.kind not in ("all", "none") and mask.ratio != 1 for mask in masks),
            consensus=self._consensus,
            divides=bool(divisor != (0 if self._consensus else 1)),
            scales=bool(factor != 1),
        )
        loop, ratios = delta_loop(shape), [mask.ratio for mask in masks]
        terms = np.array([*prepared.terms[:count], *ratios, divisor, factor], np.float32)

        def run(first: int, bits: Bits16, out: Bits16) -> None:
            numbers = np.array([mask.numbers(first) for mask in masks], np.int64)
            loop(bits, terms, numbers, out)

        return run

    def _terms(self, step: MergeStep) -> Float32:
        kind = kind_of(step.dtype)
        weights = [narrowed(kind, float(item.parameters["weight"])) for item in step.non_base]
        normalize = bool(step.parameters.get("normalize", self._normalize))
        if self._consensus:
            divisor = float(normalize)
        else:
            divisor = weight_sum(weights, step.dtype) if normalize and weights else 1.0
            if abs(divisor) < narrowed(kind, 1e-8):
                divisor = 1.0
        return np.array([*weights, divisor, number(step, "lambda", 1.0)], np.float32)


def split(step: MergeStep) -> Deltas:
    """Where the deltas of `step`, which has a base, come from."""
    base = next(i for i, item in enumerate(step.inputs) if item.is_base)
    return Deltas(kind_of(step.dtype), base, tuple(item.is_delta for item in step.non_base))


def delta_chunks(step: MergeStep, reader: StepReader, positions: Sequence[int]) -> Iterator[tuple[int, Float32]]:
    """For each chunk its first element and the deltas of the non-base inputs at `positions`, in that order.

    Only what these need is read. `positions` ascend.
    """
    whole = split(step)
    inputs = [position + (position >= whole.base) for position in positions]
    needed = sorted({whole.base, *inputs})
    part = Deltas(whole.kind, needed.index(whole.base), tuple(whole.direct[position] for position in positions))
    for first, values in reader.chunks(needed):
        yield first, part.take(values)[0]


def number(step: MergeStep, name: str, default: float) -> float:
    """The step's shared parameter `name`, `default` where the recipe does not give it."""
    value = step.parameters.get(name)
    return default if value is None else float(value)


def number_of(step: MergeStep, position: int, name: str, default: float) -> float:
    """Parameter `name` of the non-base input at `position`, `default` where the recipe does not give it."""
    value = step.non_base[position].parameters.get(name)
    return default if value is None else float(value)


def weight_sum(weights: Sequence[float], dtype: DType) -> float:
    """Sum of `weights` (values of `dtype`) in the order in which torch adds so few numbers, rounded to `dtype`."""
    if len(weights) >= _WIDE_SUM:
        import torch  # noqa: PLC0415 - needed for long sums only

        return float(torch.tensor(weights, dtype=getattr(torch, dtype.recipe_name)).sum())
    # Four partial sums; what is left over of groups of four goes to the first.
    partial: list[np.floating[Any]] = [np.float32(0)] * 4
    whole = len(weights) // 4 * 4
    for i, weight in enumerate(weights):
        lane = i % 4 if i < whole else 0
        partial[lane] = np.float32(partial[lane] + np.float32(weight))
    total = partial[0]
    for part in partial[1:]:
        total = np.float32(total + part)
    return narrowed(kind_of(dtype), float(total))
