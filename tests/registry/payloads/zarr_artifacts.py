"""Directions with a zarr payload, for the tests of it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.registry.artifacts import SHAPES, about
from tests.sources import MemoryDirection, identity, random_direction
from wsmerge.core.deltas import DenseDelta
from wsmerge.registry import Direction, write_direction
from wsmerge.registry.convert import convert_direction
from wsmerge.registry.payloads import zarr_layout, zarr_writing

DENSE = "model.layers.0.mlp.gate_proj.weight"


def dense_values(shape: tuple[int, ...] = (37, 24), seed: int = 5) -> Any:
    """Normal values, some exact zeros, and negative zeros, which are other bytes."""
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    values[np.abs(values) < 0.4] = 0
    values.reshape(-1)[:200] = -0.0
    return values


def mixed_source() -> MemoryDirection:
    """Low-rank, dense of several chunks, three dimensions, a vector, a scalar, and an empty tensor."""
    more = {
        DENSE: DenseDelta(dense_values()),
        "model.layers.0.experts.weight": DenseDelta(dense_values((3, 10, 20), 6)),
        "model.norm.weight": DenseDelta(np.linspace(-1, 1, 16, dtype=np.float32)),
        "model.scale": DenseDelta(np.array(2.5, np.float32)),
        "model.none": DenseDelta(np.zeros((0, 4), np.float32)),
    }
    deltas = {**random_direction(SHAPES).deltas, **more}
    return MemoryDirection(deltas, identity({name: delta.shape for name, delta in deltas.items()}))


def small_chunks(monkeypatch: Any, chunk_bytes: int = 600, shard_bytes: int = 2000) -> None:
    """Let the writer cut small arrays as it cuts large ones."""
    cut = partial(zarr_layout.chunking_of, chunk_bytes=chunk_bytes, shard_bytes=shard_bytes)
    monkeypatch.setattr(zarr_writing, "chunking_of", cut)


def make_pair(
    folder: Path, source: MemoryDirection | None = None, *, codec: Any = "auto", **more: Any
) -> tuple[Direction, Direction]:
    """The same direction with a safetensors and a zarr payload, both open."""
    plain = write_direction(folder / "plain", source or mixed_source(), about(**more))
    return plain, convert_direction(plain, folder / "zarr", "zarr", codec=codec)


def damage(path: Path, old: bytes, new: bytes) -> None:
    """Replace `old`, which must be there, in the file `path`."""
    data = path.read_bytes()
    assert old in data
    path.chmod(0o644)
    path.write_bytes(data.replace(old, new, 1))


def flip(path: Path, offset: int) -> None:
    """Flip one bit of the byte at `offset`."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.chmod(0o644)
    path.write_bytes(bytes(data))
