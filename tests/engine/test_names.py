"""Names in memory and stored names, judged by what transformers loads."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.peft_adapters import quietly
from wsmerge.engine.names import CheckpointNames, ModelNames, empty_model
from wsmerge.errors import CheckpointError

TEXT = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
QWEN_VISION = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "patch_size": 4}
MODELS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": TEXT,
    "GPT2LMHeadModel": {
        "vocab_size": 40,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "bos_token_id": 0,
        "eos_token_id": 1,
    },
    "MixtralForCausalLM": TEXT | {"num_local_experts": 3},
    "Qwen3MoeForCausalLM": TEXT
    | {"num_experts": 11, "moe_intermediate_size": 8, "decoder_sparse_step": 1, "head_dim": 8},
    "Qwen2VLForConditionalGeneration": {
        "text_config": TEXT
        | {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}},
        "vision_config": QWEN_VISION,
    },
    "LlavaForConditionalGeneration": {
        "text_config": TEXT | {"model_type": "llama"},
        "vision_config": VISION | {"model_type": "clip_vision_model"},
    },
    "ViTForImageClassification": VISION,
}


def built(name, tmp_path):
    """A saved model whose tensors are all told apart by their values, its configuration, and its stored tensors."""
    model_class = getattr(transformers, name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = quietly(model_class, model_class.config_class(**MODELS[name]))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    return model_class, model.config.to_dict() | {"architectures": [name]}, load_file(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "prefix"),
    [*((name, "") for name in MODELS), ("GPT2LMHeadModel", "transformer."), ("MixtralForCausalLM", "model.")],
)
def test_each_parameter_is_made_of_what_transformers_loads_it_from(name, prefix, tmp_path):
    model_class, config, stored = built(name, tmp_path)
    if prefix:  # as the Hub has GPT-2
        stored = {key.removeprefix(prefix): value for key, value in stored.items()}
        save_file(stored, tmp_path / "model.safetensors", {"format": "pt"})
    loaded = model_class.from_pretrained(tmp_path).state_dict()
    names = ModelNames(empty_model(config, name), stored)

    assert {source for sources in names.sources.values() for source in sources} == set(stored)
    for parameter, sources in names.sources.items():
        held = sorted(loaded[parameter].flatten().tolist())
        assert held == sorted(torch.cat([stored[source].flatten() for source in sources]).tolist()), parameter
        if parameter not in names.converted:
            assert names.stored(parameter) == sources[0]
            assert names.in_memory(sources[0]) == parameter
            assert np.array_equal(loaded[parameter], stored[sources[0]])
        else:
            assert names.stored(parameter) is None
    untold = set(loaded) - set(names.sources)
    assert all("lm_head" in parameter for parameter in untold), untold  # GPT-2 ties it


def test_a_wrapped_model_is_looked_through(tmp_path):
    _, config, stored = built("LlavaForConditionalGeneration", tmp_path)
    model = empty_model(config, "llava")
    wrapped = torch.nn.DataParallel(model)
    names = ModelNames(wrapped, stored, parameters=model.state_dict())
    assert names.sources == ModelNames(model, stored).sources


def test_names_in_memory_are_found_in_a_checkpoint(tmp_path):
    _, config, stored = built("Qwen2VLForConditionalGeneration", tmp_path)
    names = CheckpointNames(stored, config)
    assert names.find("model.language_model.layers.0.mlp.up_proj.weight") == "model.layers.0.mlp.up_proj.weight"
    assert names.find("model.visual.blocks.0.attn.qkv.weight") == "visual.blocks.0.attn.qkv.weight"
    assert names.find("model.language_model.layers.9.mlp.up_proj.weight") is None
    assert CheckpointNames(stored).find("model.language_model.layers.0.mlp.up_proj.weight") is None


@pytest.mark.parametrize("name", ["Qwen2VLForConditionalGeneration", "LlavaForConditionalGeneration"])
def test_names_of_another_layout_are_found_in_a_checkpoint_of_names_in_memory(name, tmp_path):
    _, config, stored = built(name, tmp_path)
    loaded = ModelNames(empty_model(config, name), stored)
    names = CheckpointNames(loaded.sources, config)  # as transformers 4.52 and later saved them for a time
    for parameter, (source,) in loaded.sources.items():
        assert names.find(source) == parameter


def test_models_that_transformers_does_not_have_are_none():
    assert empty_model({"architectures": ["NoSuchModel"], "model_type": "llama"}, "x") is None
    assert empty_model({"architectures": 5}, "x") is None
    with pytest.raises(CheckpointError, match="makes no model"):
        empty_model({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": "wide"}, "x")
    broken = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": "wide"}
    assert CheckpointNames(["a.weight"], broken).find("b.weight") is None
