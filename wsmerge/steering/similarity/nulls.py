"""Random directions with the spectrum of a given one: what cosines an update has with directions that mean nothing.

    low-rank    U S V^T with the singular values S of the delta, and random orthogonal U and V: of all there are, or of those
                in the subspaces of the delta's own factors, so that only the core between them is drawn
    dense       normal values scaled to the norm of the delta, which has the same mean and variance of cosines

Adapters of one model live in subspaces that they share: their first `a` where seeds are equal, and what their inputs and
gradients have in common. Directions of no preference miss those, and give far smaller cosines than any adapter does.

Tensors, shapes and norms are those of the direction. Factors are drawn by seed, number of the draw, direction and tensor, so
that neither the order of reading nor the number of threads matters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from hashlib import sha256
from threading import Lock
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.deltas import LowRankDelta
from wsmerge.core.reading import delta_values
from wsmerge.core.tensors import BaseIdentity, DeltaSource
from wsmerge.steering.similarity.factors import Subspaces

__all__ = ["NullDirection"]

_CELL: Final = 1 << 16
"""Elements of a dense delta that are drawn at once, from a generator of their own."""

Float64 = NDArray[np.float64]


class NullDirection:
    """A random direction with the spectrum of `source`, as a `DeltaSource`; nothing is drawn until it is read.

    Args:
        source: the direction whose spectrum it has.
        seed: of all draws.
        draw: which of the draws.
        keep_subspaces: draw only the core between the subspaces of the factors.

    Attributes:
        source: as given.
    """

    def __init__(self, source: DeltaSource, *, seed: int, draw: int, keep_subspaces: bool = False) -> None:
        self.source = source
        self._keeps = keep_subspaces
        self._key = (seed, draw)
        self._scales: dict[str, float] = {}
        self._lock = Lock()
        self.label = f"{source.label} (random {draw})"
        self.digest = ""

    @property
    def base(self) -> BaseIdentity:
        """The base of the direction."""
        return self.source.base

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Names and shapes of the direction."""
        return self.source.shapes

    def rank(self, name: str) -> int | None:
        """Rank of the factors, at most the smaller side of the tensor; None for a dense delta."""
        rank = self.source.rank(name)
        return None if rank is None else min(rank, *self.shapes[name])

    def low_rank(self, name: str) -> LowRankDelta:
        """Random orthogonal factors with the singular values of the direction's delta, float32."""
        delta, generator = self.source.low_rank(name), self._generator(name)
        subspaces, rank = Subspaces.of(delta), min(delta.rank, *self.shapes[name])
        values = np.linalg.svd(subspaces.core, compute_uv=False)
        kept = values.size
        b, a = (np.zeros(shape, np.float32) for shape in ((delta.shape[0], rank), (rank, delta.shape[1])))
        if self._keeps:
            left, right = (_orthogonal(generator, kept, kept) for _ in range(2))
            left, right = delta.b @ (subspaces.left @ left), delta.a.T @ (subspaces.right @ right)
        else:
            left, right = (_orthogonal(generator, side, kept) for side in self.shapes[name])
        b[:, :kept], a[:kept] = left * values, right.T
        return LowRankDelta(b, a)

    def read_dense(self, name: str, start: int, out: NDArray[np.float32]) -> None:
        """Fill `out` with elements from `start` on."""
        scale = self._scale(name)
        done = 0
        while done < out.size:
            cell, skipped = divmod(start + done, _CELL)
            values = self._generator(name, cell).standard_normal(_CELL)[skipped : skipped + out.size - done]
            out[done : done + values.size] = scale * values
            done += values.size

    def _scale(self, name: str) -> float:
        """What standard normal values are multiplied by for the norm of the direction's delta."""
        with self._lock:
            if name not in self._scales:
                wanted, drawn = 0.0, 0.0
                numel = math.prod(self.shapes[name])
                for cell, start in enumerate(range(0, numel, _CELL)):
                    count = min(_CELL, numel - start)
                    own = delta_values(self.source, name, start, count)
                    values = self._generator(name, cell).standard_normal(_CELL)[:count]
                    wanted += float(own @ own)
                    drawn += float(values @ values)
                self._scales[name] = math.sqrt(wanted / drawn) if drawn else 0.0
            return self._scales[name]

    def _generator(self, name: str, cell: int = 0) -> np.random.Generator:
        told = f"{self.source.label} {self.source.digest} {name}"  # directions alike must not get draws alike
        word = int.from_bytes(sha256(told.encode()).digest()[:8], "little")
        return np.random.Generator(np.random.Philox(np.random.SeedSequence([*self._key, word, cell])))


def _orthogonal(generator: np.random.Generator, rows: int, columns: int) -> Float64:
    """Orthonormal columns, uniformly distributed."""
    q, r = np.linalg.qr(generator.standard_normal((rows, columns)))
    found: Float64 = q * np.where(r.diagonal() < 0, -1.0, 1.0)  # without the signs q is not uniform
    return found
