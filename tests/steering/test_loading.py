"""Models that cannot be loaded whole, and what is said of them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

from tests.steering.tiny import save_tiny_base, tiny_model, tiny_tokenizer
from wsmerge.errors import CheckpointError, UsageError
from wsmerge.steering.evaluation import generate
from wsmerge.steering.loading import chosen_device, load_model, load_tokenizer
from wsmerge.steering.training.models import _stored_dtype


def changed(folder: Path, **settings: object) -> Path:
    file = save_tiny_base(folder) / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    return folder


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "compressed-tensors", "aqlm", "made-up"])
def test_a_quantised_base_without_its_library(tmp_path, method):
    settings = {"quant_method": method, "bits": 4, "load_in_4bit": True}
    with pytest.raises(CheckpointError, match=f"is quantised .{method}.") as caught:
        load_model(changed(tmp_path / "base", quantization_config=settings), device="cpu")
    assert "plain floats" in str(caught.value.hint)


@pytest.mark.parametrize(
    "settings", [{"hidden_size": 48}, {"model_type": "new", "architectures": ["New"]}, {"num_attention_heads": 0}]
)
def test_a_configuration_of_another_model(tmp_path, settings):
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_model(changed(tmp_path / "base", **settings), device="cpu")


def test_parameters_without_values_are_not_drawn_at_random(tmp_path):
    base = save_tiny_base(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"no values for 1 .*layers\.1\.mlp\.up_proj"):
        load_model(base, device="cpu")


def test_devices(monkeypatch):
    assert chosen_device("cuda:1") == "cuda:1"
    for found, name in ((torch.device("mps"), "mps"), (torch.device("cuda", 0), "cuda"), (None, "cpu")):
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda found=found, **_: found)
        assert chosen_device("auto") == name
    with pytest.raises(UsageError, match="is no device"):
        chosen_device("gpu")


def test_a_vision_language_model_is_loaded_and_answers_text(tmp_path):
    vision = CLIPVisionConfig(
        hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    config = LlavaConfig(text_config=tiny_model().config, vision_config=vision, image_token_index=200)
    LlavaForConditionalGeneration(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model, tokenizer = load_model(tmp_path, device="cpu"), load_tokenizer(tmp_path)
    assert type(model) is LlavaForConditionalGeneration
    assert len(generate(model, tokenizer, ["Is it?"], max_new_tokens=3)) == 1


CODE = {
    "config.json": {
        "model_type": "strange",
        "architectures": ["Strange"],
        "auto_map": {"AutoConfig": "strange.Config", "AutoModelForCausalLM": "strange.Model"},
    },
    "tokenizer_config.json": {"tokenizer_class": "Strange", "auto_map": {"AutoTokenizer": ["strange.Tokenizer", None]}},
}


@pytest.mark.parametrize("load", [load_model, load_tokenizer, _stored_dtype])
def test_no_code_of_a_model_runs_nor_is_anybody_asked(tmp_path, monkeypatch, load):
    """transformers asks on standard input, which may be a pipe of questions, one of which begins with y."""
    for name, fields in CODE.items():
        (tmp_path / name).write_text(json.dumps(fields))
    (tmp_path / "strange.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda prompt="": (asked.append(prompt), "y")[1])  # type: ignore[func-returns-value]
    with pytest.raises((CheckpointError, ValueError), match=r"no code of a model runs here|trust_remote_code"):
        load(tmp_path)
    assert asked == []
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_that_fails_in_any_way_is_told(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="holds no tokenizer that can be loaded"):
        load_tokenizer(tmp_path)
