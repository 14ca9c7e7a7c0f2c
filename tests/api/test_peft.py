"""A published low-rank direction is a PEFT adapter, whatever its base is called in memory: judged by PEFT itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.transformers_weight_conversion import (
    convert_peft_adapter_state_dict_for_transformers,
    convert_peft_config_for_transformers,
)
from safetensors.torch import load_file, save_file

import wsmerge
from tests.architectures.tiny import tiny_config, tiny_model
from tests.builders import llama_shapes, make_adapter, make_checkpoint, random_tensors
from tests.engine.test_names import MODELS, TEXT, VISION
from tests.peft_adapters import quietly
from wsmerge.api.exporting.modules import renamed_modules
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.registry.convert import convert_direction
from wsmerge.registry.hub.partial import partial_direction

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 8, "head_dim": 8}
ARCHITECTURES: dict[str, dict[str, Any]] = MODELS | {
    "Qwen2ForCausalLM": TEXT,
    "Gemma2ForCausalLM": TEXT | {"head_dim": 8},
    "Gemma3ForCausalLM": TEXT | {"head_dim": 8},
    "Phi3ForCausalLM": TEXT,
    "GPTNeoXForCausalLM": {key: value for key, value in TEXT.items() if key != "num_key_value_heads"},
    "OPTForCausalLM": {
        "vocab_size": 40,
        "hidden_size": 16,
        "ffn_dim": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "word_embed_proj_dim": 16,
    },
    "BloomForCausalLM": {"vocab_size": 40, "hidden_size": 16, "n_layer": 2, "n_head": 2},
    "Qwen3MoeForCausalLM": TEXT | EXPERTS | {"num_experts": 4, "mlp_only_layers": [1]},
    "Gemma3ForConditionalGeneration": {"text_config": TEXT | {"head_dim": 8}, "vision_config": VISION},
    "BertForMaskedLM": VISION | {"vocab_size": 40},
    "T5ForConditionalGeneration": {
        "vocab_size": 40,
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 24,
        "num_layers": 2,
        "num_heads": 2,
    },
}
# Classes whose tensors are not called in memory as they are stored, or are stored without the model's prefix.
PREFIXES = {"GPT2LMHeadModel": "transformer.", "LlamaForCausalLM": "model.", "BertForMaskedLM": "bert."}
RENAMED = {"LlavaForConditionalGeneration", "Gemma3ForConditionalGeneration", "Qwen2VLForConditionalGeneration"}
CASES = [
    *((name, "") for name in ARCHITECTURES if not name.startswith("ViT")),
    *PREFIXES.items(),
]


def saved(name: str, folder: Path, prefix: str = "") -> Path:
    """A tiny model as transformers stores it, or without a prefix of its tensors' names, as the Hub has some."""
    model_class = getattr(transformers, name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = quietly(model_class, model_class.config_class(**ARCHITECTURES[name]))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    quietly(model.save_pretrained, folder)
    if prefix:
        file = folder / "model.safetensors"
        save_file({key.removeprefix(prefix): value for key, value in load_file(file).items()}, file, {"format": "pt"})
    return folder


def loaded(name: str, folder: Path) -> Any:
    return quietly(lambda: getattr(transformers, name).from_pretrained(folder, dtype=torch.float32)).eval()


def logits(model: Any) -> torch.Tensor:
    tokens = torch.arange(4, 14).reshape(1, 10)
    more = {"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=tokens, **more).logits
    return found


def trained(name: str, base: Path, folder: Path) -> Path:
    """An adapter of PEFT over all its linear layers; of a mixture of experts over the attention."""
    targets: Any = ATTENTION if {"num_experts", "num_local_experts"} & ARCHITECTURES[name].keys() else "all-linear"
    model = quietly(get_peft_model, loaded(name, base), LoraConfig(r=2, lora_alpha=3, target_modules=targets))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    quietly(model.save_pretrained, folder)
    return folder


@pytest.mark.parametrize(("name", "prefix"), CASES)
def test_peft_loads_the_artifact_and_gives_the_merged_checkpoint(name, prefix, tmp_path):
    base = saved(name, tmp_path / "base", prefix)
    adapter = trained(name, base, tmp_path / "adapter")
    artifact = tmp_path / "artifact"
    with wsmerge.extract("kind", base=base, positive=adapter, to=artifact, check_base_names=False) as direction:
        stored = load_file(base / "model.safetensors")
        assert set(direction.shapes) <= set(stored)
        assert direction.payload.adapter
        renamed = [row for row in direction.manifest.tensors if "module" in row.model_fields_set]
        assert bool(renamed) == (bool(prefix) or name in RENAMED)
    recipe = {"base_model": str(base), "directions": [{"direction": str(artifact), "weight": 1}]}
    wsmerge.merge(recipe | {"out_dtype": "float32"}, tmp_path / "merged")

    merged = logits(loaded(name, tmp_path / "merged"))
    adapted = quietly(PeftModel.from_pretrained, loaded(name, base), str(artifact))
    scale = merged.abs().max()
    torch.testing.assert_close(logits(adapted) / scale, merged / scale, atol=1e-5, rtol=0)
    trained_with = quietly(PeftModel.from_pretrained, loaded(name, base), str(adapter))
    torch.testing.assert_close(logits(trained_with) / scale, merged / scale, atol=1e-5, rtol=0)
    assert (logits(loaded(name, base)) - merged).abs().max() > 0.01 * scale


def test_names_in_memory_go_with_compositions_parts_and_conversions(tmp_path):
    """The base is not at hand then."""
    name = "GPT2LMHeadModel"
    base = saved(name, tmp_path / "base", "transformer.")
    adapter = trained(name, base, tmp_path / "adapter")
    wsmerge.extract("kind", base=base, positive=adapter, to=tmp_path / "kind", check_base_names=False).close()
    wsmerge.compose("half", {str(tmp_path / "kind"): 0.5}, to=tmp_path / "half").close()
    with wsmerge.open_direction(tmp_path / "kind") as direction:
        part = partial_direction(direction, layers="1")
        assert set(part.about("part").modules.values()) == {
            f"transformer.h.1.{module}" for module in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        }
        with convert_direction(direction, tmp_path / "zarr", "zarr") as packed:
            convert_direction(packed, tmp_path / "again", "safetensors").close()
    for file in ("adapter_model.safetensors", "adapter_config.json", "direction.json"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "kind" / file).read_bytes()
    model = quietly(PeftModel.from_pretrained, loaded(name, base), str(tmp_path / "half"))
    before = loaded(name, base).state_dict()
    half = model.merge_and_unload().state_dict()
    with wsmerge.open_direction(tmp_path / "kind") as direction:
        for tensor, shape in direction.shapes.items():
            delta = (half[f"transformer.{tensor}"] - before[f"transformer.{tensor}"]).numpy()
            assert delta.shape == shape
            np.testing.assert_allclose(delta, 0.5 * direction.delta(tensor).dense(), atol=1e-6)


@pytest.mark.parametrize(
    "name", ["Qwen3MoeForCausalLM", "MixtralForCausalLM", "LlavaForConditionalGeneration", "LagunaForCausalLM"]
)
def test_modules_whose_factors_peft_loses_are_told_to_be_none(name, tmp_path):
    """Those that it takes for experts, and those whose keys it renames although they are named as in memory; no others."""
    base = tmp_path / "base"
    if name in ARCHITECTURES:
        saved(name, base)
    else:
        quietly(tiny_model(name, tiny_config("laguna", name), 0).save_pretrained, base)
    model = loaded(name, base)
    linear = {module for module, item in model.named_modules() if isinstance(item, torch.nn.Linear)}
    config = LoraConfig(target_modules=sorted(linear))
    convert_peft_config_for_transformers(config, model, None)
    keys = {f"base_model.model.{module}.lora_A.weight": module for module in sorted(config.target_modules or ())}
    renamed = convert_peft_adapter_state_dict_for_transformers(model, config, dict.fromkeys(keys, torch.zeros(1, 1)))
    kept = {keys[key] for key in renamed.keys() & keys.keys()}
    with Checkpoint(base) as checkpoint:
        weights = [tensor for tensor, spec in checkpoint.specs.items() if len(spec.shape) == 2]
        told = renamed_modules(checkpoint, dict.fromkeys(weights, "linear"))
    known = {told.get(tensor, tensor.removesuffix(".weight")) for tensor in weights}
    assert linear & known == kept
    assert (kept < linear) == (name in ("Qwen3MoeForCausalLM", "LagunaForCausalLM"))


def test_factors_that_no_module_has_are_stored_as_they_are_and_said_to_be_no_adapter(tmp_path):
    """An adapter of the days when experts were modules, over the tensors as they are stored."""
    name = "Qwen3MoeForCausalLM"
    base = saved(name, tmp_path / "base")
    stored = load_file(base / "model.safetensors")
    shapes = {key: tuple(value.shape) for key, value in stored.items() if ".experts.1.down_proj" in key}
    adapter = make_adapter(tmp_path / "adapter", shapes)
    command = [sys.executable, "-m", "wsmerge", "extract", "kind", "--base", str(base), "--positive", str(adapter)]
    done = subprocess.run(
        [*command, "--any-base-name", "--out", str(tmp_path / "kind")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "its files are no PEFT adapter" in done.stderr
    assert sorted(path.name for path in (tmp_path / "kind").iterdir()) == [
        "README.md",
        "direction.json",
        "direction.safetensors",
        "meta.yaml",
    ]
    rows = json.loads((tmp_path / "kind" / "direction.json").read_text())["tensors"]
    assert {row["name"]: (row["rank"] is not None, row["module"]) for row in rows} == dict.fromkeys(
        shapes, (True, None)
    )
    recipe = {"base_model": str(base), "directions": [{"direction": str(tmp_path / "kind"), "weight": 1}]}
    wsmerge.merge(recipe | {"out_dtype": "float32"}, tmp_path / "merged")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    with wsmerge.open_direction(tmp_path / "kind") as direction:
        for key, shape in shapes.items():
            delta = direction.low_rank(key).elements(0, stored[key].numel()).reshape(shape)
            np.testing.assert_allclose(merged[key].numpy(), stored[key].double().numpy() + delta, rtol=1e-6)


def test_a_base_that_is_named_in_memory_as_it_is_stored_needs_no_transformers(tmp_path):
    shapes = llama_shapes(layers=1)
    base = make_checkpoint(tmp_path / "base", random_tensors(shapes))
    adapter = make_adapter(tmp_path / "adapter", {key: shape for key, shape in shapes.items() if "up_proj" in key})
    code = (
        "import sys, wsmerge\n"
        "base, adapter, out = sys.argv[1:]\n"
        "wsmerge.extract('kind', base=base, positive=adapter, to=out, check_base_names=False).close()\n"
        "print(*{'torch', 'transformers', 'peft'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, base, adapter, tmp_path / "out"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []
