"""The inputs of every benchmark: Llama-shaped checkpoints and directions of any size, written in blocks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.deltas import LowRankDelta
from wsmerge.core.digest import structure_digest
from wsmerge.core.dtypes import BF16, F32, from_float32, to_float32
from wsmerge.core.tensor_file import encode_header
from wsmerge.core.tensors import BaseIdentity, TensorSpec
from wsmerge.registry import About, write_direction

__all__ = ["SIZES", "make_adapter", "make_checkpoint", "make_direction", "make_fine_tune"]

# hidden, layers, inner, vocabulary; tied embeddings
SIZES: Mapping[str, tuple[int, int, int, int]] = {
    "20M": (256, 12, 704, 32000),
    "0.1B": (576, 30, 1536, 49152),
    "0.4B": (1024, 16, 5632, 32000),
    "1.5B": (2048, 26, 5632, 32000),
    "7B": (4096, 32, 11008, 32000),
}


def shapes_of(size: str) -> dict[str, tuple[int, ...]]:
    """Checkpoint names and shapes of a Llama of `size`."""
    hidden, layers, inner, vocab = SIZES[size]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.self_attn.{part}_proj.weight": (hidden, hidden) for part in "qkvo"}
        shapes |= {f"{prefix}.mlp.{part}_proj.weight": (inner, hidden) for part in ("gate", "up")}
        shapes[f"{prefix}.mlp.down_proj.weight"] = (hidden, inner)
        shapes |= {f"{prefix}.{part}_layernorm.weight": (hidden,) for part in ("input", "post_attention")}
    return shapes


def make_checkpoint(folder: Path, size: str, *, seed: int = 0) -> Path:
    """A bfloat16 checkpoint of normal weights (standard deviation 0.02) in one file."""
    specs = [TensorSpec(name, BF16, shape) for name, shape in shapes_of(size).items()]
    folder.mkdir(parents=True, exist_ok=True)
    # One random megabyte, at another offset for each tensor: fast to make, and no two tensors are alike.
    values = np.random.default_rng(seed).standard_normal(1 << 20).astype(np.float32) * np.float32(0.02)
    bits = (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(encode_header(specs, {"format": "pt"}))
        for number, spec in enumerate(specs):
            rolled = np.roll(bits, 7919 * number)
            for start in range(0, spec.numel, rolled.size):
                file.write(rolled[: min(rolled.size, spec.numel - start)].tobytes())
    hidden, layers, inner, vocab = SIZES[size]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": inner,
        "vocab_size": vocab,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 64,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def make_fine_tune(base: Path, folder: Path, *, seed: int = 1, scale: float = 0.002) -> Path:
    """The checkpoint `base` of `make_checkpoint` plus normal noise of standard deviation `scale`, in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(base / "config.json", folder / "config.json")
    noise = np.random.default_rng(seed).standard_normal(1 << 20).astype(np.float32) * np.float32(scale)
    with (base / "model.safetensors").open("rb") as source, (folder / "model.safetensors").open("wb") as file:
        length = source.read(8)
        file.write(length + source.read(int.from_bytes(length, "little")))
        block = 0
        while data := source.read(noise.nbytes // 2):
            block += 1
            bits = np.frombuffer(data, np.uint16)
            file.write(from_float32(to_float32(bits, BF16) + np.roll(noise, 7919 * block)[: bits.size], BF16).tobytes())
    return folder


def make_adapter(folder: Path, size: str, *, rank: int = 32, seed: int = 1) -> Path:
    """A PEFT LoRA adapter over all linear layers of a checkpoint of `size`, in float32."""
    direction = _RandomDirection(size, rank, seed)
    tensors: dict[str, NDArray[np.float32]] = {}
    for name in direction.shapes:
        factors = direction.low_rank(name)
        module = f"base_model.model.{name.removesuffix('.weight')}"
        tensors |= {f"{module}.lora_A.weight": factors.a, f"{module}.lora_B.weight": factors.b}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "adapter_model.safetensors").open("wb") as file:
        file.write(
            encode_header([TensorSpec(name, F32, item.shape) for name, item in tensors.items()], {"format": "pt"})
        )
        for item in tensors.values():
            file.write(np.ascontiguousarray(item).tobytes())
    modules = sorted({name.split(".")[-2] for name in direction.shapes})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "target_modules": modules}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


class _RandomDirection:
    """A low-rank direction over every linear layer, its factors made when they are asked for."""

    def __init__(self, size: str, rank: int, seed: int) -> None:
        shapes = shapes_of(size)
        self.label = f"synthetic-{size}"
        self.digest = ""
        self.base = BaseIdentity(f"synthetic-{size}", structure_digest(shapes.items()), "0" * 64, {})
        self.shapes = {name: shape for name, shape in shapes.items() if name.endswith("_proj.weight")}
        self._rank, self._seed = rank, seed

    def rank(self, name: str) -> int | None:
        return self._rank if name in self.shapes else None

    def low_rank(self, name: str) -> LowRankDelta:
        generator = np.random.default_rng([self._seed, *name.encode()])
        rows, columns = self.shapes[name]
        scale = 0.003 / self._rank**0.25
        b = generator.standard_normal((rows, self._rank), np.float32) * np.float32(scale)
        a = generator.standard_normal((self._rank, columns), np.float32) * np.float32(1)
        return LowRankDelta(b, a)

    def read_dense(self, name: str, start: int, out: NDArray[np.float32]) -> None:
        raise NotImplementedError


def make_direction(folder: Path, size: str, *, rank: int = 32, seed: int = 1) -> Path:
    """An artifact of a low-rank direction over all linear layers of a checkpoint of `size`."""
    about = About(name=f"synthetic-{seed}", version="1.0.0", kind="contrastive")
    write_direction(folder, _RandomDirection(size, rank, seed), about).close()
    return folder
