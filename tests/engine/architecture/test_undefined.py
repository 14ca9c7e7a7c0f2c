"""Stored tensors that no weight is read from."""

from __future__ import annotations

from typing import Any

import pytest

from tests.builders import llama_config, llama_shapes, make_checkpoint, random_tensors
from wsmerge.engine.architecture import architecture_of, is_derived, undefined_tensors
from wsmerge.engine.architecture.definitions import defined_names, definitions_of
from wsmerge.engine.checkpoint import Checkpoint


def undefined(folder, shapes, config):
    with Checkpoint(make_checkpoint(folder, random_tensors(shapes), config=config)) as checkpoint:
        return undefined_tensors(architecture_of([checkpoint]), checkpoint)


def test_a_plain_model_has_none(tmp_path):
    shapes = llama_shapes(layers=2, tied=False)
    assert undefined(tmp_path / "m", shapes, llama_config(shapes)) == ()


def test_what_is_not_named_is_found(tmp_path):
    shapes = llama_shapes(layers=2)
    config = llama_config(shapes) | {"num_hidden_layers": 1}
    found = undefined(tmp_path / "m", shapes | {"value_head.weight": (1, 16)}, config)
    # The second layer lies behind the number of layers that config.json gives.
    assert set(found) == {name for name in shapes if ".layers.1." in name} | {"value_head.weight"}


def test_buffers_that_transformers_computes_are_no_loss(tmp_path):
    shapes = llama_shapes(layers=1)
    buffers = {"model.layers.0.self_attn.rotary_emb.inv_freq": (8,), "model.rotary_emb.inv_freq": (8,)}
    assert undefined(tmp_path / "m", shapes | buffers, llama_config(shapes)) == ()


def test_gpt2s_masks_are_no_loss_and_aliases_count_as_read(tmp_path):
    config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_layer": 1}
    weights = definitions_of("GPT2LMHeadModel")[0].architecture.modules["default"].layer(config, 0)
    shapes = {weight.aliases[0]: (2, 2) for weight in weights} | {"wte.weight": (4, 2), "ln_f.bias": (2,)}
    assert undefined(tmp_path / "m", shapes | {"h.0.attn.bias": (1,), "h.0.attn.masked_bias": ()}, config) == ()


@pytest.mark.parametrize(
    ("name", "derived"),
    [
        ("transformer.h.11.attn.bias", True),
        ("h.0.attn.masked_bias", True),
        ("h.0.crossattention.bias", True),
        ("gpt_neox.layers.3.attention.bias", True),
        ("gpt_neox.layers.3.attention.masked_bias", True),
        ("gpt_neox.layers.3.attention.rotary_emb.inv_freq", True),
        ("bert.embeddings.position_ids", True),
        ("transformer.h.0.attn.c_attn.bias", False),
        ("gpt_neox.layers.0.attention.dense.bias", False),
        ("model.layers.0.self_attn.q_proj.bias", False),
        ("rotary_emb.inv_freq.weight", False),
        ("xrotary_emb.inv_freq", False),
        ("blocks.0.attn.bias", False),
    ],
)
def test_derived_buffers_by_name(name, derived):
    assert is_derived(name) is derived


def test_no_definition_has_a_weight_that_looks_like_another_ones_buffer():
    counts = ("num_hidden_layers", "n_layer", "num_decoder_layers", "decoder_layers", "encoder_layers")
    config: dict[str, Any] = dict.fromkeys(counts, 1)
    config |= {"text_config": {"num_hidden_layers": 1}, "vision_config": {"num_hidden_layers": 1, "depth": 1}}
    found: dict[str, str] = {}
    for definition in (found for name in defined_names() for found in definitions_of(name)):
        for module in definition.architecture.modules.values():
            weights = (*module.pre(config), *module.layer(config, 0), *module.post(config))
            found |= {weight.name: definition.model_type for weight in weights if is_derived(weight.name)}
    # The definitions of these families take the buffers themselves for weights.
    assert set(found.values()) == {"gpt_neox", "mixformer-sequential", "bert", "roberta"}
    endings = {name.rpartition("layers.0.")[2] for name in found}
    assert endings == {
        "attention.bias",
        "attention.masked_bias",
        "attention.rotary_emb.inv_freq",
        "mixer.rotary_emb.inv_freq",
        "bert.embeddings.position_ids",
        "embeddings.position_ids",
        "roberta.embeddings.position_ids",
    }
