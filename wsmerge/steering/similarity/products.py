"""Inner products of many vectors in one pass: every dense block is read once, and meets all that it is asked against.

    low-rank x low-rank    from the factors, in float64
    low-rank x dense       blocks of rows of the dense one against the stacked factors: float32 products, float64 sums
    dense x dense          blocks of elements, float64 sums of their products

Tensors are shared out among threads, each with one thread of the linear algebra library: blocks stay in a core's cache,
and a tensor's sums do not depend on how many threads there are. Memory is some blocks and the factors of one tensor a
thread, whatever the size of the model.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.deltas import LowRankDelta
from wsmerge.engine.kernels import load_kernels
from wsmerge.errors import NonFiniteError, Problems
from wsmerge.steering.similarity.factors import Stack, Subspaces, core_of_factors, in_groups, inner_of_factors
from wsmerge.steering.similarity.parallel import Progress, by_tensor
from wsmerge.steering.similarity.vectors import Vector

__all__ = ["BLOCK_ELEMENTS", "Gram", "Pair", "TensorProducts", "Variances", "check_finite", "inner_products"]

BLOCK_ELEMENTS: Final = 1 << 19
"""Elements of a dense delta that are worked on at once: 2 MB of float32."""

Pair = tuple[int, int]
"""Two vectors by their numbers, the lower one first."""

Float64 = NDArray[np.float64]


class Variances(NamedTuple):
    """How much estimated products of updates u with directions w vary from one sample to another.

    Attributes:
        inner: of <u, w>: (tensors x) updates x vectors; of one tensor an estimate can be below 0.
        inner_with_square: covariance of <u, w> and <u, u>, likewise.
        square: of <u, u>: (tensors x) updates.
    """

    inner: Float64
    inner_with_square: Float64
    square: Float64


@dataclass(frozen=True, slots=True, eq=False)
class Gram:
    """Inner products by tensor.

    Attributes:
        names: the tensors that any vector has.
        numels: elements of each, float64.
        values: tensors x vectors x vectors, symmetric; 0 where a vector has no delta, and for pairs not asked for.
        variances: of estimates; None where all products are exact.
        spreads: tensors x vectors x vectors; [t, i, j] is the variance of <X, w> for X vector i and w a random direction of
            norm 1 in tensor t that is like vector j: in the subspaces of its factors, or of no preference where it is dense.
            None for no preference anywhere.
    """

    names: tuple[str, ...]
    numels: Float64
    values: Float64
    variances: Variances | None = None
    spreads: Float64 | None = None


def inner_products(
    vectors: Sequence[Vector],
    pairs: Collection[Pair],
    *,
    bands: Collection[Pair] = (),
    threads: int | None = None,
    progress: Progress | None = None,
) -> Gram:
    """Inner products of `vectors`, by tensor.

    Args:
        vectors: laid over common names.
        pairs: which products are wanted, `(i, i)` for a squared norm.
        bands: for which of them, in either order, `Gram.spreads` is wanted: `(X, w)`.
        threads: tensors in work at once; None for the number of cores.
        progress: called with elements done and elements in all.

    Raises:
        NonFiniteError: products that are NaN or infinite, with the tensors that hold such values.
    """
    work = TensorProducts(vectors, frozenset(pairs), frozenset(bands))
    names, numels, found = by_tensor(vectors, work.tensor, threads=threads, progress=progress)
    both = np.stack(found) if found else np.zeros((0, 2, len(vectors), len(vectors)))
    values, spreads = both[:, 0], both[:, 1]
    check_finite(vectors, names, values)
    return Gram(names, numels, values, spreads=spreads)


def check_finite(vectors: Sequence[Vector], names: Sequence[str], values: Float64) -> None:
    """Refuse products (tensors x vectors x vectors) that are NaN or infinite.

    Raises:
        NonFiniteError: with the tensors and vectors that hold such values.
    """
    problems = Problems()
    for number in np.flatnonzero(~np.isfinite(values).all(axis=(1, 2))).tolist():
        wrong = ~np.isfinite(values[number])
        # A product with a bad vector is bad too: those on the diagonal are at fault, where they were asked for.
        at_fault = wrong.diagonal() if wrong.diagonal().any() else wrong.any(axis=0)
        problems.add(
            f"{names[number]}: {', '.join(vectors[index].label for index in np.flatnonzero(at_fault).tolist())}"
        )
    problems.raise_if_any(
        NonFiniteError, "values that are NaN or infinite", hint="see where training or extraction went wrong"
    )


class TensorProducts:
    """The products of one tensor after another; threads share it, each with buffers of its own."""

    def __init__(self, vectors: Sequence[Vector], pairs: frozenset[Pair], bands: frozenset[Pair] = frozenset()) -> None:
        self._vectors = vectors
        self._pairs, self._bands = pairs, bands
        self._local = threading.local()
        self._dot = load_kernels().dot

    def tensor(self, name: str) -> Float64:
        """Two of vectors x vectors: the products of tensor `name`, and the spreads, NaN where `w` has no subspaces."""
        gram = np.zeros((len(self._vectors), len(self._vectors)))
        spreads = np.full_like(gram, np.nan)
        having = [index for index, vector in enumerate(self._vectors) if name in vector.own]
        ranks = {index: self._vectors[index].rank(name) for index in having}
        factored = {index: rank for index, rank in ranks.items() if rank}
        dense = [index for index in having if ranks[index] is None]
        met = [index for index in factored if any(self._wants(index, other) for other in dense)]
        first = True
        for group in in_groups(met, [factored[index] for index in met]):
            held = {index: self._factors(index, name) for index in group}
            self._blocks(name, dense, held, (gram, spreads), with_dense=first)
            first = False
        if first and dense:
            self._blocks(name, dense, {}, (gram, spreads), with_dense=True)
        self._factored(name, list(factored), gram, spreads)
        return np.stack([np.where(gram == 0, gram.T, gram), spreads])

    def _wants(self, one: int, other: int) -> bool:
        return (min(one, other), max(one, other)) in self._pairs

    def _factors(self, index: int, name: str) -> LowRankDelta:
        vector = self._vectors[index]
        return vector.source.low_rank(vector.own[name])

    def _factored(self, name: str, factored: Sequence[int], gram: Float64, spreads: Float64) -> None:
        """Products of factored deltas with each other; two are held at a time."""
        for place, one in enumerate(factored):
            others = [other for other in factored[place:] if self._wants(one, other)]
            if not others:
                continue
            left = self._factors(one, name)
            for other in others:
                right = left if other == one else self._factors(other, name)
                gram[one, other] = inner_of_factors(left, right)
                for (x, of_x), (w, of_w) in (((one, left), (other, right)), ((other, right), (one, left))):
                    if (x, w) in self._bands:
                        spreads[x, w] = Subspaces.of(of_w).mean_square(core_of_factors(of_x, of_w))

    def _blocks(
        self,
        name: str,
        dense: Sequence[int],
        held: Mapping[int, LowRankDelta],
        results: tuple[Float64, Float64],
        *,
        with_dense: bool,
    ) -> None:
        """Products of dense deltas with the factored ones in `held`, and with each other where `with_dense`; spreads too."""
        gram, spreads = results
        stack = Stack.of(list(held.values())) if held else None
        against = list(held)
        banded = {one: [place for place, w in enumerate(against) if (one, w) in self._bands] for one in dense}
        cores = {(one, against[place]): np.zeros((1, 1)) for one in dense for place in banded[one]}
        for first, shape in _cut(self._vectors[dense[0]].shapes[name], by_rows=stack is not None):
            count = shape[0] * shape[1]
            values = [self._read(index, name, first * shape[1], count, place) for place, index in enumerate(dense)]
            for place, one in enumerate(dense):
                square = self._dot(values[place], values[place])
                if not math.isfinite(square):
                    gram[one, one] = square  # told by its tensor once all are done
                if square == 0 or not math.isfinite(square):  # of a tensor that training left alone, all products are 0
                    continue
                if with_dense:
                    self._add_dense(dense[place:], values[place:], square, gram)
                if stack is not None and any(self._wants(one, other) for other in against):
                    room = self._room("product", shape[0] * stack.columns)
                    sums, added = stack.inner(values[place].reshape(shape), first, room, banded[one])
                    gram[one, against] += sums
                    for where, core in zip(banded[one], added, strict=True):
                        cores[one, against[where]] = cores[one, against[where]] + core
        subspaces = {w: Subspaces.of(held[w]) for w in {w for _, w in cores}}
        for (one, w), core in cores.items():
            spreads[one, w] = subspaces[w].mean_square(np.broadcast_to(core, [held[w].rank] * 2))

    def _add_dense(
        self, dense: Sequence[int], values: Sequence[NDArray[np.float32]], square: float, gram: Float64
    ) -> None:
        """Add the products of the first of `dense` with itself and with those after it."""
        one = dense[0]
        if self._wants(one, one):
            gram[one, one] += square
        for other, block in zip(dense[1:], values[1:], strict=True):
            if self._wants(one, other):
                gram[one, other] += self._dot(values[0], block)

    def _read(self, index: int, name: str, start: int, count: int, place: int) -> NDArray[np.float32]:
        vector = self._vectors[index]
        block = self._room(f"block {place}", count)
        vector.source.read_dense(vector.own[name], start, block)
        return block

    def _room(self, what: str, count: int) -> NDArray[np.float32]:
        """`count` elements that this thread alone uses, and that the next call of the same `what` uses again."""
        rooms: dict[str, NDArray[np.float32]] = self._local.__dict__.setdefault("rooms", {})
        if what not in rooms or rooms[what].size < count:
            rooms[what] = np.empty(count, np.float32)
        return rooms[what][:count]


def _cut(shape: tuple[int, ...], *, by_rows: bool) -> Iterator[tuple[int, tuple[int, int]]]:
    """The first row, and rows x columns, of each block of a tensor; columns are 1 where rows do not matter."""
    columns = shape[1] if by_rows else 1
    rows = shape[0] if by_rows else math.prod(shape)
    step = max(1, BLOCK_ELEMENTS // max(1, columns))
    for first in range(0, rows, step):
        yield first, (min(step, rows - first), columns)
