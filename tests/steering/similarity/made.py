"""Checkpoints, adapters and directions for tests of similarity."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.builders import llama_shapes, make_checkpoint, random_tensors
from tests.sources import MemoryDirection, identity, random_direction
from wsmerge.core.dtypes import dtype_named, from_float32, to_float32
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.registry import About, write_direction

Dense = dict[str, NDArray[np.float64]]


def make_base(folder: Path, *, dtype: str = "bfloat16", tied: bool = True) -> Path:
    """A small Llama."""
    return make_checkpoint(folder, random_tensors(llama_shapes(tied=tied), dtype=dtype))


def fine_tune(
    base: Path, folder: Path, *, dtype: str = "bfloat16", seed: int = 5, towards: Mapping[str, Any] | None = None
) -> Path:
    """`base` with random changes of every tensor, and with `towards` added, rounded to `dtype`."""
    generator = np.random.default_rng(seed)
    held = dtype_named(dtype)
    tensors = {}
    with Checkpoint(base) as checkpoint:
        for name, spec in checkpoint.specs.items():
            bits = np.frombuffer(checkpoint.read(name), spec.dtype.storage).reshape(spec.shape)
            values = to_float32(bits, spec.dtype) + 0.01 * generator.standard_normal(spec.shape)
            values = values + (towards or {}).get(name, 0.0)
            tensors[name] = (held, from_float32(values.astype(np.float32), held))
        config = dict(checkpoint.config)
    return make_checkpoint(folder, tensors, config=config)


def subtracted(base: Path, tuned: Path) -> Dense:
    """Checkpoint minus base in float64, read by the safetensors package; the base's tied output left out."""
    from safetensors.torch import load_file  # noqa: PLC0415 - slow to load

    before, after = (load_file(path / "model.safetensors") for path in (base, tuned))
    with Checkpoint(base) as checkpoint:
        tied = set(checkpoint.tied)
    return {
        name: (after[name].double() - before[name].double()).numpy()
        for name in before
        if name not in tied and before[name].is_floating_point()
    }


def directions() -> list[MemoryDirection]:
    """Low-rank and dense ones, one of them on some tensors alone, one dense on everything."""
    shapes = llama_shapes()
    some = {name: shape for name, shape in shapes.items() if ".layers.1." in name}
    everything = random_direction(shapes, rank=None, seed=4, label="everything")
    return [
        random_direction(shapes, rank=4, seed=1, label="low-rank"),
        random_direction(some, rank=3, seed=2, label="one layer"),
        random_direction(shapes, rank=40, seed=3, label="more rank than rows"),
        everything,
    ]


def published(folder: Path, direction: MemoryDirection, base: Path) -> Path:
    """`direction` as an artifact over `base`."""
    with Checkpoint(base) as checkpoint:
        shapes = {name: spec.shape for name, spec in checkpoint.specs.items()}
        direction.base = identity(shapes, tied=checkpoint.tied)
    write_direction(
        folder, direction, About(name=direction.label.replace(" ", "-"), version="1.0.0", kind="contrastive")
    ).close()
    return folder
