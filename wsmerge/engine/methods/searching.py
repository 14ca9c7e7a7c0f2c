"""The search for cuts in the order of magnitudes, without sorting.

    order    elements by falling magnitude; of equal ones the lower index first
    cut      after the first m elements: a magnitude T and an index c. Above the cut are the elements whose magnitude is
             above T, and those with magnitude T and an index below c

T comes from counting the bit patterns of magnitudes (float32 ones in two passes of 16 bits), c from a last scan, which is
left out where all elements of magnitude T lie on one side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wsmerge.engine.methods.deltas import delta_chunks, split
from wsmerge.engine.methods.generated import COUNT_TABLES, count_loop, delta_keys_loop
from wsmerge.engine.methods.kinds import EXACT
from wsmerge.engine.methods.step import BitsSource, MergeStep, StepReader

__all__ = ["Cut", "Search", "find_cuts"]

Float32 = NDArray[np.float32]
Counts = NDArray[np.int64]
Bits16 = NDArray[np.uint16]

_NO_TERMS = np.zeros(0, np.float32)
_NO_NUMBERS = np.zeros(0, np.int64)

_NOTHING: Final = 1 << 31  # above every key


@dataclass(frozen=True, slots=True)
class Cut:
    """A cut in the order of magnitudes: `key` is the bit pattern of T, `index` is c."""

    key: int
    index: int

    def key_at(self, element: int) -> int:
        """The least key that lies above the cut at this element."""
        return self.key if element < self.index else self.key + 1


class Search:
    """Looks for the cut after the first `bound` of the elements of one delta."""

    def __init__(self, place: int, bound: int, numel: int) -> None:
        self.place = place
        self._bound = bound
        self._numel = numel
        self.key = _NOTHING if bound <= 0 else 0
        self.rest = 0  # how many of the elements that have the key lie above the cut; 0 where all or none do
        self._index = 0 if bound <= 0 else numel
        self._equal = 0

    @property
    def within(self) -> bool:
        """Whether the cut lies within the delta."""
        return 0 < self._bound < self._numel

    @property
    def cut(self) -> Cut:
        """The cut that was found."""
        return Cut(self.key, self._index)

    def descend(self, table: Counts) -> None:
        """Find the key, or its next 16 bits, from the counts of what is left."""
        from_top = np.cumsum(table[::-1])
        wanted = self.rest or self._bound
        steps = int(np.searchsorted(from_top, wanted))
        key = table.size - 1 - steps
        self.key = self.key << 16 | key
        self.rest = wanted - int(from_top[steps] - table[key])
        self._index = self._numel
        self._equal = int(table[key])

    def settle(self, kind: int, first: int, row: Float32) -> None:
        """Count the equals of a chunk, and note the index after the last one that lies above the cut."""
        from wsmerge.engine.methods.trimming_loops import count_equal, nth_equal  # noqa: PLC0415 - loads numba

        if self.rest == 0:
            return
        equal = count_equal(kind, row, np.uint32(self.key))
        if equal >= self.rest:
            self._index = first + nth_equal(kind, row, np.uint32(self.key), self.rest) + 1
        self.rest = max(self.rest - equal, 0)

    def settle_keys(self, first: int, keys: Bits16) -> None:
        """As `settle`, of a window's keys."""
        if self.rest == 0:
            return
        equal = int(np.count_nonzero(keys == self.key))
        if equal >= self.rest:
            self._index = first + int(np.flatnonzero(keys == self.key)[self.rest - 1]) + 1
        self.rest = max(self.rest - equal, 0)

    @property
    def undecided(self) -> bool:
        """Whether some of the equals lie above the cut and others below."""
        return self.within and self.rest < self._equal


def find_cuts(step: MergeStep, reader: StepReader, positions: Sequence[int], bounds: Sequence[int]) -> list[Cut]:
    """The cuts after the first `bounds[2p]` and the first `bounds[2p + 1]` elements of delta `positions[p]`."""
    if _is_of_bits(step, reader):
        return _cuts_of_bits(step, reader, positions, bounds)
    kind = split(step).kind
    searches = [Search(i // 2, bound, step.spec.numel) for i, bound in enumerate(bounds)]
    within = [search for search in searches if search.within]
    if within:
        tables = _high_tables(step, reader, positions)
        for search in within:
            search.descend(tables[search.place])
        if kind == EXACT:
            _descend_low(step, reader, positions, within)
    undecided = [search for search in within if search.undecided]
    if undecided:
        for first, rows in delta_chunks(step, reader, positions):
            for search in undecided:
                search.settle(kind, first, rows[search.place])
            if not any(search.rest for search in undecided):
                break
    return [search.cut for search in searches]


def _is_of_bits(step: MergeStep, reader: StepReader) -> bool:
    """Whether the deltas can be read as they are stored."""
    return isinstance(reader, BitsSource) and not any(split(step).direct) and reader.bit_windows() is not None


def _cuts_of_bits(step: MergeStep, reader: StepReader, positions: Sequence[int], bounds: Sequence[int]) -> list[Cut]:
    """As `find_cuts`, on bfloat16 as it is stored."""
    searches = [Search(positions[i // 2], bound, step.spec.numel) for i, bound in enumerate(bounds)]
    within = [search for search in searches if search.within]
    if within:
        count = count_loop()
        tables = np.zeros((len(step.non_base), COUNT_TABLES, 1 << 16), np.int64)
        for _first, keys in _key_windows(step, reader):
            for position in positions:
                count(keys[position : position + 1], _NO_TERMS, _NO_NUMBERS, tables[position])
        for search in within:
            search.descend(tables[search.place].sum(axis=0))
    undecided = [search for search in within if search.undecided]
    if undecided:
        for first, keys in _key_windows(step, reader):
            for search in undecided:
                search.settle_keys(first, keys[search.place])
            if not any(search.rest for search in undecided):
                break
    return [search.cut for search in searches]


def _key_windows(step: MergeStep, reader: StepReader) -> Iterator[tuple[int, Bits16]]:
    """For each window the keys of all deltas, deltas x elements."""
    windows = reader.bit_windows() if isinstance(reader, BitsSource) else None
    loop = delta_keys_loop(len(step.inputs), split(step).base)
    held = np.empty(0, np.uint16)
    for first, bits in windows or ():
        size = bits.shape[1]
        if held.size < len(step.non_base) * size:
            held = np.empty(len(step.non_base) * size, np.uint16)
        keys = held[: len(step.non_base) * size].reshape(-1, size)
        loop(bits, _NO_TERMS, np.array([size], np.int64), keys)
        yield first, keys


def _high_tables(step: MergeStep, reader: StepReader, positions: Sequence[int]) -> Counts:
    from wsmerge.engine.methods.trimming_loops import TABLE, count_high  # noqa: PLC0415 - loads numba

    kind = split(step).kind
    tables = np.zeros((len(positions), 2, TABLE), np.int64)
    for _first, rows in delta_chunks(step, reader, positions):
        for row, table in zip(rows, tables, strict=True):
            count_high(kind, row, table)
    summed: Counts = tables.sum(axis=1)
    return summed


def _descend_low(step: MergeStep, reader: StepReader, positions: Sequence[int], searches: Sequence[Search]) -> None:
    from wsmerge.engine.methods.trimming_loops import TABLE, count_low  # noqa: PLC0415 - loads numba

    tables = np.zeros((len(searches), TABLE), np.int64)
    for _first, rows in delta_chunks(step, reader, positions):
        for search, table in zip(searches, tables, strict=True):
            count_low(rows[search.place], search.key, table)
    for search, table in zip(searches, tables, strict=True):
        search.descend(table)
