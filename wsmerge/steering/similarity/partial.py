"""What a sample reads of one vector: rows of its dense deltas, `a` and rows of `b` of its factors, and its exact norm.

    dense               the rows
    factors             of a direction's file on this machine `a` and rows of `b`; elsewhere, and where a row of the delta
                        is no row of the file (transposed factors, zarr), both whole
    squared norm        as the manifest has it; of sources without one, from the factors or from all elements

Factors that are read in part cannot be hashed against the manifest, and are not; `wsmerge verify` does that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.tensors import DeltaSource
from wsmerge.engine.kernels import load_kernels
from wsmerge.registry import Direction
from wsmerge.registry.payloads import Payload, component_key
from wsmerge.registry.payloads.safetensors import SafetensorsPayload
from wsmerge.steering.similarity.factors import inner_of_factors
from wsmerge.steering.similarity.nulls import NullDirection
from wsmerge.steering.similarity.rows import Rows
from wsmerge.steering.similarity.vectors import Vector

__all__ = ["PartialVector", "Room"]

_CALL_BYTES: Final = 1 << 15
"""Bytes that are copied in about the time that one more call takes."""
_BLOCK_ELEMENTS: Final = 1 << 18

Float32 = NDArray[np.float32]
Room = Callable[[str, int], Float32]
"""Gives so many elements under a name, for the calling thread to work in."""


class PartialVector:
    """One vector, read by rows; threads may share it."""

    def __init__(self, vector: Vector) -> None:
        self.vector = vector
        source = vector.source
        self._norms = _norms(source)
        self._files = _factor_files(source)

    def read_rows(self, name: str, spans: list[tuple[int, int]], out: Float32) -> None:
        """Fill `out` (rows x columns) with the rows of the dense delta for `name` that `spans` name."""
        own, source = self.vector.own[name], self.vector.source
        columns, filled = out.shape[1], 0
        for start, count in spans:
            source.read_dense(own, start * columns, out[filled : filled + count].reshape(-1))
            filled += count

    def read_factors(self, name: str, rows: Rows, a: Float32, b: Float32, room: Room) -> None:
        """Fill `a` (rank x columns), and `b` (rank x drawn rows) with the columns of the transposed `b` that are drawn."""
        own, source = self.vector.own[name], self.vector.source
        stored = self._files.get(own)
        if stored is None:
            delta = source.low_rank(own)
            a[:], b[:] = delta.a, delta.b[rows.indices].T
            return
        payload, a_key, b_key = stored
        payload.read_into(a_key, 0, a.reshape(-1))
        rank, drawn = b.shape
        if 4 * rows.rows * rank <= _CALL_BYTES * rows.drawn.size:
            whole = room("b whole", rows.rows * rank)
            payload.read_into(b_key, 0, whole)
            b[:] = whole.reshape(-1, rank)[rows.indices].T
            return
        part, filled = room("b part", drawn * rank), 0
        for start, count in rows.spans(0, rows.drawn.size):
            payload.read_into(b_key, start * rank, part[filled : filled + count * rank])
            filled += count * rank
        b[:] = part.reshape(-1, rank).T

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


def _factor_files(source: DeltaSource) -> Mapping[str, tuple[Payload, str, str]]:
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
            found[row.name] = (payload, a, b)
    return found


def _square_of_dense(source: DeltaSource, own: str) -> float:
    numel, total, dot = math.prod(source.shapes[own]), 0.0, load_kernels().dot
    for start in range(0, numel, _BLOCK_ELEMENTS):
        block = np.empty(min(_BLOCK_ELEMENTS, numel - start), np.float32)
        source.read_dense(own, start, block)
        total += dot(block, block)
    return total
