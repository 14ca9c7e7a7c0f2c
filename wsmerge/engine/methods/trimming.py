"""Keeping the deltas of middling or large magnitude: ties (magnitude) and breadcrumbs (without outliers).

    order     elements by falling |delta|; of equal ones the lower index first
    ties      keeps the first max(1, int(density * n))
    breadcrumbs  passes over the first int(gamma * n), fewer where too few would remain, and keeps the next int(density * n)

Both keep what lies between two cuts of that order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from wsmerge.engine.methods.deltas import delta_chunks, number_of, split
from wsmerge.engine.methods.generated import Mask
from wsmerge.engine.methods.norms import Norm, norm_ratio
from wsmerge.engine.methods.searching import Cut, find_cuts
from wsmerge.engine.methods.step import MergeStep, StepReader

__all__ = ["Kept", "Trim"]

Float32 = NDArray[np.float32]

_MOST = (1 << 31) - 1  # no key and no place within a window is larger


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of one delta: all of it, nothing, or the elements above `low` and not above `high`.

    Attributes:
        low: the lower cut; None where all or nothing is kept.
        high: the upper cut; None as well.
        ratio: by which the kept elements are multiplied; 0 where nothing is kept, whatever it was.
    """

    low: Cut | None = None
    high: Cut | None = None
    ratio: float = 1.0

    def apply(self, kind: int, first: int, row: Float32) -> None:
        """Trim the elements `first`, `first + 1`, ... in place."""
        from wsmerge.engine.methods.delta_loops import scale  # noqa: PLC0415 - loads numba

        if self.low and self.high:
            self._trim(self.low, self.high, kind, first, row)
            if self.ratio != 1:
                scale(kind, row, np.float32(self.ratio))
        elif not self.ratio:
            row[:] = 0

    @property
    def mask(self) -> Mask:
        """The same, as loops on bfloat16 know it."""
        low, high = self.low, self.high
        if low is None or high is None:
            return Mask("all" if self.ratio else "none")
        keys = min(low.key, _MOST), min(high.key, _MOST)
        return Mask("between", self.ratio, lambda first: (keys[0], _place(low, first), keys[1], _place(high, first)))

    @staticmethod
    def _trim(low: Cut, high: Cut, kind: int, first: int, row: Float32) -> None:
        from wsmerge.engine.methods.trimming_loops import keep_between  # noqa: PLC0415 - loads numba

        # Between two indices at which a cut ends, the range of keys is the same for all elements.
        edges = sorted({0, row.size, *(min(max(cut.index - first, 0), row.size) for cut in (low, high))})
        for start, stop in pairwise(edges):
            least, end = low.key_at(first + start), high.key_at(first + start)
            keep_between(kind, row[start:stop], np.uint32(least), np.uint32(end))


class Trim:
    """Keeps deltas by magnitude.

    Args:
        outliers: whether the largest are passed over (breadcrumbs).
        rescale: mergekit's default of the parameter of that name.
    """

    def __init__(self, *, outliers: bool = False, rescale: bool = False) -> None:
        self._outliers = outliers
        self._rescale = rescale

    def prepare(self, step: MergeStep, reader: StepReader) -> tuple[Kept, ...]:
        """What is kept of each delta; reads those that are trimmed, twice (float32 ones three times)."""
        numel = step.spec.numel
        ranges = [self._range(step, position, numel) for position in range(len(step.non_base))]
        kept = [Kept() if wanted is None else Kept(ratio=0.0) for wanted in ranges]
        trimmed = {
            position: wanted for position, wanted in enumerate(ranges) if wanted and (self._outliers or wanted[1])
        }
        if not trimmed:
            return tuple(kept)
        positions = list(trimmed)
        cuts = find_cuts(step, reader, positions, [bound for wanted in trimmed.values() for bound in wanted])
        for place, position in enumerate(positions):
            kept[position] = Kept(low=cuts[2 * place + 1], high=cuts[2 * place])
        if bool(step.parameters.get("rescale", self._rescale)):
            _match_norms(step, reader, positions, kept)
        return tuple(kept)

    def apply(self, step: MergeStep, prepared: tuple[Kept, ...], first: int, rows: Float32) -> None:
        """Trim the deltas in place."""
        kind = split(step).kind
        for row, kept in zip(rows, prepared, strict=True):
            kept.apply(kind, first, row)

    def masks(self, prepared: tuple[Kept, ...]) -> Sequence[Mask]:
        """What is kept of each delta, as loops on bfloat16 know it."""
        return [kept.mask for kept in prepared]

    def _range(self, step: MergeStep, position: int, numel: int) -> tuple[int, int] | None:
        """How many elements lie above the upper and above the lower cut; None where all are kept."""
        density = number_of(step, position, "density", 1.0)
        if density >= 1:
            return None
        if not self._outliers:
            return (0, max(1, int(density * numel))) if density > 0 and numel else (0, 0)
        target = int(density * numel)
        bottom = max(0, numel - target - int(number_of(step, position, "gamma", 0.01) * numel))
        return numel - min(max(bottom + target, bottom), numel), numel - min(bottom, numel)


def _place(cut: Cut, first: int) -> int:
    """Where the cut ends, counted from element `first`, as 32 bits hold it."""
    return min(max(cut.index - first, 0), _MOST)


def _match_norms(step: MergeStep, reader: StepReader, positions: Sequence[int], kept: list[Kept]) -> None:
    """Give each trimmed delta the ratio of its L1 norms before and after."""
    kind = split(step).kind
    before, after = [Norm() for _ in positions], [Norm() for _ in positions]
    for first, rows in delta_chunks(step, reader, positions):
        for place, position in enumerate(positions):
            before[place].add(first, rows[place])
            kept[position].apply(kind, first, rows[place])
            after[place].add(first, rows[place])
    for place, position in enumerate(positions):
        ratio = norm_ratio(kind, before[place].total, after[place].total)
        kept[position] = replace(kept[position], ratio=ratio)
