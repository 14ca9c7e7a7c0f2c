"""Keeping deltas at random, larger ones more probably (della, della_linear).

    rank r of |delta| within its row, 0 ... columns - 1, equals by rising index
    p      = density - epsilon + 2 * epsilon * r / (columns - 1)
    kept   = delta * mask * sum|delta| / sum|delta * mask|

A tensor of one dimension is one row. Outside precise steps ranks and probabilities are rounded to the work dtype as
mergekit's are: in bfloat16 the ranks above 256 keep 8 bits. Masks are drawn in `prepare`, where rows are whole, and kept
as one bit an element.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.dtypes import BF16, F32, from_float32, to_float32
from wsmerge.engine.methods.deltas import delta_chunks, number_of, split
from wsmerge.engine.methods.dropping import work_kind
from wsmerge.engine.methods.kinds import KIND_BF16
from wsmerge.engine.methods.norms import Norm, norm_ratio
from wsmerge.engine.methods.random import keep_limits, stream_key
from wsmerge.engine.methods.step import MergeStep, StepReader
from wsmerge.errors import Problems, RecipeError

__all__ = ["Rank", "probabilities"]

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Masked:
    """One delta's mask, a bit an element (None for all of them), and the ratio; a ratio of 0 keeps nothing at all."""

    bits: NDArray[np.uint8] | None = None
    ratio: float = 1.0


class Rank:
    """Keeps deltas at random by their rank in the row."""

    def prepare(self, step: MergeStep, reader: StepReader) -> tuple[_Masked, ...]:
        """Each delta's mask; reads those that are masked once.

        Raises:
            RecipeError: density +- epsilon leaves the range between 0 and 1.
        """
        _check(step)
        densities = [number_of(step, position, "density", 1.0) for position in range(len(step.non_base))]
        masked = [_Masked(ratio=float(density > 0)) for density in densities]
        positions = [position for position, density in enumerate(densities) if 0 < density < 1]
        if not positions or not step.spec.numel:
            return tuple(masked)
        rows = [_Rows(step, position) for position in positions]
        for first, chunk in delta_chunks(step, reader, positions):
            for row, values in zip(rows, chunk, strict=True):
                row.take(first, values)
        rescale = bool(step.parameters.get("rescale", True))
        for position, row in zip(positions, rows, strict=True):
            masked[position] = replace(row.masked, ratio=row.ratio if rescale else 1.0)
        return tuple(masked)

    def masks(self, prepared: Any) -> None:  # noqa: ANN401 - the interface's
        """Masks by rank lie in memory, which loops on bfloat16 do not know."""

    def apply(self, step: MergeStep, prepared: tuple[_Masked, ...], first: int, rows: Float32) -> None:
        """Mask and rescale the deltas in place."""
        from wsmerge.engine.methods.delta_loops import scale  # noqa: PLC0415 - loads numba
        from wsmerge.engine.methods.random_loops import keep_bits  # noqa: PLC0415 - loads numba

        kind = split(step).kind
        for row, masked in zip(rows, prepared, strict=True):
            if masked.bits is not None:
                keep_bits(masked.bits, first, row)
                if masked.ratio != 1:
                    scale(kind, row, np.float32(masked.ratio))
            elif not masked.ratio:
                row[:] = 0


def probabilities(columns: int, density: float, epsilon: float, *, narrow: bool, precise: bool) -> Float64:
    """The probability of each rank.

    Args:
        columns: length of a row.
        density: the mean probability.
        epsilon: how far the probabilities of the smallest and the largest element are from it.
        narrow: round every operation to bfloat16, otherwise to float32.
        precise: do not round.
    """
    if columns == 1:  # mergekit divides 0 by 0
        return np.array([density])
    if precise:
        return density - epsilon + np.arange(columns) / (columns - 1) * 2 * epsilon
    dtype = BF16 if narrow else F32

    def rounded(values: Float32) -> Float32:
        return to_float32(from_float32(values, dtype), dtype)

    ranks = rounded(rounded(np.arange(columns).astype(np.float32)) + np.float32(1))
    share = np.clip(rounded(rounded(ranks - ranks[0]) / rounded(ranks[-1:] - ranks[0])), 0, 1)
    spread = rounded(rounded(share * np.float32(2)) * np.float32(epsilon))
    return rounded(spread + rounded(np.array([density - epsilon], np.float32))).astype(np.float64)


class _Rows:
    """Gathers the rows of one delta from its chunks, and masks each when it is whole."""

    def __init__(self, step: MergeStep, position: int) -> None:
        shape = step.spec.shape
        columns = shape[1] if len(shape) == 2 else step.spec.numel
        density = number_of(step, position, "density", 1.0)
        epsilon = number_of(step, position, "epsilon", 0.15)
        narrow = work_kind(step) == KIND_BF16
        self._kind = split(step).kind
        self._key = np.uint64(stream_key(step.seed, step.spec.name, position))
        self._limits = keep_limits(probabilities(columns, density, epsilon, narrow=narrow, precise=step.precise))
        self._row = np.empty(columns, np.float32)
        self._places = np.empty((2, columns), np.uint32)
        self._bits = np.zeros(-(-step.spec.numel // 8), np.uint8)
        self._before, self._after = Norm(), Norm()

    def take(self, first: int, values: Float32) -> None:
        """Take in the deltas `first`, `first + 1`, ...; chunks come in order."""
        columns = self._row.size
        done = 0
        while done < values.size:
            column = (first + done) % columns
            count = min(columns - column, values.size - done)
            self._row[column : column + count] = values[done : done + count]
            done += count
            if column + count == columns:
                self._mask(first + done - columns)

    def _mask(self, first: int) -> None:
        from wsmerge.engine.methods.random_loops import mask_row  # noqa: PLC0415 - loads numba

        self._before.add(first, self._row)
        mask_row(self._kind, first, self._row, self._key, self._limits, self._places, self._bits)
        self._after.add(first, self._row)

    @property
    def masked(self) -> _Masked:
        """The mask, once all chunks have come."""
        return _Masked(self._bits)

    @property
    def ratio(self) -> float:
        """What the kept elements are to be multiplied by."""
        return norm_ratio(self._kind, self._before.total, self._after.total)


def _check(step: MergeStep) -> None:
    problems = Problems()
    for position, item in enumerate(step.non_base):
        density = number_of(step, position, "density", 1.0)
        epsilon = number_of(step, position, "epsilon", 0.15)
        if 0 < density < 1 and not (density - epsilon > 0 and density + epsilon < 1):
            problems.add(f"{item.tensor.label}: density {density:g}, epsilon {epsilon:g}")
    problems.raise_if_any(
        RecipeError,
        "density - epsilon and density + epsilon must lie between 0 and 1",
        where=step.spec.name,
        hint="lower epsilon, or set density to 1 to keep all or to 0 to keep nothing",
    )
