"""Inner products of factored deltas without a dense matrix.

    <b1 a1, b2 a2> = trace((b1^T b2)(a2 a1^T)) = sum of (b1^T b2) * (a1 a2^T), element by element

A dense block of rows X meets many factored deltas at once: their `a` stand above each other, and one product X @ A^T
serves them all; its columns are then weighted with the rows of their `b` and summed in float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.deltas import LowRankDelta

__all__ = ["MAX_COLUMNS", "Stack", "in_groups", "inner_of_factors"]

MAX_COLUMNS: Final = 1024
"""Ranks of the deltas that are held at once, summed: bounds the memory, and the product is no slower in parts."""

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
_Factors = tuple[NDArray[Any], NDArray[Any]]


def inner_of_factors(one: LowRankDelta, other: LowRankDelta) -> float:
    """Inner product of two factored deltas, in float64."""
    b, a = _float64(one)
    other_b, other_a = (b, a) if one is other else _float64(other)
    with np.errstate(all="ignore"):  # as below
        return float(np.vdot(b.T @ other_b, a @ other_a.T))


def _float64(delta: LowRankDelta) -> _Factors:
    return delta.b.astype(np.float64), delta.a.astype(np.float64)


def in_groups(indices: Iterable[int], ranks: Sequence[int]) -> Iterator[list[int]]:
    """`indices` in groups whose `ranks` sum to at most `MAX_COLUMNS`; one that exceeds it stands alone."""
    group: list[int] = []
    columns = 0
    for index, rank in zip(indices, ranks, strict=True):
        if group and columns + rank > MAX_COLUMNS:
            yield group
            group, columns = [], 0
        group.append(index)
        columns += rank
    if group:
        yield group


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """Factored deltas of one tensor side by side.

    Attributes:
        a: sum of ranks x columns.
        b: rows x sum of ranks.
        starts: the first column of `b` that belongs to each delta.
    """

    a: Float32
    b: Float32
    starts: NDArray[np.intp]

    @classmethod
    def of(cls, deltas: Sequence[LowRankDelta]) -> Stack:
        """The stack of `deltas`, each of rank 1 or more, all of one shape."""
        starts = np.cumsum([0, *(delta.rank for delta in deltas[:-1])])
        a = np.concatenate([delta.a for delta in deltas], dtype=np.float32)
        return cls(a, np.concatenate([delta.b for delta in deltas], axis=1, dtype=np.float32), starts)

    @property
    def columns(self) -> int:
        """Sum of the ranks."""
        return int(self.a.shape[0])

    def inner(self, block: Float32, first: int, room: Float32) -> Float64:
        """Inner product of each delta with rows `first` and on of a dense one, given as `block` (rows x columns).

        Products of the block with `a` are of float32, in blocks of rows; everything after them is of float64.

        Args:
            block: rows of the dense delta.
            first: the row of the tensor that `block` begins with.
            room: at least rows * `columns` elements to work in.
        """
        rows = block.shape[0]
        product = room[: rows * self.columns].reshape(rows, self.columns)
        with np.errstate(all="ignore"):  # what is not finite is told with its tensor, once all are done
            np.matmul(block, self.a.T, out=product)
            by_column = np.einsum("ij,ij->j", product, self.b[first : first + rows], dtype=np.float64)
            sums: Float64 = np.add.reduceat(by_column, self.starts)
        return sums
