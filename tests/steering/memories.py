"""Tiny models of every way to remember what was read: caches of several kinds, states, and positions of several kinds."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

COMMON: dict[str, Any] = {
    "vocab_size": 258,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "eos_token_id": 257,
    "pad_token_id": 257,
}
KINDS: dict[str, Any] = {
    "full attention": transformers.LlamaConfig(**COMMON, num_hidden_layers=2, intermediate_size=64),
    "sliding windows": transformers.MistralConfig(
        **COMMON, num_hidden_layers=2, intermediate_size=64, sliding_window=16
    ),
    "sliding and full": transformers.Gemma3TextConfig(
        **COMMON,
        num_hidden_layers=2,
        intermediate_size=64,
        head_dim=8,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "convolutions": transformers.Lfm2Config(
        **COMMON,
        num_hidden_layers=2,
        intermediate_size=64,
        layer_types=["conv", "full_attention"],
        block_auto_adjust_ff_dim=False,
    ),
    "a state beside attention": transformers.FalconH1Config(
        **COMMON, num_hidden_layers=2, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8
    ),
    "a state": transformers.MambaConfig(
        vocab_size=258, hidden_size=32, num_hidden_layers=2, state_size=4, eos_token_id=257, pad_token_id=257
    ),
    "a state in no cache": transformers.RwkvConfig(
        vocab_size=258,
        hidden_size=32,
        num_hidden_layers=2,
        attention_hidden_size=32,
        bos_token_id=256,
        eos_token_id=257,
    ),
    "windows that no cache tells of": transformers.GPTNeoConfig(
        vocab_size=258,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=8,
        initializer_range=0.3,
        eos_token_id=257,
    ),
    "distances over padding": transformers.MptConfig(
        vocab_size=258, d_model=32, n_layers=2, n_heads=4, max_seq_len=512
    ),
    "positions that are counted": transformers.BartConfig(
        vocab_size=258,
        d_model=32,
        decoder_layers=2,
        decoder_attention_heads=4,
        decoder_ffn_dim=64,
        max_position_embeddings=512,
        init_std=0.3,
        is_decoder=True,
        is_encoder_decoder=False,
        eos_token_id=257,
        pad_token_id=257,
    ),
}


def model_of(kind: str) -> PreTrainedModel:
    """A model of one of `KINDS` with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made: PreTrainedModel = transformers.AutoModelForCausalLM.from_config(KINDS[kind])
    made.train(mode=False)
    return made
