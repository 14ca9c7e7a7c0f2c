"""Inner products of updates u with directions w, estimated from a sample of the rows of every tensor, with their variances.

Of a tensor with N runs of rows, n are drawn (`rows`); run j contributes x_j = <u_j, w_j> and y_j = <u_j, u_j>.

    <u, w>    estimated by N / n * (x_1 + ... + x_n), without bias; <u, u> by the same of y
    variance  N^2 * (1 - n / N) / n * s^2, with s^2 the variance of the drawn contributions; covariances likewise

Tensors are drawn independently, so that estimates and variances of any set of tensors are sums. Not estimated but exact are
<w, w>, everything between two factored deltas, and tensors that are read whole, by the exact way's own code. Products of a
row with factors are of float32, all sums of float64.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.deltas import LowRankDelta
from wsmerge.engine.kernels import load_kernels
from wsmerge.errors import UsageError
from wsmerge.steering.similarity.factors import DrawnStack, in_groups, inner_of_factors
from wsmerge.steering.similarity.parallel import Progress, by_tensor
from wsmerge.steering.similarity.partial import PartialVector
from wsmerge.steering.similarity.products import BLOCK_ELEMENTS, Gram, TensorProducts, Variances, check_finite
from wsmerge.steering.similarity.rows import Rows, Sample, rows_of
from wsmerge.steering.similarity.vectors import Vector

__all__ = ["estimated_products"]

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


def estimated_products(
    vectors: Sequence[Vector],
    updates: int,
    sample: Sample,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Gram:
    """Inner products of updates with directions, and squared norms, by tensor: estimates.

    Args:
        vectors: the updates, then the directions, laid over common names.
        updates: how many of them are updates.
        sample: how much is read.
        threads: tensors in work at once; None for the number of cores.
        progress: called with elements done and elements in all.

    Raises:
        NonFiniteError: products that are NaN or infinite, with their tensors; only of rows that are read.
        UsageError: no share, or nothing but factored deltas, of which no rows are read.
    """
    sample.check()
    _refuse_factors_alone(vectors, updates)
    work = _Work(vectors, updates, sample)
    names, numels, found = by_tensor(vectors, work.tensor, threads=threads, progress=progress)
    values = np.stack([item.values for item in found])
    check_finite(vectors, names, values)
    variances = Variances(*(np.stack(items) for items in zip(*(item.variances for item in found), strict=True)))
    return Gram(names, numels, values, variances)


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
    """Products of one tensor, and their variances."""

    values: Float64
    variances: Variances


@dataclass(frozen=True, slots=True, eq=False)
class _Drawn:
    """What the drawn runs of one tensor contribute.

    Attributes:
        rows: which they are.
        x: runs x updates x directions.
        y: runs x updates.
    """

    rows: Rows
    x: Float64
    y: Float64


class _Work:
    """The estimates of one tensor after another; threads share it, each with buffers of its own."""

    def __init__(self, vectors: Sequence[Vector], updates: int, sample: Sample) -> None:
        count = len(vectors)
        self._vectors = [PartialVector(vector) for vector in vectors]
        self._updates, self._count, self._sample = updates, count, sample
        pairs = {(one, other) for one in range(updates) for other in range(updates, count)}
        self._exact = TensorProducts(vectors, frozenset(pairs | {(number, number) for number in range(count)}))
        self._local = threading.local()
        self._dot = load_kernels().dot

    def tensor(self, name: str) -> _Found:
        """The products of tensor `name`."""
        having = [index for index, item in enumerate(self._vectors) if name in item.vector.own]
        ranks = {index: self._vectors[index].vector.rank(name) for index in having}
        rows = rows_of(name, self._vectors[having[0]].vector.shapes[name], self._sample)
        if rows.whole:
            return _Found(self._exact.tensor(name), _no_variances(self._count, self._updates))
        values = np.zeros((self._count, self._count))
        for index in having:
            if index >= self._updates:
                values[index, index] = self._vectors[index].squared_norm(name)
        self._factored(name, {index: rank for index, rank in ranks.items() if rank}, values)
        if not any(rank is None for rank in ranks.values()):
            return _Found(values, _no_variances(self._count, self._updates))
        return self._estimated(self._draw(name, rows, ranks), ranks, values)

    def _factored(self, name: str, ranks: Mapping[int, int], values: Float64) -> None:
        """Everything between two factored deltas, exact."""
        for one in ranks:
            if one >= self._updates:
                continue
            left = self._whole(one, name)
            values[one, one] = inner_of_factors(left, left)
            for other in ranks:
                if other >= self._updates:
                    values[one, other] = values[other, one] = inner_of_factors(left, self._whole(other, name))

    def _whole(self, index: int, name: str) -> LowRankDelta:
        vector = self._vectors[index].vector
        return vector.source.low_rank(vector.own[name])

    def _draw(self, name: str, rows: Rows, ranks: Mapping[int, int | None]) -> _Drawn:
        """Read the drawn runs of every dense delta against all that it is asked against."""
        dense = [index for index, rank in ranks.items() if rank is None]
        met = {index: rank for index, rank in ranks.items() if rank and self._faces(index, dense)}
        drawn = _Drawn(
            rows, np.zeros((rows.drawn.size, self._updates, self._count)), np.zeros((rows.drawn.size, self._updates))
        )
        for number, group in enumerate(list(in_groups(met, list(met.values()))) or [[]]):
            stack = self._stack(name, rows, {index: met[index] for index in group}) if group else None
            filled = 0
            for first, last in rows.blocks(BLOCK_ELEMENTS):
                spans = rows.spans(first, last)
                counts = [count for _, count in spans]
                blocks = {index: self._read(index, name, spans, (sum(counts), rows.columns)) for index in dense}
                piece = _Drawn(rows, drawn.x[first:last], drawn.y[first:last])
                if number == 0:
                    self._meet_dense(blocks, counts, piece)
                if stack is not None:
                    self._meet_factors(blocks, stack.part(filled, filled + sum(counts)), counts, piece)
                filled += sum(counts)
        return drawn

    def _faces(self, index: int, others: Sequence[int]) -> bool:
        return any((index < self._updates) != (other < self._updates) for other in others)

    def _stack(self, name: str, rows: Rows, ranks: Mapping[int, int]) -> DrawnStack:
        total = sum(ranks.values())
        a = self._room("a", total * rows.columns).reshape(total, rows.columns)
        b = self._room("b", total * rows.indices.size).reshape(total, rows.indices.size)
        starts, last = [], 0
        for index, rank in ranks.items():
            starts.append(last)
            first, last = last, last + rank
            self._vectors[index].read_factors(name, rows, a[first:last], b[first:last], self._room)
        return DrawnStack(a, b, tuple(starts), tuple(ranks))

    def _meet_dense(self, blocks: Mapping[int, Float32], counts: Sequence[int], piece: _Drawn) -> None:
        """Dense updates with themselves and with dense directions."""
        last = 0
        for run, count in enumerate(counts):
            first, last = last, last + count
            for one, block in blocks.items():
                if one >= self._updates:
                    continue
                own = block[first:last].reshape(-1)
                piece.y[run, one] = self._dot(own, own)
                for other in blocks:
                    if other >= self._updates:
                        piece.x[run, one, other] = self._dot(own, blocks[other][first:last].reshape(-1))

    def _meet_factors(
        self, blocks: Mapping[int, Float32], stack: DrawnStack, counts: Sequence[int], piece: _Drawn
    ) -> None:
        """Dense updates with factored directions, and factored updates with dense directions."""
        begins = np.cumsum([0, *counts[:-1]])
        for one, block in blocks.items():
            is_update = one < self._updates
            wanted = [place for place, other in enumerate(stack.indices) if (other < self._updates) != is_update]
            if not wanted or (is_update and not piece.y[:, one].any()):  # of rows that training left alone all are 0
                continue
            sums = stack.inner(block, self._room("product", block.shape[0] * stack.a.shape[0]), begins)
            for place in wanted:
                pair = (one, stack.indices[place]) if is_update else (stack.indices[place], one)
                piece.x[:, pair[0], pair[1]] = sums[place]

    def _read(self, index: int, name: str, spans: list[tuple[int, int]], shape: tuple[int, int]) -> Float32:
        block = self._room(f"block {index}", shape[0] * shape[1]).reshape(shape)
        self._vectors[index].read_rows(name, spans, block)
        return block

    def _estimated(self, drawn: _Drawn, ranks: Mapping[int, int | None], values: Float64) -> _Found:
        """Fill `values` with totals of what was drawn; what is exact has its value already, and no variance."""
        runs, count = drawn.rows.runs, drawn.rows.drawn.size
        dense, held = (np.zeros(self._count, np.bool_) for _ in range(2))
        held[list(ranks)] = True
        dense[[index for index, rank in ranks.items() if rank is None]] = True
        of_update, of_pair = dense[: self._updates], np.zeros_like(drawn.x[0], np.bool_)
        of_pair[:, self._updates :] = held[: self._updates, None] & held[self._updates :]
        of_pair &= of_update[:, None] | dense
        with np.errstate(all="ignore"):  # what is not finite is told with its tensor, once all are done
            totals, squares = runs / count * drawn.x.sum(axis=0), runs / count * drawn.y.sum(axis=0)
            x, y = drawn.x - drawn.x.mean(axis=0), drawn.y - drawn.y.mean(axis=0)
            scale = runs * (runs - count) / count / (count - 1)
            inner, square = scale * (x * x).sum(axis=0), scale * (y * y).sum(axis=0)
            across = scale * (x * y[:, :, None]).sum(axis=0)
        here = values[: self._updates]
        here[of_pair] = totals[of_pair]
        values[:, : self._updates].T[of_pair] = totals[of_pair]
        here[np.diag_indices(self._updates)] = np.where(of_update, squares, here.diagonal())
        return _Found(values, Variances(inner * of_pair, across * of_pair, square * of_update))

    def _room(self, what: str, count: int) -> Float32:
        """`count` elements that this thread alone uses, and that the next call of the same `what` uses again."""
        rooms: dict[str, Float32] = self._local.__dict__.setdefault("rooms", {})
        if what not in rooms or rooms[what].size < count:
            rooms[what] = np.empty(count, np.float32)
        return rooms[what][:count]


def _no_variances(count: int, updates: int) -> Variances:
    return Variances(np.zeros((updates, count)), np.zeros((updates, count)), np.zeros(updates))
