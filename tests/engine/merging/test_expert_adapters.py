"""Adapters of experts that transformers stacks in memory, judged by what PEFT merges."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file

import wsmerge
from tests.builders import make_adapter
from tests.engine.architecture.live import mergekit
from tests.peft_adapters import quietly, save_adapter
from wsmerge.core.reading import tensor_values
from wsmerge.engine.adapter import Adapter
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.errors import AdapterError, CheckpointError

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
pytestmark = pytest.mark.slow
MODELS: dict[str, dict[str, Any]] = {
    "MixtralForCausalLM": SIZES | {"num_local_experts": 3},
    "Qwen3MoeForCausalLM": SIZES | {"num_experts": 11, "moe_intermediate_size": 8, "decoder_sparse_step": 1},
    "GptOssForCausalLM": SIZES | {"num_local_experts": 3},
}
STACKS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
SETTINGS: dict[str, dict[str, Any]] = {
    "experts": {"target_modules": ["q_proj"], "target_parameters": STACKS, "lora_alpha": 5},
    "one of two": {"target_modules": [], "target_parameters": STACKS[1:], "use_rslora": True},
    "ranks": {
        "target_modules": ["q_proj"],
        "target_parameters": STACKS,
        "rank_pattern": {r".*\.gate_up_proj": 3},
        "alpha_pattern": {"layers.1.mlp.experts.down_proj": -1},
    },
}


@pytest.fixture(scope="module", autouse=True)
def _mergekit() -> None:
    mergekit("architecture.auto")  # warns when it is first imported


@pytest.fixture(scope="module", params=MODELS)
def base(request, tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp(request.param)
    model_class = getattr(transformers, request.param)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(model_class.config_class(**MODELS[request.param]))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(folder)
    return folder


def narrowed(base: Path, folder: Path) -> Path:
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    quietly(model.save_pretrained, folder)
    return folder


def merged_by_peft(base: Path, adapter: Path, dtype) -> dict[str, torch.Tensor]:
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    merged: dict[str, torch.Tensor] = quietly(
        quietly(PeftModel.from_pretrained, model, adapter).merge_and_unload
    ).state_dict()
    return merged


def merged(base: Path, adapter: Path, out: Path) -> dict[str, torch.Tensor]:
    wsmerge.merge({"merge_method": "passthrough", "models": [{"model": f"{base}+{adapter}"}]}, out)
    state: dict[str, torch.Tensor] = transformers.AutoModelForCausalLM.from_pretrained(out).state_dict()
    return state


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        found = ours[name]
        assert found.dtype == expected.dtype
        unit = torch.finfo(expected.dtype).eps * expected.abs().max()
        assert (found - expected).abs().max() <= unit, name
        # The order in which a processor sums ranks shows in few elements; rounding once in place of twice in many.
        assert expected.dtype == torch.float32 or (found != expected).float().mean() < 0.01, name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_parameters_of_stacked_experts(base, tmp_path, settings, dtype):
    adapter = save_adapter(base, tmp_path / "adapter", LoraConfig(r=2, **SETTINGS[settings]))
    held = base if dtype == "float32" else narrowed(base, tmp_path / "base")
    ours = merged(held, adapter, tmp_path / "out")
    assert_same(ours, merged_by_peft(held, adapter, getattr(torch, dtype)))
    before = transformers.AutoModelForCausalLM.from_pretrained(held).state_dict()
    changed = {name for name, value in ours.items() if not torch.equal(value, before[name])}
    assert any("experts.down_proj" in name for name in changed)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_router_that_peft_adapts_as_a_parameter(base, tmp_path, dtype):
    if "GptOss" in base.name:
        pytest.skip("its router is called otherwise")
    adapter = save_adapter(base, tmp_path / "adapter", LoraConfig(r=2, target_modules=["gate", "v_proj"]))
    held = base if dtype == "float32" else narrowed(base, tmp_path / "base")
    assert_same(merged(held, adapter, tmp_path / "out"), merged_by_peft(held, adapter, getattr(torch, dtype)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_adapter_an_expert(base, tmp_path, dtype):
    shapes = {
        name: tuple(value.shape)
        for name, value in load_file(base / "model.safetensors").items()
        if ".experts." in name and name.endswith(".weight")
    }
    if not shapes:
        pytest.skip("its experts were never stored one by one")
    targets = sorted({name.split(".")[-2] for name in shapes})
    adapter = make_adapter(tmp_path / "adapter", shapes, rank=2, alpha=3, config={"target_modules": targets})
    held = base if dtype == "float32" else narrowed(base, tmp_path / "base")
    assert_same(merged(held, adapter, tmp_path / "out"), merged_by_peft(held, adapter, getattr(torch, dtype)))


def test_a_single_expert(base, tmp_path):
    shapes = {
        name: tuple(value.shape)
        for name, value in load_file(base / "model.safetensors").items()
        if "layers.1." in name and ".experts.1." in name
    }
    if not shapes:
        pytest.skip("its experts were never stored one by one")
    adapter = make_adapter(tmp_path / "adapter", shapes)
    wsmerge.merge({"merge_method": "passthrough", "models": [{"model": f"{base}+{adapter}"}]}, tmp_path / "out")
    ours = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    before = transformers.AutoModelForCausalLM.from_pretrained(base).state_dict()
    for name, value in ours.items():
        differs = (value != before[name]).reshape(len(value), -1).any(1)
        changes = "layers.1.mlp.experts" in name
        assert differs.tolist() == [changes and expert == 1 for expert in range(len(value))], name


def test_deltas_of_experts_that_are_stored_one_by_one(base, tmp_path):
    adapter = save_adapter(base, tmp_path / "adapter", LoraConfig(r=2, **SETTINGS["ranks"]))
    with Checkpoint(base) as checkpoint:
        if "GptOss" in base.name:
            with pytest.raises(AdapterError, match="stacked experts"):
                Adapter(adapter, checkpoint)
            return
        wsmerge.merge({"merge_method": "passthrough", "models": [{"model": f"{base}+{adapter}"}]}, tmp_path / "out")
        with Adapter(adapter, checkpoint) as opened:
            names = [name for name in checkpoint.specs if opened.rank(name) is not None]
            assert sum(".experts." in name for name in names) == sum(".experts." in name for name in checkpoint.specs)
            deltas = {name: opened.low_rank(name).dense() for name in names}
        stored = {name: tensor_values(checkpoint, name, 0, checkpoint.specs[name].numel) for name in names}
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    wanted = quietly(quietly(PeftModel.from_pretrained, model, adapter).merge_and_unload)
    quietly(wanted.save_pretrained, tmp_path / "theirs")
    for name, theirs in load_file(tmp_path / "theirs" / "model.safetensors").items():
        if name in deltas:
            expected = theirs.numpy().reshape(-1) - stored[name]
            np.testing.assert_allclose(deltas[name].reshape(-1), expected, rtol=0, atol=1e-8)


def test_factors_of_another_number_of_experts_are_refused(base, tmp_path):
    adapter = save_adapter(base, tmp_path / "adapter", LoraConfig(r=2, **SETTINGS["experts"]))
    other = tmp_path / "other"
    model_class = getattr(transformers, base.name.rstrip("0123456789"))
    sizes = MODELS[model_class.__name__]
    fewer = {key: 2 for key in ("num_experts", "num_local_experts") if key in sizes}
    model_class(model_class.config_class(**sizes | fewer | {"num_experts_per_tok": 2})).save_pretrained(other)
    with pytest.raises(CheckpointError) as caught:
        wsmerge.plan({"merge_method": "passthrough", "models": [{"model": f"{other}+{adapter}"}]})
    assert "in memory" in str(caught.value)
