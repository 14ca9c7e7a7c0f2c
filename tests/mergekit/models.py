"""Tiny models of many architectures, their fine-tunes and tokenizers, as transformers writes them."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

__all__ = ["KINDS", "LAYERS", "VOCAB", "Zoo", "fine_tune", "make_model", "make_tokenizer"]

LAYERS = 3
VOCAB = 64

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}

_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_GEMMA = {"head_dim": 8, "sliding_window": 16}

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", _COMMON),
    "qwen2": ("Qwen2ForCausalLM", _COMMON),
    "gemma2": ("Gemma2ForCausalLM", _COMMON | _GEMMA | {"query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3ForCausalLM", _COMMON | _GEMMA | {"query_pre_attn_scalar": 8}),
    "mistral": ("MistralForCausalLM", _COMMON),
    "phi3": ("Phi3ForCausalLM", _COMMON),
    "gpt_neox": (
        "GPTNeoXForCausalLM",
        {name: value for name, value in _COMMON.items() if name != "num_key_value_heads"},
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        {
            "vocab_size": VOCAB,
            "n_embd": 32,
            "n_inner": 48,
            "n_layer": LAYERS,
            "n_head": 4,
            "n_positions": 64,
            "bos_token_id": 0,
            "eos_token_id": 1,
        },
    ),
    "mixtral": ("MixtralForCausalLM", _COMMON | {"num_local_experts": 3, "num_experts_per_tok": 2}),
}
"""Name of a kind of model: transformers' class, and what its config is told."""


def make_model(
    folder: Path,
    kind: str,
    *,
    dtype: str = "bf16",
    tied: bool = False,
    sharded: bool = False,
    layers: int = LAYERS,
    vocab: int = VOCAB,
    seed: int = 0,
) -> Path:
    """A model of `kind` whose every parameter is random, saved by transformers."""
    name, settings = KINDS[kind]
    depth = {"n_layer" if kind == "gpt2" else "num_hidden_layers": layers}
    model_class = getattr(transformers, name)
    made = model_class.config_class(**{**settings, **depth, "vocab_size": vocab}, tie_word_embeddings=tied)
    generator = torch.Generator().manual_seed(seed)
    model = model_class(made)
    with torch.no_grad():
        for parameter in model.parameters():
            # Norms keep their ones, biases get values too: what is all zeros would hide faults.
            centre = parameter.mean().round()
            parameter.copy_(centre + torch.randn(parameter.shape, generator=generator) * 0.05)
    model.to(DTYPES[dtype])
    model.config.dtype = DTYPES[dtype]
    model.save_pretrained(folder, max_shard_size="20KB" if sharded else "1GB")
    if kind == "gpt_neox":
        _add_old_buffers(folder, layers)
    return folder


def _add_old_buffers(folder: Path, layers: int) -> None:
    """The buffers that published GPT-NeoX checkpoints hold: mergekit's definition asks for them."""
    positions = KINDS["gpt_neox"][1]["max_position_embeddings"]
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for layer in range(layers):
        prefix = f"gpt_neox.layers.{layer}.attention"
        tensors[f"{prefix}.bias"] = torch.tril(torch.ones(1, 1, positions, positions, dtype=torch.bool))
        tensors[f"{prefix}.masked_bias"] = torch.tensor(-1e4)
        tensors[f"{prefix}.rotary_emb.inv_freq"] = 1 / 10000 ** (torch.arange(4) / 4)
    save_file(tensors, path, {"format": "pt"})


def fine_tune(base: Path, folder: Path, *, seed: int, scale: float = 0.01, dtype: str | None = None) -> Path:
    """`base` plus normal noise of `scale` on every weight: the same files, names, dtypes and tokenizer.

    With `dtype` the sum is rounded to that dtype instead of the base's.
    """
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    generator = torch.Generator().manual_seed(seed)
    for file in sorted(base.glob("*.safetensors")):
        tensors = {}
        for name, value in load_file(file).items():
            noise = torch.randn(value.shape, generator=generator) * scale
            learnt = value.is_floating_point() and not name.endswith(("inv_freq", "masked_bias"))
            tensors[name] = (value.float() + noise).to(DTYPES[dtype] if dtype else value.dtype) if learnt else value
        save_file(tensors, folder / file.name, {"format": "pt"})
    if dtype:
        config = json.loads((folder / "config.json").read_text())
        config["dtype"] = str(DTYPES[dtype]).removeprefix("torch.")
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def make_tokenizer(
    folder: Path, extra: tuple[str, ...] = (), *, template: str | None = None, vocab: int = VOCAB
) -> Path:
    """A byte-pair tokenizer of single characters, two merges and `extra` tokens, filled up to `vocab` ids.

    Tokenizers with the same `extra` are equal; `template` is the chat template.
    """
    specials = ["<s>", "</s>", "<pad>"]
    letters = list("abcdefghijklmnopqrstuvwxyz .,!?0123456789")
    merged = ["th", "the"]
    words = [*specials, *letters, *merged]
    model = BPE(
        vocab={word: number for number, word in enumerate(words)},
        merges=[("t", "h"), ("th", "e")],
        fuse_unk=False,
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **dict(zip(("bos_token", "eos_token", "pad_token"), specials, strict=True))
    )
    fillers = [f"<fill_{number}>" for number in range(vocab - len(words) - len(extra))]
    fast.add_tokens([*extra, *fillers])
    if template:
        fast.chat_template = template
    fast.save_pretrained(folder)
    return folder


@dataclass(frozen=True, slots=True)
class Zoo:
    """Models by what they are, each made once a session under `root`. Tests must not change them."""

    root: Path

    def base(
        self,
        kind: str = "llama",
        *,
        dtype: str = "bf16",
        tied: bool = False,
        sharded: bool = False,
        layers: int = LAYERS,
    ) -> Path:
        """The base model of a kind, with the plain tokenizer."""
        name = f"{kind}-{dtype}-{'tied' if tied else 'untied'}-{'shards' if sharded else 'one'}-{layers}"

        def make(folder: Path) -> None:
            make_model(folder, kind, dtype=dtype, tied=tied, sharded=sharded, layers=layers)
            make_tokenizer(folder)

        return self._once(name, make)

    def tuned(self, base: Path, number: int, *, dtype: str | None = None) -> Path:
        """Fine-tune `number` of `base`."""
        name = f"{base.name}-tuned{number}{'-' + dtype if dtype else ''}"
        return self._once(name, lambda folder: fine_tune(base, folder, seed=100 + number, dtype=dtype))

    def speaking(
        self,
        number: int,
        extra: tuple[str, ...],
        *,
        template: str | None = None,
        vocab: int = VOCAB,
        kind: str = "llama",
    ) -> Path:
        """Model `number` with a vocabulary of its own: a tokenizer with `extra` tokens and `vocab` ids."""
        digest = zlib.crc32(repr((extra, template)).encode())

        def make(folder: Path) -> None:
            make_model(folder, kind, vocab=vocab, seed=number)
            make_tokenizer(folder, extra, template=template, vocab=vocab)

        return self._once(f"{kind}-speaking{number}-{vocab}-{digest:08x}", make)

    def _once(self, name: str, make: Callable[[Path], object]) -> Path:
        folder = self.root / name
        if not folder.exists():
            making = folder.with_name(f"{name}.making")
            make(making)
            making.rename(folder)  # a model that could not be made is not taken for one in the next test
        return folder
