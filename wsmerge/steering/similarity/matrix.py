"""The matrix of cosines among directions and updates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.tensors import DeltaSource
from wsmerge.steering.similarity.factors import SharedFactors, shared_factors
from wsmerge.steering.similarity.groups import Alignment, Groups, Scopes, scopes_of
from wsmerge.steering.similarity.products import inner_products
from wsmerge.steering.similarity.vectors import lay_together

__all__ = ["SimilarityMatrix", "similarity_matrix"]

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SimilarityMatrix:
    """Every pair of directions and updates.

    Attributes:
        labels: their names, in order.
        pairs: the comparison of the first with the second; its null draws directions like the second.
        shared: directions whose factors have so much in common that their cosine says little of their behaviours.
    """

    labels: tuple[str, ...]
    pairs: Mapping[tuple[int, int], Scopes]
    shared: tuple[SharedFactors, ...] = ()

    @property
    def scopes(self) -> tuple[str, ...]:
        """What `cosines` can be asked for: `all`, `without embeddings`, `layer ...`, `module ...`."""
        return tuple(self.pairs[0, 0].named())

    def cosines(self, scope: str = "all") -> Float64:
        """Labels x labels; NaN where one of the two is zero in `scope`."""
        return self._matrix(scope, lambda found: found.cosine)

    def z(self, scope: str = "all", *, isotropic: bool = False) -> Float64:
        """Cosines in standard deviations of the null, labels x labels; random directions stand for the row's.

        They keep the subspaces of its factors, or have no preference where `isotropic`. NaN where there is no null.
        """
        return self._matrix(scope, lambda found: found.isotropic_z if isotropic else found.z)

    def inner(self, scope: str = "all") -> Float64:
        """Inner products, labels x labels."""
        return self._matrix(scope, lambda found: found.inner)

    def norms(self, scope: str = "all") -> Float64:
        """Norm of each, over `scope`."""
        return np.array([self.pairs[i, i].named()[scope].update_norm for i in range(len(self.labels))])

    def to_dict(self) -> dict[str, Any]:
        """Cosines and norms of every scope as JSON values; null where a cosine is not defined."""
        return {
            "labels": list(self.labels),
            "scopes": {
                scope: {
                    "norms": self.norms(scope).tolist(),
                    "cosines": _listed(self.cosines(scope)),
                    "z": _listed(self.z(scope)),
                    "isotropic_z": _listed(self.z(scope, isotropic=True)),
                }
                for scope in self.scopes
            },
            "shared_factors": [pair._asdict() for pair in self.shared],
        }

    def _matrix(self, scope: str, figure: Callable[[Alignment], float | None]) -> Float64:
        size = len(self.labels)
        values = np.full((size, size), np.nan)
        for (one, other), scopes in self.pairs.items():
            value = figure(scopes.named()[scope])
            values[other, one] = np.nan if value is None else value
        return values


def _listed(values: Float64) -> list[list[float | None]]:
    return [[None if np.isnan(value) else value for value in row] for row in values.tolist()]


def similarity_matrix(
    sources: Sequence[DeltaSource],
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SimilarityMatrix:
    """Compare every one of `sources` with every other.

    Raises:
        BaseMismatchError: sources that do not fit each other.
        NonFiniteError: deltas that are NaN or infinite.
    """
    vectors = lay_together(sources)
    ordered = [(one, other) for one in range(len(vectors)) for other in range(len(vectors))]
    pairs = [(one, other) for one, other in ordered if one <= other]
    gram = inner_products(vectors, pairs, bands=ordered, threads=threads, progress=progress)
    groups = Groups(gram.names)
    found = {pair: scopes_of(gram, groups, *pair) for pair in ordered}
    return SimilarityMatrix(tuple(vector.label for vector in vectors), found, shared_factors(sources))
