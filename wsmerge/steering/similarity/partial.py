"""What a sample reads of one vector: rows of its dense deltas, `a` and rows of `b` of its factors, and its exact norm.

    dense               the rows
    factors             of a direction's file on this machine `a` and rows of `b` (`drawn`); elsewhere, and where a row of the
                        delta is no row of the file (transposed factors, zarr), both whole
    squared norm        as the manifest has it; of sources without one, from the factors or from all elements

What is read in part cannot be hashed against the manifest, and is not; `wsmerge verify` does that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.deltas import LowRankDelta
from wsmerge.core.ranges import RangeFile
from wsmerge.core.tensors import DeltaSource
from wsmerge.engine.kernels import load_kernels
from wsmerge.registry import Direction
from wsmerge.registry.payloads import component_key
from wsmerge.registry.payloads.safetensors import SafetensorsPayload
from wsmerge.steering.similarity.factors import inner_of_factors
from wsmerge.steering.similarity.nulls import NullDirection
from wsmerge.steering.similarity.update import RowRuns, Update, read_runs
from wsmerge.steering.similarity.vectors import Vector

__all__ = ["FactorsInFile", "PartialVector"]

_BLOCK_ELEMENTS: Final = 1 << 18

Float32 = NDArray[np.float32]


class FactorsInFile(NamedTuple):
    """Two factors that lie in files, float32 and row-major.

    Attributes:
        a_file: the file of `a` (rank x columns).
        a_start: the byte that it starts at.
        b_file: the file of `b` (rows x rank).
        b_start: the byte that it starts at.
    """

    a_file: RangeFile
    a_start: int
    b_file: RangeFile
    b_start: int


class PartialVector:
    """One vector, read by rows; threads may share it."""

    def __init__(self, vector: Vector) -> None:
        self.vector = vector
        source = vector.source
        self._norms = _norms(source)
        self._files = _factor_files(source)

    def read_rows(self, wanted: Sequence[RowRuns], out: Float32) -> None:
        """Fill `out` (rows x columns) with runs of rows of dense deltas, by their common names, one behind the other."""
        source = self.vector.source
        own = [runs._replace(name=self.vector.own[runs.name]) for runs in wanted]
        if isinstance(source, Update):
            source.read_rows(own, out)
        else:
            read_runs(source.read_sample if isinstance(source, Direction) else source.read_dense, own, out)

    def factors_in_file(self, name: str) -> FactorsInFile | None:
        """Where the factors of the delta for `name` lie on this machine as they are; None where they do not."""
        return self._files.get(self.vector.own[name])

    def factors(self, name: str) -> LowRankDelta:
        """The factors of the delta for `name`, whole."""
        return self.vector.source.low_rank(self.vector.own[name])

    def squared_norm(self, name: str) -> float:
        """The squared norm of the delta for `name`, exact."""
        own, source = self.vector.own[name], self.vector.source
        if own in self._norms:
            return self._norms[own] ** 2
        if source.rank(own) is None:
            return _square_of_dense(source, own)
        delta = source.low_rank(own)
        return inner_of_factors(delta, delta)


def _norms(source: DeltaSource) -> Mapping[str, float]:
    """The manifest's norms; a random direction has those of the one whose spectrum it has."""
    while isinstance(source, NullDirection):
        source = source.source
    return {row.name: row.norm for row in source.manifest.tensors} if isinstance(source, Direction) else {}


def _factor_files(source: DeltaSource) -> Mapping[str, FactorsInFile]:
    """Where `a` and `b` of a delta lie as they are, so that rows of `b` are ranges of a file on this machine."""
    if not isinstance(source, Direction) or source.files.folder is None:
        return {}
    payload = source.payload
    if not isinstance(payload, SafetensorsPayload):
        return {}
    found = {}
    for row in source.manifest.tensors:
        if row.layout == "linear":
            a, b = (component_key(row, part, adapter=payload.adapter) for part in ("lora_A", "lora_B"))
            found[row.name] = FactorsInFile(*payload.place(a), *payload.place(b))
    return found


def _square_of_dense(source: DeltaSource, own: str) -> float:
    numel, total, dot = math.prod(source.shapes[own]), 0.0, load_kernels().dot
    for start in range(0, numel, _BLOCK_ELEMENTS):
        block = np.empty(min(_BLOCK_ELEMENTS, numel - start), np.float32)
        source.read_dense(own, start, block)
        total += dot(block, block)
    return total
