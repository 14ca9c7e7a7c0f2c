"""Small models and adapters, made where a test needs them; nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.dtypes import DType, dtype_named, from_float32
from wsmerge.core.tensor_file import encode_header
from wsmerge.core.tensors import TensorSpec

Tensors = Mapping[str, tuple[DType, NDArray[Any]]]


def write_tensor_file(path: Path, tensors: Tensors) -> None:
    """Write tensors given as (dtype, elements of its storage type)."""
    specs = [TensorSpec(name, dtype, values.shape) for name, (dtype, values) in tensors.items()]
    with path.open("wb") as file:
        file.write(encode_header(specs, {"format": "pt"}))
        for _, values in tensors.values():
            file.write(np.ascontiguousarray(values).tobytes())


def llama_shapes(
    *, layers: int = 3, hidden: int = 16, inner: int = 24, vocab: int = 40, tied: bool = True
) -> dict[str, tuple[int, ...]]:
    """Checkpoint names and shapes of a small Llama."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.self_attn.{part}_proj.weight": (hidden, hidden) for part in "qkvo"}
        shapes |= {f"{prefix}.mlp.{part}_proj.weight": (inner, hidden) for part in ("gate", "up")}
        shapes[f"{prefix}.mlp.down_proj.weight"] = (hidden, inner)
        shapes |= {f"{prefix}.{part}_layernorm.weight": (hidden,) for part in ("input", "post_attention")}
    shapes["model.norm.weight"] = (hidden,)
    if not tied:
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def random_tensors(
    shapes: Mapping[str, tuple[int, ...]], *, dtype: str = "bfloat16", seed: int = 0, scale: float = 0.02
) -> dict[str, tuple[DType, NDArray[Any]]]:
    """Normal values of standard deviation `scale`, rounded to `dtype`."""
    generator = np.random.default_rng(seed)
    held = dtype_named(dtype)
    return {
        name: (held, from_float32((generator.standard_normal(shape) * scale).astype(np.float32), held))
        for name, shape in shapes.items()
    }


def llama_config(shapes: Mapping[str, tuple[int, ...]], *, dtype: str = "bfloat16") -> dict[str, Any]:
    """A `config.json` that transformers takes for a checkpoint of `shapes`."""
    vocab, hidden = shapes["model.embed_tokens.weight"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": shapes["model.layers.0.mlp.up_proj.weight"][0],
        "num_hidden_layers": 1 + max(int(name.split(".")[2]) for name in shapes if ".layers." in name),
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "tie_word_embeddings": "lm_head.weight" not in shapes,
        "dtype": dtype,
    }


def make_checkpoint(
    folder: Path, tensors: Tensors, *, config: Mapping[str, Any] | None = None, shards: int = 1
) -> Path:
    """A checkpoint folder: single or sharded safetensors with an index, and `config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {name: values.shape for name, (_, values) in tensors.items()}
    dtype = next(iter(tensors.values()))[0].recipe_name
    (folder / "config.json").write_text(json.dumps(config or llama_config(shapes, dtype=dtype)))
    if shards == 1:
        write_tensor_file(folder / "model.safetensors", tensors)
        return folder
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = names[number::shards]
        write_tensor_file(folder / file, {name: tensors[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def make_adapter(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    rank: int = 2,
    alpha: float = 4,
    seed: int = 0,
    scale: float = 0.05,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """A PEFT LoRA adapter with random float32 factors for the weight of each module in `shapes` (rows x columns)."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, tuple[DType, NDArray[Any]]] = {}
    f32 = dtype_named("float32")
    for name, (rows, columns) in shapes.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        for part, shape in (("lora_A", (rank, columns)), ("lora_B", (rows, rank))):
            values = (generator.standard_normal(shape) * scale).astype(np.float32)
            tensors[f"{module}.{part}.weight"] = (f32, values)
    write_tensor_file(folder / "adapter_model.safetensors", tensors)
    settings: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted({name.removesuffix(".weight").rpartition(".")[2] for name in shapes}),
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings | dict(config or {})))
    return folder
