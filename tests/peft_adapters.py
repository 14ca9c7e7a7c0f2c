"""Adapters made by PEFT itself over tiny models, and what PEFT makes of them: the judge of our reading."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def save_llama(folder: Path, *, tied: bool = False, bias: bool = False, seed: int = 0) -> Path:
    """A Llama of two layers in float32 with grouped-query attention; its projections are not square, but for one."""
    torch.manual_seed(seed)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=tied,
            attention_bias=bias,
            bos_token_id=0,
            eos_token_id=1,
        )
    ).save_pretrained(folder)
    return folder


def save_gpt2(folder: Path) -> Path:
    """A GPT-2 of one layer: Conv1D layers, one of them square, and tied embeddings."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=8, bos_token_id=0, eos_token_id=1)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def save_adapter(base: Path, folder: Path, config: LoraConfig, *, seed: int = 1) -> Path:
    """Adapt the model in `base`, give all that is trained random values, and save the adapter as PEFT does."""
    model = quietly(get_peft_model, load(base), config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            # In place: parameters that PEFT ties share their storage.
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    quietly(model.save_pretrained, folder)
    return folder


def merged_deltas(base: Path, adapter: Path) -> dict[str, NDArray[np.float64]]:
    """What `merge_and_unload` in float64 adds to every parameter, by name in memory; zeros left out."""
    before = {name: value.double() for name, value in load(base).state_dict().items()}
    adapted = quietly(PeftModel.from_pretrained, load(base), adapter)
    merged = quietly(adapted.double().merge_and_unload)
    deltas = {name: (value - before[name]).numpy() for name, value in merged.state_dict().items()}
    return {name: delta for name, delta in deltas.items() if delta.any()}


def adapted_logits(base: Path, adapter: Path, tokens: torch.Tensor) -> torch.Tensor:
    """Logits of the model with the adapter beside it, not merged."""
    model = quietly(PeftModel.from_pretrained, load(base), adapter)
    with torch.no_grad():
        logits: torch.Tensor = model(tokens).logits
    return logits


def load(base: Path) -> PreTrainedModel:
    """The model in `base`, float32, in evaluation mode."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return model


def quietly(call: Any, *arguments: Any) -> Any:
    """Call into PEFT without its warnings."""
    with warnings.catch_warnings():
        # PEFT warns of tied embeddings and of embeddings in the adapter, which these tests are about, and uses a
        # property that transformers has deprecated.
        warnings.simplefilter("ignore")
        return call(*arguments)
