"""Inner products of updates u with directions w, estimated from a sample of the rows of every tensor, with their variances.

Of a tensor with N runs of rows, n are drawn (`rows`); run j contributes x_j = <u_j, w_j> and y_j = <u_j, u_j>.

    <u, w>    estimated by N / n * (x_1 + ... + x_n), without bias; <u, u> by the same of y
    variance  N^2 * (1 - n / N) / n * s^2, with s^2 the variance of the drawn contributions; covariances likewise

Of factors of a high rank components are drawn too, and x_j is estimated from them; what that adds to the variance is in
`crossed`. Tensors are drawn independently, so that estimates and variances of any set of tensors are sums. Not estimated but
exact are <w, w>, everything between two factored deltas, and tensors that are read whole, by the exact way's own code. The
spread of random directions in the subspaces of factors is that of the drawn rows and components (`DrawnStack.mean_square`).
Products of a row with factors are of float32, all sums of float64.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsmerge.errors import UsageError
from wsmerge.steering.similarity.crossed import ComponentSums
from wsmerge.steering.similarity.drawn import DrawnStack, Members, in_stacks
from wsmerge.steering.similarity.factors import Subspaces, core_of_factors, inner_of_factors
from wsmerge.steering.similarity.loops import load_run_products
from wsmerge.steering.similarity.parallel import Progress, by_batch, sizes_of
from wsmerge.steering.similarity.partial import PartialVector
from wsmerge.steering.similarity.products import BLOCK_ELEMENTS, Gram, Pair, TensorProducts, Variances, check_finite
from wsmerge.steering.similarity.rows import Rows, Sample, components_of_each, cut_of, rows_of_each
from wsmerge.steering.similarity.update import RowRuns
from wsmerge.steering.similarity.vectors import Vector

__all__ = ["estimated_products"]

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

_MAX_TENSORS: Final = 16
"""Tensors of a batch: more would leave threads without work at the end."""


def estimated_products(
    vectors: Sequence[Vector],
    updates: int,
    sample: Sample,
    *,
    bands: frozenset[Pair] = frozenset(),
    threads: int | None = None,
    progress: Progress | None = None,
) -> Gram:
    """Inner products of updates with directions, and squared norms, by tensor: estimates.

    Args:
        vectors: the updates, then the directions, laid over common names.
        updates: how many of them are updates.
        sample: how much is read.
        bands: for which update and direction `Gram.spreads` is wanted.
        threads: tensors in work at once; None for the number of cores.
        progress: called with elements done and elements in all.

    Raises:
        NonFiniteError: products that are NaN or infinite, with their tensors; only of rows that are read.
        UsageError: no share, or nothing but factored deltas, of which no rows are read.
    """
    sample.check()
    _refuse_factors_alone(vectors, updates)
    work, sizes = _Work(vectors, updates, sample, bands), sizes_of(vectors)
    made = by_batch(sizes, work.batches(sizes), work.batch, threads=threads, progress=progress)
    names, found = tuple(sizes), [made[name] for name in sizes]
    values = np.stack([item.values for item in found])
    check_finite(vectors, names, values)
    variances = Variances(*(np.stack(items) for items in zip(*(item.variances for item in found), strict=True)))
    spreads = np.stack([item.spreads for item in found])
    return Gram(names, np.array(list(sizes.values()), np.float64), values, variances, spreads)


def _refuse_factors_alone(vectors: Sequence[Vector], updates: int) -> None:
    for update in vectors[:updates]:
        for direction in vectors[updates:]:
            common = update.own.keys() & direction.own.keys()
            if any(update.rank(name) is None or direction.rank(name) is None for name in common):
                return
        if any(update.rank(name) is None for name in update.own):
            return
    raise UsageError(
        "there is nothing to sample: adapters and low-rank directions are compared in their factors, exactly",
        where="sample",
        hint="leave the sample away; what it would save is not read anyway",
    )


class _Found(NamedTuple):
    """Products of one tensor, their variances, and the spreads of random directions, all as `Gram` has them."""

    values: Float64
    variances: Variances
    spreads: Float64


Ranks = tuple[tuple[int, int | None], ...]
"""The vectors that have a delta for a tensor, by their numbers, and its rank, None where it is dense."""


class _Drawn(NamedTuple):
    """What is drawn of tensors that are alike.

    Attributes:
        x: what each run contributes to <u, w>: tensors x runs x updates x vectors.
        y: the same of <u, u>: tensors x runs x updates.
        of_components: what drawing components adds to the variance of <u, w>: tensors x updates x vectors.
        spreads: of random directions in the subspaces of factors: tensors x vectors x vectors.
    """

    x: Float64
    y: Float64
    of_components: Float64
    spreads: Float64

    @classmethod
    def of(cls, runs: int, updates: int, spreads: Float64) -> _Drawn:
        """Nothing as yet but the spreads that are exact."""
        tensors, vectors = spreads.shape[:2]
        x = np.zeros((tensors, runs, updates, vectors))
        return cls(x, np.zeros((tensors, runs, updates)), np.zeros((tensors, updates, vectors)), spreads)


class _Piece(NamedTuple):
    """Drawn runs that are read at once, and where their products go.

    Attributes:
        runs: of each tensor.
        ends: the row that each run ends before, counted through all tensors.
        x: runs x updates x vectors.
        y: runs x updates.
    """

    runs: Sequence[RowRuns]
    ends: NDArray[np.int64]
    x: Float64
    y: Float64


class _Work:
    """The estimates of some tensors after others; threads share it, each with buffers of its own.

    Tensors of one shape, for which the same vectors have deltas of the same ranks, are taken together where they are small:
    what has to be done in Python is then done once for all of them.
    """

    def __init__(self, vectors: Sequence[Vector], updates: int, sample: Sample, bands: frozenset[Pair]) -> None:
        count = len(vectors)
        self._vectors = [PartialVector(vector) for vector in vectors]
        self._updates, self._count, self._sample = updates, count, sample
        pairs = {(one, other) for one in range(updates) for other in range(updates, count)}
        self._bands = bands
        self._exact = TensorProducts(vectors, frozenset(pairs | {(number, number) for number in range(count)}), bands)
        self._local = threading.local()

    def batches(self, names: Iterable[str]) -> Iterator[list[str]]:
        """`names` in batches of tensors that are alike, so large that their rows stay in a core's cache."""
        alike: dict[tuple[tuple[int, ...], Ranks], list[str]] = {}
        for name in names:
            ranks = self._ranks(name)
            alike.setdefault((self._shape(name, ranks), ranks), []).append(name)
        for (shape, _), items in alike.items():
            cut = cut_of(shape, self._sample.share)
            rows = BLOCK_ELEMENTS // max(1, cut.drawn * cut.run * cut.columns)
            size = 1 if cut.whole else max(1, min(_MAX_TENSORS, rows))
            yield from (items[first : first + size] for first in range(0, len(items), size))

    def _ranks(self, name: str) -> Ranks:
        return tuple(
            (index, item.vector.rank(name)) for index, item in enumerate(self._vectors) if name in item.vector.own
        )

    def _shape(self, name: str, ranks: Ranks) -> tuple[int, ...]:
        return self._vectors[ranks[0][0]].vector.shapes[name]

    def batch(self, names: Sequence[str]) -> list[_Found]:
        """The products of tensors that are alike."""
        ranks = self._ranks(names[0])
        rows = rows_of_each(names, self._shape(names[0], ranks), self._sample)
        if rows[0].whole:
            exact = [self._exact.tensor(name) for name in names]
            return [_Found(item[0], _no_variances(self._count, self._updates), item[1]) for item in exact]
        values = np.zeros((len(names), self._count, self._count))
        spreads = np.full_like(values, np.nan)
        for number, name in enumerate(names):
            for index, _ in ranks:
                if index >= self._updates:
                    values[number, index, index] = self._vectors[index].squared_norm(name)
            self._factored(name, {index: rank for index, rank in ranks if rank}, values[number], spreads[number])
        if not any(rank is None for _, rank in ranks):
            none = _no_variances(self._count, self._updates)
            return [_Found(item, none, spread) for item, spread in zip(values, spreads, strict=True)]
        return self._estimated(rows[0], self._draw(names, rows, ranks, spreads), ranks, values)

    def _factored(self, name: str, ranks: Mapping[int, int], values: Float64, spreads: Float64) -> None:
        """Everything between two factored deltas, exact."""
        for one in ranks:
            if one >= self._updates:
                continue
            left = self._vectors[one].factors(name)
            values[one, one] = inner_of_factors(left, left)
            for other in ranks:
                if other >= self._updates:
                    right = self._vectors[other].factors(name)
                    values[one, other] = values[other, one] = inner_of_factors(left, right)
                    if (one, other) in self._bands:
                        spreads[one, other] = Subspaces.of(right).mean_square(core_of_factors(left, right))

    def _draw(self, names: Sequence[str], rows: Sequence[Rows], ranks: Ranks, spreads: Float64) -> _Drawn:
        """Read the drawn runs of every dense delta against all that it is asked against."""
        dense = [index for index, rank in ranks if rank is None]
        met = {index: rank for index, rank in ranks if rank and self._faces(index, dense)}
        drawn = _Drawn.of(rows[0].drawn.size, self._updates, spreads)
        stacks = list(in_stacks({index: self._vectors[index] for index in met}, met, names))
        pieces = list(_pieces(names, rows, drawn))
        blocks: dict[int, Float32] = {}
        for number, members in enumerate(stacks or [None]):
            stack = self._stack(members, names, rows) if members else None
            sums: dict[int, ComponentSums] = {}
            cores: dict[int, Float64] = {}
            filled = 0
            for piece in pieces:
                if number == 0 or len(pieces) > 1:
                    blocks = {index: self._read(index, piece, rows[0].columns) for index in dense}
                if number == 0:
                    self._meet_dense(blocks, piece)
                if stack is not None:
                    self._meet_factors(blocks, stack, piece, filled, (sums, cores))
                filled += int(piece.ends[-1])
            if stack is not None:
                self._spread(stack, cores, drawn.spreads)
                for one, parts in sums.items():
                    for place, pair in self._pairs(one, stack.indices):
                        variance = parts.variance(place, drawn.x[:, :, *pair], rows[0].runs)
                        drawn.of_components[:, *pair] = variance
        return drawn

    def _spread(self, stack: DrawnStack, cores: Mapping[int, Float64], spreads: Float64) -> None:
        for one, of_tensors in cores.items():
            for place, pair in self._pairs(one, stack.indices):
                if pair in self._bands and pair[0] == one:
                    for number, of_deltas in enumerate(of_tensors):
                        spreads[number, *pair] = stack.mean_square(number, place, of_deltas[place])

    def _stack(self, members: Members, names: Sequence[str], rows: Sequence[Rows]) -> DrawnStack:
        components = components_of_each(names, members.rank, self._sample)
        return DrawnStack(members, names, rows, components, self._room)

    def _pairs(self, one: int, others: Sequence[int]) -> list[tuple[int, tuple[int, int]]]:
        """Which of `others` face vector `one`: their places, and the numbers of update and direction."""
        found = [(place, (min(one, other), max(one, other))) for place, other in enumerate(others)]
        return [(place, pair) for place, pair in found if pair[0] < self._updates <= pair[1]]

    def _faces(self, index: int, others: Sequence[int]) -> bool:
        return any((index < self._updates) != (other < self._updates) for other in others)

    def _meet_dense(self, blocks: Mapping[int, Float32], piece: _Piece) -> None:
        """Dense updates with themselves and with dense directions."""
        sums = np.empty(piece.ends.size)
        for one, block in blocks.items():
            if one >= self._updates:
                continue
            ends = piece.ends * block.shape[1]
            load_run_products()(block.reshape(-1), block.reshape(-1), ends, sums)
            piece.y[:, one] = sums
            for other, against in blocks.items():
                if other >= self._updates:
                    load_run_products()(block.reshape(-1), against.reshape(-1), ends, sums)
                    piece.x[:, one, other] = sums

    def _meet_factors(
        self,
        blocks: Mapping[int, Float32],
        stack: DrawnStack,
        piece: _Piece,
        first: int,
        results: tuple[dict[int, ComponentSums], dict[int, Float64]],
    ) -> None:
        """Dense updates with factored directions, and factored updates with dense directions."""
        sums, cores = results
        begins = np.concatenate([np.zeros(1, np.int64), piece.ends[:-1]])
        met = {one: pairs for one in blocks if (pairs := self._pairs(one, stack.indices))}
        # Of rows that training left alone all products are 0.
        met = {one: pairs for one, pairs in met.items() if one >= self._updates or piece.y[:, one].any()}
        if not met:
            return
        found, added = stack.products([blocks[one] for one in met], [runs.rows for runs in piece.runs], begins, first)
        for one, core in zip(met, added, strict=True):
            cores[one] = cores[one] + core if one in cores else core
        drawn, scale = stack.components.shape[1], stack.rank / stack.components.shape[1]
        for (one, pairs), parts in zip(met.items(), found, strict=True):
            by_run = scale * parts.sum(axis=1)
            for place, pair in pairs:
                piece.x[:, *pair] = by_run[place]
            if drawn < stack.rank:
                tensors = len(piece.runs)
                sums.setdefault(one, ComponentSums(len(stack.indices), tensors, drawn, stack.rank)).add(
                    parts.reshape(*parts.shape[:2], tensors, -1)
                )

    def _read(self, index: int, piece: _Piece, columns: int) -> Float32:
        rows = int(piece.ends[-1])
        block = self._room(f"block {index}", rows * columns).reshape(rows, columns)
        self._vectors[index].read_rows(piece.runs, block)
        return block

    def _estimated(self, rows: Rows, drawn: _Drawn, ranks: Ranks, values: Float64) -> list[_Found]:
        """Fill `values` with totals of what was drawn; what is exact has its value already, and no variance."""
        runs, count, x, y = rows.runs, rows.drawn.size, drawn.x, drawn.y
        dense, held = (np.zeros(self._count, np.bool_) for _ in range(2))
        held[[index for index, _ in ranks]] = True
        dense[[index for index, rank in ranks if rank is None]] = True
        of_update, of_pair = dense[: self._updates], np.zeros(x.shape[2:], np.bool_)
        of_pair[:, self._updates :] = held[: self._updates, None] & held[self._updates :]
        of_pair &= of_update[:, None] | dense
        with np.errstate(all="ignore"):  # what is not finite is told with its tensor, once all are done
            totals, squares = runs / count * x.sum(axis=1), runs / count * y.sum(axis=1)
            x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
            scale = runs * (runs - count) / count / (count - 1)
            inner = scale * (x * x).sum(axis=1) + drawn.of_components
            square = scale * (y * y).sum(axis=1)
            across = scale * (x * y[..., None]).sum(axis=1)
        here = values[:, : self._updates]
        here[:, of_pair] = totals[:, of_pair]
        values[:, :, : self._updates].swapaxes(1, 2)[:, of_pair] = totals[:, of_pair]
        on_diagonal = np.arange(self._updates)
        here[:, on_diagonal, on_diagonal] = np.where(of_update, squares, here[:, on_diagonal, on_diagonal])
        variances = zip(inner * of_pair, across * of_pair, square * of_update, strict=True)
        found = zip(values, variances, drawn.spreads, strict=True)
        return [_Found(item, Variances(*variance), spread) for item, variance, spread in found]

    def _room(self, what: str, count: int) -> Float32:
        """`count` elements that this thread alone uses, and that the next call of the same `what` uses again."""
        rooms: dict[str, Float32] = self._local.__dict__.setdefault("rooms", {})
        if what not in rooms or rooms[what].size < count:
            rooms[what] = np.empty(count, np.float32)
        return rooms[what][:count]


def _no_variances(count: int, updates: int) -> Variances:
    return Variances(np.zeros((updates, count)), np.zeros((updates, count)), np.zeros(updates))


def _pieces(names: Sequence[str], rows: Sequence[Rows], drawn: _Drawn) -> Iterator[_Piece]:
    """All runs of several tensors at once, or those of one tensor block by block."""
    x, y = drawn.x, drawn.y
    if len(names) > 1:
        runs = [RowRuns(name, item.starts, item.counts) for name, item in zip(names, rows, strict=True)]
        ends = np.cumsum(np.concatenate([item.counts for item in rows]))
        yield _Piece(runs, ends, x.reshape(-1, *x.shape[2:]), y.reshape(-1, *y.shape[2:]))
        return
    for first, last in rows[0].blocks(BLOCK_ELEMENTS):
        counts = rows[0].counts[first:last]
        runs = [RowRuns(names[0], rows[0].starts[first:last], counts)]
        yield _Piece(runs, np.cumsum(counts), x[0, first:last], y[0, first:last])
