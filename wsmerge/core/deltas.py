"""Weight deltas, dense or factored, with the algebra that composing them needs.

    dense      delta = values                           shape (...)
    low-rank   delta = b @ a                            b: rows x rank, a: rank x columns

The algebra is carried out in float64 and rounds once, when a delta is stored. Sums of low-rank deltas stay factored:
b1 @ a1 + b2 @ a2 = [b1 | b2] @ [a1; a2]. Inner products of factored deltas need no dense matrix:
<b1 a1, b2 a2> = trace((b1^T b2)(a2 a1^T)).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsmerge.errors import DirectionError

__all__ = ["Delta", "DenseDelta", "LowRankDelta"]

FloatArray = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class DenseDelta:
    """A delta held element by element; `values` is float32 or float64, of the tensor's shape."""

    values: FloatArray

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor that this delta is added to."""
        return self.values.shape

    def dense(self) -> NDArray[np.float64]:
        """The delta as a float64 array of `shape`."""
        return self.values.astype(np.float64)

    def scaled(self, k: float) -> DenseDelta:
        """This delta times k."""
        return DenseDelta(self.values.astype(np.float64) * k)

    def __neg__(self) -> DenseDelta:
        return DenseDelta(-self.values)

    def __add__(self, other: Delta) -> DenseDelta:
        _check_same_shape(self, other)
        return DenseDelta(self.dense() + other.dense())

    def inner(self, other: Delta) -> float:
        """Sum of the products of corresponding elements (Frobenius inner product)."""
        _check_same_shape(self, other)
        if isinstance(other, LowRankDelta):
            return other.inner(self)
        return float(np.vdot(self.dense(), other.dense()))

    def norm(self) -> float:
        """Square root of the sum of squares (Frobenius norm)."""
        return math.sqrt(self.inner(self))


@dataclass(frozen=True, slots=True, eq=False)
class LowRankDelta:
    """A delta held as two factors, `b` (rows x rank) and `a` (rank x columns), float32 or float64."""

    b: FloatArray
    a: FloatArray

    def __post_init__(self) -> None:
        if self.b.ndim != 2 or self.a.ndim != 2 or self.b.shape[1] != self.a.shape[0]:
            raise DirectionError(f"factors of shapes {self.b.shape} and {self.a.shape} do not multiply")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor that this delta is added to."""
        return (self.b.shape[0], self.a.shape[1])

    @property
    def rank(self) -> int:
        """Number of columns of `b`; the matrix rank is at most this."""
        return int(self.b.shape[1])

    def dense(self) -> NDArray[np.float64]:
        """The delta as a float64 array of `shape`."""
        return self.b.astype(np.float64) @ self.a.astype(np.float64)

    def elements(self, start: int, count: int) -> NDArray[np.float64]:
        """Elements `start` to `start + count` of the delta, row-major, in float64; only the rows they lie in are made."""
        columns = self.shape[1]
        if count == 0:
            return np.empty(0)
        first, last = start // columns, -(-(start + count) // columns)
        rows = self.b[first:last].astype(np.float64) @ self.a.astype(np.float64)
        return rows.reshape(-1)[start - first * columns :][:count]

    def scaled(self, k: float) -> LowRankDelta:
        """This delta times k."""
        return LowRankDelta(self.b.astype(np.float64) * k, self.a)

    def __neg__(self) -> LowRankDelta:
        return LowRankDelta(-self.b, self.a)

    def __add__(self, other: Delta) -> Delta:
        _check_same_shape(self, other)
        if isinstance(other, DenseDelta):
            return other + self
        return LowRankDelta(np.concatenate([self.b, other.b], axis=1), np.concatenate([self.a, other.a], axis=0))

    def transposed(self) -> LowRankDelta:
        """The transpose, for layers that store their weight as inputs x outputs."""
        return LowRankDelta(self.a.T, self.b.T)

    def inner(self, other: Delta) -> float:
        """Sum of the products of corresponding elements (Frobenius inner product)."""
        _check_same_shape(self, other)
        b, a = self.b.astype(np.float64), self.a.astype(np.float64)
        if isinstance(other, DenseDelta):
            return float(np.sum((b.T @ other.dense()) * a))
        across = (b.T @ other.b.astype(np.float64)) * (a @ other.a.astype(np.float64).T)
        return float(across.sum())

    def norm(self) -> float:
        """Square root of the sum of squares (Frobenius norm)."""
        # The Gram form can end a rounding error below zero where the true norm is zero.
        return math.sqrt(max(0.0, self.inner(self)))


Delta = DenseDelta | LowRankDelta


def _check_same_shape(left: Delta, right: Delta) -> None:
    if left.shape != right.shape:
        raise DirectionError(f"deltas of shapes {left.shape} and {right.shape} do not go together")
