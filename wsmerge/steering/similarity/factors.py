"""Inner products of factored deltas without a dense matrix.

    <b1 a1, b2 a2> = trace((b1^T b2)(a2 a1^T)) = sum of (b1^T b2) * (a1 a2^T), element by element

A dense block of rows X meets many factored deltas at once: their `a` stand above each other, and one product X @ A^T
serves them all; its columns are then weighted with the rows of their `b` and summed in float64.

A delta b a of rank r lies between two subspaces: U of its columns and V of its rows, both orthonormal. Of a random direction
U C V^T with a core C of no preference and the same norm, <X, U C V^T> has the variance

    |b a|^2 * |U^T X V|^2 / r^2

which is what `Subspaces` is for: U^T X V follows from the core b^T X a^T, of the size of the ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.deltas import LowRankDelta
from wsmerge.core.tensors import DeltaSource

__all__ = [
    "MAX_COLUMNS",
    "SHARED",
    "SharedFactors",
    "Stack",
    "Subspaces",
    "core_of_factors",
    "in_groups",
    "inner_of_factors",
    "shared_factors",
]

MAX_COLUMNS: Final = 1024
"""Ranks of the deltas that are held at once, summed: bounds the memory, and the product is no slower in parts."""

_SMALLEST: Final = 1e-11
"""Of an eigenvalue of a Gram matrix, relative to the largest: float32 factors that depend on each other leave about 1e-14."""

_WELL_CONDITIONED: Final = 1e-3
_OVERLAP_TENSORS: Final = 16

SHARED: Final = 0.5
"""Factors `a` with so much in common are told: what both directions put into them looks like a likeness of behaviours."""

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
_Factors = tuple[NDArray[Any], NDArray[Any]]


def inner_of_factors(one: LowRankDelta, other: LowRankDelta) -> float:
    """Inner product of two factored deltas, in float64."""
    b, a = _float64(one)
    other_b, other_a = (b, a) if one is other else _float64(other)
    with np.errstate(all="ignore"):  # as below
        return float(np.vdot(b.T @ other_b, a @ other_a.T))


def core_of_factors(other: LowRankDelta, delta: LowRankDelta) -> Float64:
    """b^T X a^T for X = `other`, with b and a the factors of `delta`."""
    other_b, other_a = _float64(other)
    b, a = _float64(delta)
    with np.errstate(all="ignore"):  # as above
        core: Float64 = (b.T @ other_b) @ (other_a @ a.T)
    return core


class Subspaces(NamedTuple):
    """The subspaces of a factored delta: b @ left and (right.T @ a).T have orthonormal columns.

    Attributes:
        left: rank of the factors x rank of the delta.
        right: the same.
        core: the delta between them, (b @ left)^T b a (right.T @ a)^T.
    """

    left: Float64
    right: Float64
    core: Float64

    @classmethod
    def of(cls, delta: LowRankDelta) -> Subspaces:
        """The subspaces of `delta`; none of a factor that is zero or not finite."""
        b, a = _float64(delta)
        with np.errstate(all="ignore"):  # as above
            return cls.of_grams(b.T @ b, a @ a.T)

    @classmethod
    def of_grams(cls, of_b: Float64, of_a: Float64) -> Subspaces:
        """The subspaces from b^T b and a a^T."""
        left, right = _orthonormalising(of_b), _orthonormalising(of_a)
        core = (left.T @ of_b) @ (right.T @ of_a).T
        if left.shape[1] == right.shape[1] == len(of_b):
            return cls(left, right, core)
        if not core.size:
            return cls(left[:, :0], right[:, :0], np.zeros((0, 0)))
        u, values, v = np.linalg.svd(core, full_matrices=False)
        kept = values > math.sqrt(_SMALLEST) * values[0]
        return cls(left @ u[:, kept], right @ v[kept].T, np.diag(values[kept]))

    def mean_square(self, core: Float64) -> float:
        """|U^T X V|^2 over the number of its elements, from the core b^T X a^T; 0 where there is no subspace."""
        inside = self.left.T @ core @ self.right
        return float(np.vdot(inside, inside)) / inside.size if inside.size else 0.0


def _orthonormalising(gram: Float64) -> Float64:
    """T with T^T gram T = 1, over the directions in which `gram` is not zero but for rounding."""
    if not np.isfinite(gram).all():
        return np.zeros((len(gram), 0))
    try:
        lower = np.linalg.cholesky(gram)
    except np.linalg.LinAlgError:
        pass
    else:
        diagonal = lower.diagonal()
        if diagonal.min() > _WELL_CONDITIONED * diagonal.max():  # the usual case, and far quicker
            inverse: Float64 = np.linalg.inv(lower).T
            return inverse
    values, vectors = np.linalg.eigh(gram)
    kept = values > _SMALLEST * max(values.max(initial=0.0), 0.0)
    found: Float64 = vectors[:, kept] / np.sqrt(values[kept])
    return found


class SharedFactors(NamedTuple):
    """Two directions whose factors `a` have much in common, as of trainings that began with the same seed.

    Attributes:
        one: a direction's name.
        other: the other's.
        overlap: how much of `a`'s squared norm lies in the row space of the other's `a`, above what does by chance, as a mean
            over tensors and both orders: 1 where they are the same, about 0 where they are independent.
    """

    one: str
    other: str
    overlap: float


def shared_factors(sources: Sequence[DeltaSource]) -> tuple[SharedFactors, ...]:
    """The pairs of `sources` whose overlap is `SHARED` or more, judged by some of their common tensors."""
    known: dict[tuple[int, str], tuple[Float64, Float64]] = {}

    def rows(number: int, name: str) -> tuple[Float64, Float64]:
        """`a` and an orthonormal basis of its row space."""
        if (number, name) not in known:
            a = sources[number].low_rank(name).a.astype(np.float64)
            known[number, name] = a, _orthonormalising(a @ a.T).T @ a
        return known[number, name]

    found = []
    for first, second in combinations(range(len(sources)), 2):
        one, other = sources[first], sources[second]
        common = [name for name in one.shapes if name in other.shapes and one.rank(name) and other.rank(name)]
        shares = []
        for name in common[:: max(1, len(common) // _OVERLAP_TENSORS)]:
            sides = rows(first, name), rows(second, name)
            for (a, _), (_, basis) in (sides, sides[::-1]):
                norm, chance = float(np.vdot(a, a)), len(basis) / a.shape[1]
                if norm and chance < 1:  # the row space of as many rows as columns is everything there is
                    shares.append((float(np.sum((a @ basis.T) ** 2)) / norm - chance) / (1 - chance))
        if shares and float(np.mean(shares)) >= SHARED:
            found.append(SharedFactors(one.label, other.label, float(np.mean(shares))))
    return tuple(found)


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

    def inner(
        self, block: Float32, first: int, room: Float32, cores: Sequence[int] = ()
    ) -> tuple[Float64, list[Float64]]:
        """Inner product of each delta with rows `first` and on of a dense one, given as `block` (rows x columns).

        Products of the block with `a` are of float32, in blocks of rows; everything after them is of float64.

        Args:
            block: rows of the dense delta.
            first: the row of the tensor that `block` begins with.
            room: at least rows * `columns` elements to work in.
            cores: deltas whose cores b^T X a^T are wanted too, by their places.

        Returns:
            The inner products, and what these rows add to the cores.
        """
        rows = block.shape[0]
        product = room[: rows * self.columns].reshape(rows, self.columns)
        with np.errstate(all="ignore"):  # what is not finite is told with its tensor, once all are done
            np.matmul(block, self.a.T, out=product)
            b = self.b[first : first + rows]
            by_column = np.einsum("ij,ij->j", product, b, dtype=np.float64)
            sums: Float64 = np.add.reduceat(by_column, self.starts)
            ends = [*self.starts[1:], self.columns]
            spans = [slice(self.starts[place], ends[place]) for place in cores]
            added = [(b[:, span].T @ product[:, span]).astype(np.float64) for span in spans]
        return sums, added
