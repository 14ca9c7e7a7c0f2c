"""A direction in memory, for tests that need no artifact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.deltas import Delta, DenseDelta, LowRankDelta
from wsmerge.core.digest import structure_digest
from wsmerge.core.tensors import BaseIdentity


@dataclass
class MemoryDirection:
    """Implements `DeltaSource` over a dictionary of deltas."""

    deltas: Mapping[str, Delta]
    base: BaseIdentity
    label: str = "memory"
    digest: str = field(default="0" * 64)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: delta.shape for name, delta in self.deltas.items()}

    def rank(self, name: str) -> int | None:
        delta = self.deltas[name]
        return delta.rank if isinstance(delta, LowRankDelta) else None

    def low_rank(self, name: str) -> LowRankDelta:
        delta = self.deltas[name]
        assert isinstance(delta, LowRankDelta)
        return delta

    def read_dense(self, name: str, start: int, out: NDArray[np.float32]) -> None:
        delta = self.deltas[name]
        assert isinstance(delta, DenseDelta)
        out[:] = delta.values.reshape(-1)[start : start + out.size]


def identity(
    shapes: Mapping[str, tuple[int, ...]], *, tied: Mapping[str, str] | None = None, weights: str = "0" * 64
) -> BaseIdentity:
    """The identity of a base of `shapes`."""
    return BaseIdentity("acme/base", structure_digest(shapes.items()), weights, dict(tied or {}))


def random_direction(
    shapes: Mapping[str, tuple[int, ...]],
    *,
    rank: int | None = 4,
    seed: int = 1,
    scale: float = 0.03,
    label: str = "memory",
) -> MemoryDirection:
    """Random float32 deltas for every matrix of `shapes`: low-rank, or dense where `rank` is None."""
    generator = np.random.default_rng(seed)

    def normal(*shape: int) -> NDArray[np.float32]:
        return (generator.standard_normal(shape) * scale).astype(np.float32)

    deltas: dict[str, Delta] = {
        name: DenseDelta(normal(*shape))
        if rank is None
        else LowRankDelta(normal(shape[0], rank), normal(rank, shape[1]))
        for name, shape in shapes.items()
        if len(shape) == 2
    }
    return MemoryDirection(deltas, identity(shapes), label=label)
