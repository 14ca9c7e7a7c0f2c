"""Small directions to fill a registry with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.deltas import Delta, DenseDelta, LowRankDelta
from wsmerge.core.digest import structure_digest
from wsmerge.core.tensors import BaseIdentity
from wsmerge.registry.artifact import About, write_direction

__all__ = ["SampleDirection", "sample_artifact", "sample_direction"]

_SHAPES: Final = {
    "model.layers.0.mlp.down_proj.weight": (16, 24),
    "model.layers.0.self_attn.q_proj.weight": (16, 16),
    "model.layers.1.self_attn.q_proj.weight": (16, 16),
}
_RANK: Final = 2
_CREATED: Final = "2026-01-01T00:00:00Z"


@dataclass(frozen=True)
class SampleDirection:
    """A `DeltaSource` over deltas in memory."""

    deltas: Mapping[str, Delta]
    label: str = "sample"
    digest: str = "0" * 64

    @property
    def base(self) -> BaseIdentity:
        """The base that the deltas are over, which is nowhere."""
        return BaseIdentity("acme/base", structure_digest(self.shapes.items()), "0" * 64, {})

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name and shape of each tensor that has a delta."""
        return {name: delta.shape for name, delta in self.deltas.items()}

    def rank(self, name: str) -> int | None:
        """Rank of the factors of the delta for `name`, None for a dense one."""
        delta = self.deltas[name]
        return delta.rank if isinstance(delta, LowRankDelta) else None

    def low_rank(self, name: str) -> LowRankDelta:
        """The factors of a low-rank delta."""
        delta = self.deltas[name]
        if not isinstance(delta, LowRankDelta):
            raise TypeError(name)
        return delta

    def read_dense(self, name: str, start: int, out: NDArray[np.float32]) -> None:
        """Fill `out` with the elements of a dense delta from element `start` on."""
        out[:] = self.deltas[name].dense().reshape(-1)[start : start + out.size]


def sample_direction(seed: int = 1, *, dense: bool = False) -> SampleDirection:
    """Three small deltas over one base; equal arguments give equal deltas, and other seeds others."""
    generator = np.random.default_rng(seed)

    def normal(*shape: int) -> NDArray[np.float32]:
        return (generator.standard_normal(shape) * 0.03).astype(np.float32)

    deltas: dict[str, Delta] = {
        name: DenseDelta(normal(*shape)) if dense else LowRankDelta(normal(shape[0], _RANK), normal(_RANK, shape[1]))
        for name, shape in _SHAPES.items()
    }
    return SampleDirection(deltas)


def sample_artifact(
    folder: Path,
    version: str = "1.0.0",
    *,
    seed: int = 1,
    dense: bool = False,
    **about: Any,  # noqa: ANN401 - each field of `About` has a type of its own
) -> Path:
    """An artifact of `sample_direction` called `formal` in the new folder `folder`; equal arguments give equal digests.

    Args:
        folder: must not exist, or be empty.
        version: of the artifact.
        seed: of the deltas.
        dense: dense deltas, where the others are low-rank.
        about: further fields of `About`.
    """
    told: dict[str, Any] = {"name": "formal", "kind": "contrastive", "created": _CREATED} | about
    write_direction(folder, sample_direction(seed, dense=dense), About(version=version, **told)).close()
    return folder
