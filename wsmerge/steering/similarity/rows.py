"""Which rows of a tensor a sample reads: runs of neighbouring rows, drawn without replacement, tensor by tensor.

    rows          of a tensor of shape (..., columns): all of its other dimensions, flattened
    run           up to `MAX_RUN_ROWS` neighbouring rows, more where they are short; fewer where the share would draw less
                  than `MIN_RUNS` runs
    drawn         the runs whose words are lowest; run j's is SplitMix64 of j, its state begun with SHA-256(seed, name)

Nothing is kept between calls: the same share, seed, name and shape give the same rows at every checkpoint. Tensors of one
dimension, and those of few runs, are read whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsmerge.errors import UsageError

__all__ = ["MAX_RUN_ROWS", "MIN_RUNS", "RUN_ELEMENTS", "Rows", "Sample", "rows_of"]

MAX_RUN_ROWS: Final = 8
"""Rows of a run: neighbours are one read, and rows of one attention head or expert still spread over many runs."""

RUN_ELEMENTS: Final = 1 << 11
"""Elements that a run has at least: of narrow tensors more rows make a run."""

MIN_RUNS: Final = 4
"""Runs that are drawn at least: with fewer the spread among them says little."""

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)


class Sample(NamedTuple):
    """How much of every tensor is read.

    Attributes:
        share: of the rows, above 0 and at most 1.
        seed: of the draw.
    """

    share: float
    seed: int = 0

    def check(self) -> None:
        """Refuse a share that is none.

        Raises:
            UsageError: it is not above 0 and at most 1.
        """
        if not 0 < self.share <= 1:
            raise UsageError(f"a sample of {self.share:g} of the rows", hint="give a share above 0 and at most 1")


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of one tensor that are read.

    Attributes:
        rows: of the tensor.
        columns: of the tensor.
        run: rows of a run; the last one of the tensor can be shorter.
        runs: how many the tensor has.
        drawn: numbers of those that are read, ascending.
    """

    rows: int
    columns: int
    run: int
    runs: int
    drawn: NDArray[np.intp]

    @property
    def whole(self) -> bool:
        """Whether all of the tensor is read."""
        return self.drawn.size == self.runs

    @cached_property
    def indices(self) -> NDArray[np.intp]:
        """Numbers of all rows that are read, ascending."""
        found = (self.drawn[:, None] * self.run + np.arange(self.run)).reshape(-1)
        return found[: np.searchsorted(found, self.rows)]

    def spans(self, first: int, last: int) -> list[tuple[int, int]]:
        """First row and number of rows of the drawn runs `first` to `last`."""
        starts = (self.drawn[first:last] * self.run).tolist()
        return [(start, min(self.run, self.rows - start)) for start in starts]

    def blocks(self, elements: int) -> Iterator[tuple[int, int]]:
        """The drawn runs in pieces `(first, last)` of at most `elements` elements, one run at least."""
        step = max(1, elements // (self.run * self.columns))
        for first in range(0, self.drawn.size, step):
            yield first, min(first + step, self.drawn.size)


def rows_of(name: str, shape: tuple[int, ...], sample: Sample) -> Rows:
    """The rows of tensor `name` that `sample` reads."""
    if len(shape) < 2 or not math.prod(shape):
        return Rows(1, math.prod(shape), 1, 1, np.arange(1))
    rows, columns = math.prod(shape[:-1]), shape[-1]
    run = max(1, min(MAX_RUN_ROWS, int(sample.share * rows / MIN_RUNS)), -(-RUN_ELEMENTS // columns))
    runs = -(-rows // run)
    count = max(MIN_RUNS, round(sample.share * runs))
    if count >= runs:
        return Rows(rows, columns, run, runs, np.arange(runs))
    words = _words(name, sample.seed, runs)
    return Rows(rows, columns, run, runs, np.sort(np.argpartition(words, count)[:count]))


def _words(name: str, seed: int, count: int) -> NDArray[np.uint64]:
    key = np.frombuffer(sha256(f"rows {seed} {name}".encode()).digest()[:8], "<u8")
    words: NDArray[np.uint64] = key + _GOLDEN * np.arange(1, count + 1, dtype=np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        words ^= words >> np.uint64(shift)
        words *= np.uint64(factor)
    words ^= words >> np.uint64(31)
    return words
