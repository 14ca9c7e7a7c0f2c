"""Steering of models whose tensors are stored under other names than they have in memory, against PEFT."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

import wsmerge
from tests.peft_adapters import quietly
from tests.steering.test_steer import bits
from wsmerge.errors import BaseMismatchError, RecipeError

TEXT: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "patch_size": 4}


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=8))


def llava() -> PreTrainedModel:
    text = LlamaConfig(vocab_size=40, num_key_value_heads=2, **TEXT)
    vision = CLIPVisionConfig(num_hidden_layers=2, image_size=8, **VISION)
    return LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=vision, image_token_index=3))


def gemma3() -> PreTrainedModel:
    text: dict[str, Any] = {
        "vocab_size": 40,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 16,
        **TEXT,
    }
    vision: dict[str, Any] = {"num_hidden_layers": 3, "image_size": 8, **VISION}
    return Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4))


MODELS = {
    "gpt2": (gpt2, ["c_attn", "c_fc"], "h.1.mlp.c_fc.weight"),
    "llava": (llava, ["q_proj", "up_proj"], "language_model.model.layers.1.mlp.up_proj.weight"),
    "gemma3": (gemma3, ["q_proj", "fc1"], "language_model.model.layers.1.self_attn.q_proj.weight"),
}


def saved(make, folder: Path) -> PreTrainedModel:
    torch.manual_seed(0)
    model = make()
    model.save_pretrained(folder)
    if make is gpt2:  # as on the Hub
        file = folder / "model.safetensors"
        tensors = {name.removeprefix("transformer."): value for name, value in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    loaded: PreTrainedModel = type(model).from_pretrained(folder)
    return loaded.eval()  # type: ignore[no-any-return]  # transformers ships no type for it


@pytest.mark.parametrize("name", MODELS)
def test_a_model_under_its_names_in_memory(tmp_path, name):
    make, targets, stored = MODELS[name]
    model = saved(make, tmp_path / "base")
    config = LoraConfig(r=2, lora_alpha=3, target_modules=targets, init_lora_weights=False)
    quietly(get_peft_model, copy.deepcopy(model), config).save_pretrained(tmp_path / "plus")
    merged = quietly(PeftModel.from_pretrained, copy.deepcopy(model), str(tmp_path / "plus")).merge_and_unload()
    wanted, original = merged.state_dict(), bits(model)

    with wsmerge.extract("d", base=tmp_path / "base", positive=tmp_path / "plus", to=tmp_path / "d") as direction:
        assert stored in direction.shapes
        with wsmerge.steer(model, {direction: 1.0}):
            for key, value in model.state_dict().items():
                torch.testing.assert_close(value, wanted[key], rtol=0, atol=1e-6)
        assert bits(model) == original

        with wsmerge.steerable(model, {"d": direction}) as steering:
            steering.set({"d": {1: 1.0}})  # layers are counted as in the checkpoint, in each of its stacks
            for key, value in model.state_dict().items():
                theirs = wanted[key] if ".1." in key else merged_less(original, model, key)
                torch.testing.assert_close(value, theirs, rtol=0, atol=1e-6)
            with pytest.raises(RecipeError, match="layers 7"):
                steering.set({"d": {7: 1.0}})
        assert bits(model) == original


def merged_less(original: dict[str, bytes], model: torch.nn.Module, key: str) -> torch.Tensor:
    """The tensor `key` as it was at first."""
    now = model.state_dict()[key]
    return torch.frombuffer(bytearray(original[key]), dtype=now.dtype).reshape(now.shape)


def test_what_transformers_makes_of_several_tensors_is_refused_in_words(tmp_path):
    config = MixtralConfig(vocab_size=40, num_key_value_heads=2, num_local_experts=2, **TEXT)
    model = saved(lambda: MixtralForCausalLM(config), tmp_path / "base")
    original = bits(model)
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(1.0)
    moved.save_pretrained(tmp_path / "plus")
    with (
        wsmerge.extract("d", base=tmp_path / "base", positive=tmp_path / "plus", to=tmp_path / "d") as direction,
        pytest.raises(BaseMismatchError, match=r"experts\.0\.w1.*is part of model\.layers\.0\.mlp\.experts\.gate_up"),
        wsmerge.steer(model, {direction: 1.0}),
    ):
        pass
    assert bits(model) == original
