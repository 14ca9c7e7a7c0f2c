"""Tiny Llamas, directions over them, and recipes carried out on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import wsmerge
from tests.builders import Tensors, llama_config, llama_shapes, make_adapter, make_checkpoint, random_tensors
from tests.engine.test_merge import read_all
from wsmerge.core.dtypes import F64, DType, dtype_named, from_float32, to_float32

__all__ = [
    "EMBEDDING",
    "HEAD",
    "UP",
    "decoded",
    "deltas_of",
    "dense_direction",
    "direction",
    "dtypes_of",
    "entries",
    "fine_tune",
    "merge",
    "model",
    "stacked",
    "values",
]

UP = "model.layers.1.mlp.up_proj.weight"
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"

Float64 = NDArray[np.float64]


def model(
    folder: Path,
    *,
    seed: int = 0,
    dtype: str = "bfloat16",
    scale: float = 0.02,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    extra: Tensors | None = None,
    config: Mapping[str, Any] | None = None,
    shards: int = 1,
) -> Path:
    """A checkpoint of random weights, with `extra` tensors besides or in place of its own."""
    shapes = shapes or llama_shapes()
    tensors = random_tensors(shapes, dtype=dtype, seed=seed, scale=scale) | dict(extra or {})
    config = llama_config(shapes, dtype=dtype) | dict(config or {})
    return make_checkpoint(folder, tensors, config=config, shards=shards)


def fine_tune(base: Path, folder: Path, *, seed: int, scale: float = 0.005, dtype: str | None = None) -> Path:
    """`base` plus normal noise, rounded to its own dtypes or to `dtype`."""
    generator = np.random.default_rng(seed)
    tensors: dict[str, tuple[DType, NDArray[Any]]] = {}
    for name, (held, bits) in read_all(base).items():
        target = dtype_named(dtype) if dtype else held
        noisy = decoded(held, bits) + generator.standard_normal(bits.shape) * scale
        tensors[name] = (target, from_float32(noisy.astype(np.float32), target))
    shapes = {name: bits.shape for name, (_, bits) in tensors.items()}
    return make_checkpoint(
        folder, tensors, config=llama_config(shapes, dtype=next(iter(tensors.values()))[0].recipe_name)
    )


def direction(base: Path, folder: Path, *, seed: int = 1, only: str = "_proj") -> Path:
    """A low-rank direction over the matrices of `base` whose names hold `only`."""
    shapes = {name: bits.shape for name, (_, bits) in read_all(base).items() if only in name}
    adapter = make_adapter(folder.with_name(f"{folder.name}-pole"), shapes, seed=seed)
    wsmerge.extract(folder.name, base=base, positive=adapter, to=folder).close()
    return folder


def dense_direction(base: Path, folder: Path, *, seed: int = 1, scale: float = 0.01) -> Path:
    """A dense direction over every tensor of `base`: a fine-tune in float32 less the base."""
    tuned = fine_tune(base, folder.with_name(f"{folder.name}-pole"), seed=seed, scale=scale, dtype="float32")
    wsmerge.extract(folder.name, base=base, positive=tuned, to=folder).close()
    return folder


def deltas_of(folder: Path) -> dict[str, Float64]:
    """w of each tensor that a direction changes, dense."""
    with wsmerge.open_direction(folder) as opened:
        return {name: opened.delta(name).dense() for name in opened.shapes}


def entries(*sources: tuple[Path | str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Entries of `models`; a folder with `direction.json` stands for a model as a direction."""
    return [
        {
            "direction" if (Path(path) / "direction.json").exists() else "model": str(path),
            "parameters": dict(parameters),
        }
        for path, parameters in sources
    ]


def merge(out: Path, recipe: Mapping[str, Any] | str | Path, **settings: Any) -> wsmerge.MergeReport:
    """Carry out a recipe, with small blocks and three threads unless `settings` (of `wsmerge.Settings`) say otherwise."""
    settings.setdefault("options", wsmerge.PlanOptions(block_bytes=1 << 20, threads=3))
    return wsmerge.merge(recipe, out, settings=wsmerge.Settings(**settings))


def values(folder: Path) -> dict[str, Float64]:
    """Every tensor's values."""
    return {name: decoded(dtype, bits) for name, (dtype, bits) in read_all(folder).items() if dtype.is_float}


def decoded(dtype: DType, bits: NDArray[Any]) -> Float64:
    """The values of elements that are stored as `dtype`."""
    return bits.astype(np.float64) if dtype is F64 else to_float32(bits, dtype).astype(np.float64)


def dtypes_of(folder: Path) -> set[str]:
    """The dtypes of all tensors."""
    return {str(dtype) for dtype, _ in read_all(folder).values()}


def stacked(slices: Sequence[Sequence[tuple[dict[str, Any], tuple[int, int]]]]) -> list[dict[str, Any]]:
    """Slices of a recipe, from (source, layer range)."""
    return [{"sources": [source | {"layer_range": list(layers)} for source, layers in part]} for part in slices]
