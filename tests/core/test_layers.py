"""Where a tensor sits, read from its name."""

import pytest

from wsmerge.core.layers import LayerPosition, layer_counts, layer_position, module_of


@pytest.mark.parametrize(
    ("name", "stack", "layer", "module"),
    [
        ("model.layers.7.mlp.up_proj.weight", "model.layers", 7, "mlp.up_proj"),
        ("transformer.h.11.attn.c_attn.bias", "transformer.h", 11, "attn.c_attn"),
        ("h.0.ln_1.weight", "h", 0, "ln_1"),
        ("gpt_neox.layers.3.attention.dense.weight", "gpt_neox.layers", 3, "attention.dense"),
        ("vision_tower.encoder.layer.2.mlp.fc1.weight", "vision_tower.encoder.layer", 2, "mlp.fc1"),
        ("vision.transformer.resblocks.4.ln_1.weight", "vision.transformer.resblocks", 4, "ln_1"),
        ("model.language_model.layers.30.input_layernorm.weight", "model.language_model.layers", 30, "input_layernorm"),
    ],
)
def test_position(name, stack, layer, module):
    assert layer_position(name) == LayerPosition(stack, layer)
    assert module_of(name) == module


def test_an_experts_number_is_no_layer():
    name = "model.layers.3.block_sparse_moe.experts.5.w1.weight"
    assert layer_position(name) == LayerPosition("model.layers", 3)
    assert module_of(name) == "block_sparse_moe.experts.5.w1"


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight", "wte.weight"])
def test_tensors_of_no_layer(name):
    assert layer_position(name) is None


def test_module_of_tensors_of_no_layer():
    assert module_of("model.embed_tokens.weight") == "embed_tokens"
    assert module_of("lm_head.weight") == "lm_head"


def test_each_stack_counts_its_own_layers():
    names = ["model.layers.0.a.weight", "model.layers.2.a.weight", "vision.blocks.5.a.weight", "lm_head.weight"]
    assert layer_counts(names) == {"model.layers": 3, "vision.blocks": 6}
