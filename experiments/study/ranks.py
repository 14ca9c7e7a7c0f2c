"""Directions cut to a lower rank: of each tensor the first singular values, which is the nearest delta of that rank."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

import wsmerge
from wsmerge.core.deltas import LowRankDelta
from wsmerge.core.tensors import BaseIdentity
from wsmerge.errors import DirectionError
from wsmerge.registry import About, Direction, ParentRecord, Registry
from wsmerge.registry.artifact import write_direction

__all__ = ["Cut", "cut_name", "publish_cut"]


class Cut:
    """A factored direction cut to a rank, as a `DeltaSource`.

    Args:
        source: low-rank in every tensor.
        most: the largest rank that is left.
    """

    def __init__(self, source: Direction, most: int) -> None:
        self._source = source
        self._most = most
        self.label = f"{source.label} (rank {most})"
        self.digest = ""

    @property
    def base(self) -> BaseIdentity:
        """That of the direction."""
        return self._source.base

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Those of the direction."""
        return self._source.shapes

    def rank(self, name: str) -> int | None:
        """As `DeltaSource` has it."""
        rank = self._source.rank(name)
        return None if rank is None else min(rank, self._most, *self.shapes[name])

    def low_rank(self, name: str) -> LowRankDelta:
        """The first singular values, by the decomposition of the core between the orthonormal sides of the factors."""
        delta = self._source.low_rank(name)
        left, of_b = np.linalg.qr(delta.b.astype(np.float64))
        right, of_a = np.linalg.qr(delta.a.T.astype(np.float64))
        u, values, v = np.linalg.svd(of_b @ of_a.T, full_matrices=False)
        kept = min(values.size, self._most)
        # The root of a value in either factor: neither is far smaller than the other.
        roots = np.sqrt(values[:kept])
        b, a = left @ (u[:, :kept] * roots), (v[:kept].T * roots).T @ right.T
        return LowRankDelta(b.astype(np.float32), a.astype(np.float32))

    def read_dense(self, name: str, start: int, out: object) -> None:  # noqa: ARG002 - the protocol's
        """Refuse: what is dense has no factors to cut.

        Raises:
            DirectionError: always.
        """
        raise DirectionError(f"the delta of {name} is dense", where=self.label, hint="cut directions of LoRA alone")


def cut_name(name: str, rank: int) -> str:
    """What a direction that is cut is called in the study's store."""
    return f"{name}-rank-{rank}"


def publish_cut(store: Registry, name: str, rank: int) -> None:
    """Publish a direction of the store cut to a rank, if it is not there."""
    wanted = cut_name(name, rank)
    if any(entry.name == wanted for entry in store.list()):
        return
    with wsmerge.open_direction(name, store=store) as direction, store.scratch() as scratch:
        about = About(
            name=wanted,
            kind="composed",
            description=f"{name}, cut to rank {rank} in each tensor.",
            parents=(ParentRecord(reference=direction.label, version_digest=direction.digest),),
        )
        with write_direction(scratch / "direction", Cut(direction, rank), about) as written:
            store.publish(written)
