"""Plain PEFT loads a written artifact as it lies, and gives base + 1.0 * w."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tests.builders import llama_config, llama_shapes
from tests.registry.artifacts import about
from tests.sources import MemoryDirection, identity
from wsmerge.core.deltas import LowRankDelta
from wsmerge.registry import Store, write_direction

# peft 0.21 asks transformers 5.23 for a property under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def tiny_llama() -> torch.nn.Module:
    torch.manual_seed(0)
    model: torch.nn.Module = LlamaForCausalLM(LlamaConfig(**llama_config(llama_shapes(layers=2), dtype="float32")))
    return model.eval()


def tiny_gpt2() -> torch.nn.Module:
    torch.manual_seed(0)
    model: torch.nn.Module = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=2, n_head=2))
    return model.eval()


def random_source(model: torch.nn.Module, ranks: dict[str, int]) -> MemoryDirection:
    """A delta for each parameter whose name ends with a key of `ranks`, of that rank and about the base's size."""
    generator = np.random.default_rng(3)
    deltas = {}
    for name, parameter in model.named_parameters():
        rank = next((rank for end, rank in ranks.items() if name.endswith(end)), None)
        if rank is not None:
            rows, columns = parameter.shape
            b, a = generator.standard_normal((rows, rank)), generator.standard_normal((rank, columns))
            deltas[name] = LowRankDelta((0.1 * b).astype(np.float32), (0.1 * a).astype(np.float32))
    return MemoryDirection(deltas, identity({name: delta.shape for name, delta in deltas.items()}))


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.arange(12).reshape(1, 12)).logits
    return found


def check_equal(model: torch.nn.Module, source: MemoryDirection, folder: Path) -> None:
    before, expected = logits(model), copy.deepcopy(model)
    with torch.no_grad():
        for name, delta in source.deltas.items():
            expected.get_parameter(name).add_(torch.from_numpy(delta.dense()))
    adapted: Any = PeftModel.from_pretrained(model, str(folder))
    torch.testing.assert_close(logits(adapted), logits(expected), atol=1e-5, rtol=1e-5)
    merged = dict(adapted.merge_and_unload().named_parameters())
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(merged[name], parameter, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(before, logits(expected))


def test_one_rank(tmp_path):
    model = tiny_llama()
    source = random_source(model, {"q_proj.weight": 3, "down_proj.weight": 3})
    with write_direction(tmp_path / "d", source, about()):
        check_equal(model, source, tmp_path / "d")


def test_ranks_by_module(tmp_path):
    model = tiny_llama()
    source = random_source(model, {"0.self_attn.q_proj.weight": 5, "q_proj.weight": 3, "up_proj.weight": 1})
    with write_direction(tmp_path / "d", source, about()):
        check_equal(model, source, tmp_path / "d")


def test_layers_that_store_inputs_by_outputs(tmp_path):
    model = tiny_gpt2()
    ends = ("attn.c_attn.weight", "mlp.c_proj.weight")
    source = random_source(model, dict(zip(ends, (2, 4), strict=True)))
    layouts = dict.fromkeys(source.deltas, "transposed")
    with write_direction(tmp_path / "d", source, about(layouts=layouts)):
        check_equal(model, source, tmp_path / "d")


def test_an_embedding_that_is_not_tied(tmp_path):
    torch.manual_seed(0)
    config = llama_config(llama_shapes(layers=2, tied=False), dtype="float32")
    model = LlamaForCausalLM(LlamaConfig(**config)).eval()
    source = random_source(model, {"embed_tokens.weight": 2, "v_proj.weight": 3})
    with write_direction(tmp_path / "d", source, about(layouts={"model.embed_tokens.weight": "embedding"})):
        check_equal(model, source, tmp_path / "d")


def test_a_version_in_the_store_is_loaded_as_it_lies(tmp_path):
    model = tiny_llama()
    source = random_source(model, {"v_proj.weight": 2})
    with write_direction(tmp_path / "d", source, about()) as direction:
        entry = Store(tmp_path / "store").publish(direction, name="renamed", version="2.0.0")
    check_equal(model, source, entry.path)
