"""Keeping deltas at random, each element with the same probability (dare_linear, dare_ties).

    masked = delta * mask,  kept = masked * sum|delta| / sum|masked|

The mask comes from our own generator (see `random`); its statistics are those of mergekit, its bits are not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsmerge.engine.methods.deltas import delta_chunks, number_of, split
from wsmerge.engine.methods.generated import Mask, norms_loop
from wsmerge.engine.methods.kinds import EXACT, KIND_BF16, narrowed
from wsmerge.engine.methods.machine import LANES
from wsmerge.engine.methods.norms import Norm, norm_ratio
from wsmerge.engine.methods.random import keep_limit, stream_key
from wsmerge.engine.methods.step import BitsSource, MergeStep, StepReader
from wsmerge.errors import Problems, RecipeError

__all__ = ["Drop", "work_kind"]

Float32 = NDArray[np.float32]
Bits16 = NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class _Drawn:
    """One delta's mask: its stream, its limit, and the ratio by which the kept elements are multiplied."""

    key: np.uint64
    limit: np.uint32
    ratio: float = 1.0

    def mask(self, first: int, row: Float32) -> None:
        from wsmerge.engine.methods.random_loops import keep_drawn  # noqa: PLC0415 - loads numba

        keep_drawn(self.key, self.limit, first, row)

    @property
    def bits_mask(self) -> Mask:
        """The same, as loops on bfloat16 know it."""
        key, limit = signed(self.key), int(self.limit)
        return Mask("drawn", self.ratio, lambda first: (key, limit, first, 0))


class Drop:
    """Keeps deltas at random; `density` is the probability, 1 and above keep all."""

    def prepare(self, step: MergeStep, reader: StepReader) -> tuple[_Drawn | None, ...]:
        """Each delta's mask, None where all is kept; reads the deltas once if they are rescaled."""
        _check(step)
        drawn: list[_Drawn | None] = [_drawn(step, position) for position in range(len(step.non_base))]
        if bool(step.parameters.get("rescale", True)):
            _match_norms(step, reader, drawn)
        return tuple(drawn)

    def apply(self, step: MergeStep, prepared: tuple[_Drawn | None, ...], first: int, rows: Float32) -> None:
        """Mask and rescale the deltas in place."""
        from wsmerge.engine.methods.delta_loops import scale  # noqa: PLC0415 - loads numba

        kind = split(step).kind
        for row, drawn in zip(rows, prepared, strict=True):
            if drawn:
                drawn.mask(first, row)
                if drawn.ratio != 1:
                    scale(kind, row, np.float32(drawn.ratio))

    def masks(self, prepared: tuple[_Drawn | None, ...]) -> Sequence[Mask]:
        """What is kept of each delta, as loops on bfloat16 know it."""
        return [Mask("all") if drawn is None else drawn.bits_mask for drawn in prepared]


def signed(word: np.uint64) -> int:
    """The 64 bits of `word` as a signed number."""
    return int(np.uint64(word).view(np.int64))


def work_kind(step: MergeStep) -> int:
    """The dtype in which mergekit masks: bfloat16 or, for all others, float32."""
    return KIND_BF16 if split(step).kind == KIND_BF16 else EXACT


def _check(step: MergeStep) -> None:
    problems = Problems()
    for position, item in enumerate(step.non_base):
        density = number_of(step, position, "density", 1.0)
        if not density >= 0:
            problems.add(f"{item.tensor.label}: density {density:g} is no probability")
    problems.raise_if_any(
        RecipeError,
        "a density that is below 0 or no number",
        where=step.spec.name,
        hint="give densities between 0 and 1 (1 keeps all)",
    )


def _drawn(step: MergeStep, position: int) -> _Drawn | None:
    density = number_of(step, position, "density", 1.0)
    if density >= 1:
        return None
    rate = density if step.precise else narrowed(work_kind(step), density)
    key = stream_key(step.seed, step.spec.name, position)
    return _Drawn(np.uint64(key), np.uint32(keep_limit(rate)))


def _match_norms(step: MergeStep, reader: StepReader, drawn: list[_Drawn | None]) -> None:
    masked = {position: item for position, item in enumerate(drawn) if item}
    if not masked:
        return
    windows = reader.bit_windows() if isinstance(reader, BitsSource) and not any(split(step).direct) else None
    if windows is not None:
        _match_norms_of_bits(step, windows, drawn)
        return
    before, after = [Norm() for _ in masked], [Norm() for _ in masked]
    for first, rows in delta_chunks(step, reader, list(masked)):
        for place, item in enumerate(masked.values()):
            before[place].add(first, rows[place])
            item.mask(first, rows[place])
            after[place].add(first, rows[place])
    kind = split(step).kind
    for place, (position, item) in enumerate(masked.items()):
        drawn[position] = _Drawn(item.key, item.limit, norm_ratio(kind, before[place].total, after[place].total))


def _match_norms_of_bits(step: MergeStep, windows: Iterator[tuple[int, Bits16]], drawn: list[_Drawn | None]) -> None:
    """As `_match_norms`, on bfloat16 as it is stored; the lanes are those of `Norm`."""
    deltas = split(step)
    loop = norms_loop(len(step.inputs), deltas.base, tuple(item is not None for item in drawn))
    masks = [Mask("all") if item is None else item.bits_mask for item in drawn]
    lanes = np.zeros((len(drawn), 2, LANES))
    for first, bits in windows:
        loop(bits, np.zeros(0, np.float32), np.array([mask.numbers(first) for mask in masks], np.int64), lanes)
    for position, item in enumerate(drawn):
        if item is not None:
            before, after = (float(row.sum()) for row in lanes[position])
            drawn[position] = _Drawn(item.key, item.limit, norm_ratio(deltas.kind, before, after))
