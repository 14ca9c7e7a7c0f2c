"""What of a tensor a sample reads: runs of neighbouring rows, and components of factors, drawn without replacement.

    rows          of a tensor of shape (..., columns): all of its other dimensions, flattened
    run           up to `MAX_RUN_ROWS` neighbouring rows, more where they are short; fewer where the share would draw less
                  than `MIN_RUNS` runs
    drawn         the runs whose words are lowest; run j's is SplitMix64 of j, its state begun with SHA-256(seed, name)
    components    of a delta b @ a of rank r the products b[:, c] a[c]: of more than `MIN_COMPONENTS` the share's square root
                  is drawn in the same way, but no fewer, the same ones of all deltas of that rank

Nothing is kept between calls: the same share, seed, name and shape give the same rows at every checkpoint. Tensors of one
dimension, and those of few runs, are read whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsmerge.errors import UsageError

__all__ = [
    "MAX_RUN_ROWS",
    "MIN_COMPONENTS",
    "MIN_RUNS",
    "RUN_ELEMENTS",
    "Cut",
    "Rows",
    "Sample",
    "components_of_each",
    "cut_of",
    "rows_of",
    "rows_of_each",
]

MAX_RUN_ROWS: Final = 8
"""Rows of a run: neighbours are one read, and rows of one attention head or expert still spread over many runs."""

RUN_ELEMENTS: Final = 1 << 11
"""Elements that a run has at least: of narrow tensors more rows make a run."""

MIN_RUNS: Final = 4
"""Runs that are drawn at least: with fewer the spread among them says little."""

MIN_COMPONENTS: Final = 16
"""Components of a factored delta that are drawn at least. `a` is all that does not shrink with the rows: of ten directions of
rank 64 it is half as long as the checkpoint."""

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
    def starts(self) -> NDArray[np.int64]:
        """The first row of each run that is read."""
        return self.drawn.astype(np.int64) * self.run

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Rows of each run that is read."""
        return np.minimum(self.run, self.rows - self.starts)

    @cached_property
    def indices(self) -> NDArray[np.intp]:
        """Numbers of all rows that are read, ascending."""
        found = (self.drawn[:, None] * self.run + np.arange(self.run)).reshape(-1)
        return found[: np.searchsorted(found, self.rows)]

    def blocks(self, elements: int) -> Iterator[tuple[int, int]]:
        """The drawn runs in pieces `(first, last)` of at most `elements` elements, one run at least."""
        step = max(1, elements // (self.run * self.columns))
        for first in range(0, self.drawn.size, step):
            yield first, min(first + step, self.drawn.size)


class Cut(NamedTuple):
    """A tensor cut into runs of rows; of two tensors of one shape it is the same.

    Attributes:
        rows: of the tensor.
        columns: of the tensor.
        run: rows of a run.
        runs: how many there are.
        drawn: how many are read.
    """

    rows: int
    columns: int
    run: int
    runs: int
    drawn: int

    @property
    def whole(self) -> bool:
        """Whether all of the tensor is read."""
        return self.drawn == self.runs


def cut_of(shape: tuple[int, ...], share: float) -> Cut:
    """How a tensor of `shape` is cut, where `share` of its rows is to be read."""
    if len(shape) < 2 or not math.prod(shape):
        return Cut(1, math.prod(shape), 1, 1, 1)
    rows, columns = math.prod(shape[:-1]), shape[-1]
    run = max(1, min(MAX_RUN_ROWS, int(share * rows / MIN_RUNS)), -(-RUN_ELEMENTS // columns))
    runs = -(-rows // run)
    return Cut(rows, columns, run, runs, min(runs, max(MIN_RUNS, round(share * runs))))


def rows_of(name: str, shape: tuple[int, ...], sample: Sample) -> Rows:
    """The rows of tensor `name` that `sample` reads."""
    return rows_of_each([name], shape, sample)[0]


def rows_of_each(names: Sequence[str], shape: tuple[int, ...], sample: Sample) -> list[Rows]:
    """The rows that `sample` reads of each tensor in `names`, all of one shape."""
    cut = cut_of(shape, sample.share)
    rows, columns, run, runs, count = cut
    if cut.whole:
        return [Rows(rows, columns, run, runs, np.arange(runs)) for _ in names]
    return [Rows(rows, columns, run, runs, _lowest(words, count)) for words in _words(names, sample.seed, runs)]


def components_of_each(names: Sequence[str], rank: int, sample: Sample) -> NDArray[np.intp]:
    """Tensors x components: those that `sample` reads of factors of `rank`, ascending."""
    count = max(MIN_COMPONENTS, math.ceil(rank * math.sqrt(sample.share)))
    if count >= rank:
        return np.tile(np.arange(rank), (len(names), 1))
    words = _words([f"components {name}" for name in names], sample.seed, rank)
    return np.stack([_lowest(own, count) for own in words])


def _lowest(words: NDArray[np.uint64], count: int) -> NDArray[np.intp]:
    """Where the `count` lowest words are, ascending."""
    # Words are spread evenly, so about `count` lie below this; ordering those alone takes a third of the time.
    limit = int((count + 4 * math.sqrt(count) + 4) / words.size * 2**64)
    near = np.flatnonzero(words < np.uint64(limit)) if limit < 2**64 else np.arange(words.size)
    if near.size < count:
        near = np.arange(words.size)
    if near.size > count:
        near = near[np.argpartition(words[near], count)[:count]]
    return np.sort(near)


def _words(names: Sequence[str], seed: int, count: int) -> NDArray[np.uint64]:
    """Tensors x runs."""
    digests = b"".join(sha256(f"rows {seed} {name}".encode()).digest()[:8] for name in names)
    keys = np.frombuffer(digests, "<u8").astype(np.uint64)
    words: NDArray[np.uint64] = keys[:, None] + _GOLDEN * np.arange(1, count + 1, dtype=np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        words ^= words >> np.uint64(shift)
        words *= np.uint64(factor)
    words ^= words >> np.uint64(31)
    return words
