"""A Llama of two layers with a byte tokenizer, small enough to train inside a test."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKERS = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and ChatML's two markers."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **MARKERS)
    wrapped.chat_template = TEMPLATE
    return wrapped


def tiny_model(*, seed: int = 0, attention_bias: bool = False) -> LlamaForCausalLM:
    """Random weights, large enough that different prompts give clearly different logits."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=258,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            initializer_range=0.3,
            attention_bias=attention_bias,
            bos_token_id=256,
            eos_token_id=257,
            pad_token_id=257,
        )
        model = LlamaForCausalLM(config)
        model.train(mode=False)
        return model


def save_tiny_base(folder: Path) -> Path:
    """Write a checkpoint folder with model and tokenizer."""
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
