"""Factored deltas of one rank above each other, their drawn components alone, and of those the drawn rows of `b`.

Tensors are of one shape. Rows X of a dense delta meet all factors that are of its tensor in one product, A @ X^T, which is
quickest this way round where the rows are few.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.ranges import RangeFile
from wsmerge.engine.gather import gather
from wsmerge.steering.similarity.factors import Subspaces, in_groups
from wsmerge.steering.similarity.partial import PartialVector
from wsmerge.steering.similarity.rows import Rows

__all__ = ["DrawnStack", "Members", "Room", "in_stacks"]

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Room = Callable[[str, int], Float32]
"""Gives so many elements under a name, for the calling thread to work in."""

_HELD_ELEMENTS: Final = 1 << 18
"""Elements of `a` that are read at once, or those of one tensor: 1 MB of float32."""

_RANGE_BYTES: Final = 1 << 12
"""Bytes that are copied in about the time that one more range takes."""


class Members(NamedTuple):
    """What a stack is made of.

    Attributes:
        rank: of each delta.
        in_files: whether the factors of all are read by ranges of files; else of none.
        vectors: by their numbers.
    """

    rank: int
    in_files: bool
    vectors: Mapping[int, PartialVector]


def in_stacks(
    vectors: Mapping[int, PartialVector], ranks: Mapping[int, int], names: Sequence[str]
) -> Iterator[Members]:
    """The vectors, in as few stacks as may be.

    Args:
        vectors: by their numbers.
        ranks: of each, the same for all of `names`.
        names: tensors.
    """
    kinds = {
        index: (rank, all(vectors[index].factors_in_file(name) is not None for name in names))
        for index, rank in ranks.items()
    }
    for rank, in_files in sorted(set(kinds.values())):
        alike = [index for index, own in kinds.items() if own == (rank, in_files)]
        for group in in_groups(alike, [rank] * len(alike)):
            yield Members(rank, in_files, {index: vectors[index] for index in group})


class DrawnStack:
    """Factors of some deltas, all of one rank: drawn rows of `b` of all tensors, and `a` as it is needed.

    Args:
        members: the deltas.
        names: the tensors, of one shape.
        rows: those that are drawn of each.
        components: those that are drawn of each, tensors x components.
        room: where factors are kept, until it is asked for the same again.

    Attributes:
        indices: the vectors' numbers.
        components: as given.
        rank: of each delta.
    """

    def __init__(
        self,
        members: Members,
        names: Sequence[str],
        rows: Sequence[Rows],
        components: NDArray[np.intp],
        room: Room,
    ) -> None:
        self.indices, self.rank, self.components = tuple(members.vectors), members.rank, components
        self._vectors, self._names, self._rows, self._room = list(members.vectors.values()), names, rows, room
        self._places = self._found() if members.in_files else None
        self._b = self._drawn_b()
        self._step = max(1, _HELD_ELEMENTS // (len(self._vectors) * components.shape[1] * rows[0].columns))
        self._held: tuple[int, Float32] | None = None
        self._grams: dict[int, Float64] = {}

    def products(
        self, blocks: Sequence[Float32], sizes: Sequence[int], begins: NDArray[np.intp], first: int = 0
    ) -> tuple[list[Float64], list[Float64]]:
        """Products of the rows of each block with the same rows of each delta.

        Args:
            blocks: drawn rows of dense deltas, as many of each, x columns.
            sizes: how many of them each tensor has.
            begins: the first row of each run.
            first: the first drawn row that the blocks have, where they do not have all.

        Returns:
            For each block the products summed by run, deltas x components x runs; and what its rows add to the cores
            b^T X a^T, tensors x deltas x components x components.
        """
        count, columns, taken = len(self._vectors), self._rows[0].columns, self.components.shape[1]
        weighted = [np.empty((count, taken, block.shape[0])) for block in blocks]
        cores = [np.empty((len(sizes), count, taken, taken)) for _ in blocks]
        begin = 0
        with np.errstate(all="ignore"):  # what is not finite is told with its tensor, once all are done
            for number, size in enumerate(sizes):
                a, end = self._a(number).reshape(count * taken, columns), begin + size
                b = self._b[:, first + begin : first + end].transpose(0, 2, 1)
                if number not in self._grams:
                    wide = a.reshape(count, taken, columns).astype(np.float64)
                    self._grams[number] = wide @ wide.swapaxes(1, 2)
                product = self._room("product", count * taken * size).reshape(count * taken, size)
                for block, here, core in zip(blocks, weighted, cores, strict=True):
                    np.matmul(a, block[begin:end].T, out=product)
                    np.multiply(product.reshape(count, taken, size), b, out=here[:, :, begin:end], dtype=np.float64)
                    core[number] = b @ product.reshape(count, taken, size).swapaxes(1, 2)
                begin = end
            return [np.add.reduceat(here, begins, axis=2) for here in weighted], cores

    def mean_square(self, number: int, delta: int, core: Float64) -> float:
        """`Subspaces.mean_square` of what is drawn of one delta for one tensor, whose products were taken before.

        The subspaces are those of the drawn rows and components. With few rows that of `b` is all there is of them, and what
        is left is the part of the row space of `a`.
        """
        begin = sum(item.indices.size for item in self._rows[:number])
        b = self._b[delta, begin : begin + self._rows[number].indices.size].astype(np.float64)
        with np.errstate(all="ignore"):  # as above
            return Subspaces.of_grams(b.T @ b, self._grams[number][delta]).mean_square(core)

    def _found(self) -> _Places:
        """Where all factors lie."""
        found = [[vector.factors_in_file(name) for vector in self._vectors] for name in self._names]
        places = [[place for place in items if place is not None] for items in found]
        files = list(dict.fromkeys(file for items in places for item in items for file in (item.a_file, item.b_file)))
        numbers = {file: number for number, file in enumerate(files)}
        rows = [
            [(numbers[item.a_file], item.a_start, numbers[item.b_file], item.b_start) for item in items]
            for items in places
        ]
        return _Places(files, np.array(rows))

    def _a(self, number: int) -> Float32:
        """Deltas x components x columns: `a` of one tensor; it is read with those of the tensors after it."""
        if self._held is None or not 0 <= number - self._held[0] < len(self._held[1]):
            some = slice(number, number + self._step)
            components, columns = self.components[some], self._rows[0].columns
            shape = (len(components), len(self._vectors), components.shape[1], columns)
            out = self._room("a", math.prod(shape)).reshape(shape)
            if self._places is None:
                for place, name in enumerate(self._names[some]):
                    for delta, vector in enumerate(self._vectors):
                        out[place, delta] = vector.factors(name).a[components[place]]
            else:
                at, width = self._places.at[some], 4 * columns
                # Of all components one range is enough.
                each = components.shape[1] if components.shape[1] < self.rank else 1
                which = np.repeat(at[..., 0].reshape(-1), each)
                starts = at[..., 1, None] + components[:, None, :each] * width
                nbytes = np.full(which.size, out.nbytes // which.size)
                gather(self._places.files, which, starts.reshape(-1), nbytes, out.reshape(-1).view(np.uint8))
            self._held = number, out
        begin, held = self._held
        found: Float32 = held[number - begin]
        return found

    def _drawn_b(self) -> Float32:
        """Deltas x drawn rows of all tensors x components."""
        rows, count, rank = self._rows, len(self._vectors), self.rank
        sizes = [item.indices.size for item in rows]
        places = np.concatenate([[0], np.cumsum(sizes)]).tolist()
        if self._places is None:
            out = self._room("b", count * sum(sizes) * self.components.shape[1]).reshape(count, sum(sizes), -1)
            for delta, vector in enumerate(self._vectors):
                for number, (name, item) in enumerate(zip(self._names, rows, strict=True)):
                    b = vector.factors(name).b[item.indices]
                    out[delta, places[number] : places[number + 1]] = b[:, self.components[number]]
            return out
        # Where a run of rows is short, all rows are read as quickly, in one range.
        all_rows = 4 * rank * rows[0].rows <= _RANGE_BYTES * rows[0].drawn.size
        starts, counts = (
            (np.zeros((len(rows), 1), np.int64), np.full((len(rows), 1), rows[0].rows))
            if all_rows
            else (np.stack([item.starts for item in rows]), np.stack([item.counts for item in rows]))
        )
        out = self._room("b", count * int(counts.sum()) * rank).reshape(count, -1, rank)
        of_b = self._places.at[:, :, 2:].swapaxes(0, 1)
        width, shape = 4 * rank, (count, *starts.shape)  # deltas x tensors x runs
        gather(
            self._places.files,
            np.broadcast_to(of_b[..., :1], shape).reshape(-1),
            (of_b[..., 1:] + starts * width).reshape(-1),
            np.broadcast_to(counts * width, shape).reshape(-1),
            out.reshape(-1).view(np.uint8),
        )
        if all_rows:
            out = out[:, np.concatenate([place * item.rows + item.indices for place, item in enumerate(rows)])]
        if self.components.shape[1] == rank:
            return out
        return np.take_along_axis(out, np.repeat(self.components, sizes, axis=0)[None], axis=2)


class _Places(NamedTuple):
    """Where factors lie.

    Attributes:
        files: all files.
        at: tensors x deltas x (number of the file of `a`, its first byte there, the same of `b`).
    """

    files: Sequence[RangeFile]
    at: NDArray[np.int64]
