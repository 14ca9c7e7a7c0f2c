"""Every adapter that is no plain LoRA over its base is refused, with the reason and all at once."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig

from tests.builders import llama_shapes, make_adapter, make_checkpoint, random_tensors, write_tensor_file
from wsmerge.core.dtypes import F32, dtype_named
from wsmerge.core.tensor_file import TensorFile
from wsmerge.engine.adapter import Adapter
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.engine.lora_settings import LoraSettings, Refusals
from wsmerge.errors import AdapterError, CheckpointError, TensorFileError


@pytest.fixture
def base(tmp_path) -> Path:
    return make_checkpoint(tmp_path / "base", random_tensors(llama_shapes()))


UP = {"model.layers.1.mlp.up_proj.weight": (24, 16)}


def refused(base: Path, folder: Path) -> AdapterError:
    with Checkpoint(base) as checkpoint, pytest.raises(AdapterError) as caught:
        Adapter(folder, checkpoint)
    return caught.value


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"use_dora": True}, "not linear in its factors"),
        ({"peft_type": "LOHA"}, "only LORA"),
        ({"alora_invocation_tokens": [1]}, "some tokens only"),
        ({"use_qalora": True}, "pools"),
        ({"use_bdlora": {"nblocks": 2}}, "block-diagonal"),
        ({"kasa_config": {"beta": 1}}, "KaSA"),
        ({"monteclora_config": {"num_samples": 2}}, "samples"),
        ({"velora_config": {"num_groups": 2}}, "VeLoRA"),
        ({"arrow_config": {"top_k": 2}}, "routes"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layers that the base does not have"),
        ({"lora_bias": True}, "bias beside"),
        ({"trainable_token_indices": [1, 2]}, "single rows"),
        ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "olora"}, "changed the base"),
        ({"init_lora_weights": "corda"}, "changed the base"),
        ({"init_lora_weights": "loftq"}, "changed the base"),
        ({"init_lora_weights": "lora_ga"}, "changed the base"),
        ({"some_later_invention": {"x": 1}}, "not known to this version"),
        ({"r": 3}, "rank 2, and adapter_config.json says 3"),
        ({"r": 0}, "no positive whole number"),
        ({"lora_alpha": math.nan}, "no finite number"),
        ({"alpha_pattern": {"(": 3}}, "no regular expression"),
        ({"rank_pattern": {"up_proj": 1.5}}, "no positive whole number"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_are_no_plain_lora_are_refused(tmp_path, base, settings, reason):
    error = refused(base, make_adapter(tmp_path / "adapter", UP, config=settings))
    assert reason in str(error)
    assert next(iter(settings)) in str(error) or "rank" in reason
    assert error.hint


def test_every_setting_of_the_installed_peft_is_known():
    harmless = {field.name for field in dataclasses.fields(LoraConfig)}
    problems = Refusals()
    LoraSettings(dict.fromkeys(harmless, "x") | {"peft_type": "LORA"}, problems)
    assert not [line for line in problems.lines if "not known to this version" in line]


@pytest.mark.parametrize(
    ("key", "shape", "reason"),
    [
        ("model.layers.1.mlp.up_proj.lora_magnitude_vector", (24,), "DoRA"),
        ("model.layers.1.mlp.up_proj.lora_B.bias", (24,), "lora_bias"),
        ("model.embed_tokens.token_adapter.trainable_tokens_delta", (2, 16), "trainable tokens"),
        ("model.layers.1.mlp.up_proj.lora_diag", (2,), "has no model.layers.1.mlp.up_proj.lora_diag"),
        ("model.layers.1.mlp.gate_proj.lora_A.weight", (2, 16), "not one pair of factors"),
        ("model.layers.1.self_attn.q_proj.lora_A.default.weight", (2, 16), "not one pair of factors"),
        ("model.norm.weight", (17,), "[17], and model.norm.weight of the base is [16]"),
        ("score.weight", (2, 16), "has no score.weight"),
    ],
)
def test_keys_that_are_no_plain_lora_are_refused(tmp_path, base, key, shape, reason):
    folder = make_adapter(tmp_path / "adapter", UP)
    with TensorFile(folder / "adapter_model.safetensors") as file:
        read = {name: (F32, np.frombuffer(file.read(name), "<f4").reshape(s.shape)) for name, s in file.specs.items()}
    extra = {f"base_model.model.{key}": (F32, np.ones(shape, np.float32))}
    write_tensor_file(folder / "adapter_model.safetensors", read | extra)
    assert reason in str(refused(base, folder))


def factors(a, b, *, module="model.layers.1.mlp.up_proj", dtype=F32):
    prefix = f"base_model.model.{module}"
    return {
        f"{prefix}.lora_A.weight": (dtype, np.ones(a, dtype.storage)),
        f"{prefix}.lora_B.weight": (dtype, np.ones(b, dtype.storage)),
    }


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        (factors((2, 16), (24, 3)), "do not multiply"),
        (factors((2, 16, 3, 3), (24, 2, 1, 1)), "convolution"),
        (factors((2, 15), (24, 2)), "make [24, 15], and model.layers.1.mlp.up_proj.weight of the base is [24, 16]"),
        (factors((2, 16), (24, 2), dtype=dtype_named("int8")), "no plain floats"),
        (factors((2, 16), (24, 2), module="model.layers.9.mlp.up_proj"), "near: model.layers."),
        (factors((2, 16), (24, 2)) | factors((2, 16), (24, 2), module="layers.1.mlp.up_proj"), "stands for"),
        ({}, "changes nothing"),
    ],
)
def test_factors_that_do_not_fit_are_refused(tmp_path, base, tensors, reason):
    folder = make_adapter(tmp_path / "adapter", UP)
    write_tensor_file(folder / "adapter_model.safetensors", tensors)
    assert reason in str(refused(base, folder))


def test_all_problems_at_once(tmp_path, base):
    shapes = UP | {"model.layers.7.mlp.up_proj.weight": (24, 16), "model.layers.0.mlp.up_proj.weight": (24, 17)}
    error = refused(
        base, make_adapter(tmp_path / "adapter", shapes, config={"use_dora": True, "layer_replication": [[0, 1]]})
    )
    assert len(error.details) == 4


def test_a_pickled_adapter_that_holds_more_than_tensors_is_refused(tmp_path, base):
    folder = make_adapter(tmp_path / "adapter", UP)
    (folder / "adapter_model.safetensors").unlink()
    torch.save({"base_model.model.a": torch.ones(1), "run": Path("x")}, folder / "adapter_model.bin")
    with Checkpoint(base) as checkpoint, pytest.raises(TensorFileError, match="only tensors are read") as caught:
        Adapter(folder, checkpoint)
    assert "adapter_model.bin" in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "settings", "keys"),
    [
        ("lm_head", {"ensure_weight_tying": True}, ("lm_head.weight", "model.embed_tokens.weight")),
        ("embed_tokens", {}, ("lm_head.weight", "model.embed_tokens.weight")),
    ],
)
def test_two_versions_of_tied_embeddings_are_refused_for_a_merge_too(tmp_path, base, name, settings, keys):
    folder = make_adapter(tmp_path / "adapter", {}, config=settings | {"target_modules": [name]})
    tensors = {f"base_model.model.{key}": (F32, np.full((40, 16), value, "<f4")) for value, key in enumerate(keys)}
    write_tensor_file(folder / "adapter_model.safetensors", tensors)
    with Checkpoint(base) as checkpoint, pytest.raises(AdapterError, match="two versions of it"):
        Adapter(folder, checkpoint, for_merging=True)


def test_folders_that_hold_no_adapter(tmp_path, base):
    assert "holds no adapter_config.json" in str(refused(base, base))
    folder = make_adapter(tmp_path / "adapter", UP)
    (folder / "adapter_model.safetensors").unlink()
    assert "holds no adapter_model.safetensors" in str(refused(base, folder))


def test_a_truncated_adapter(tmp_path, base):
    folder = make_adapter(tmp_path / "adapter", UP)
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with Checkpoint(base) as checkpoint, pytest.raises(TensorFileError, match="truncated"):
        Adapter(folder, checkpoint)


def test_a_rank_that_is_no_number_is_told_once(tmp_path, base):
    shapes = UP | {"model.layers.0.mlp.up_proj.weight": (24, 16)}
    error = refused(base, make_adapter(tmp_path / "adapter", shapes, config={"r": 0}))
    assert error.details == ("r: 0 is no positive whole number",)


@pytest.mark.parametrize(
    ("shapes", "settings", "merge", "base_hint"),
    [
        ({"model.layers.9.mlp.up_proj.weight": (24, 16)}, {}, False, True),
        ({"model.layers.1.mlp.up_proj.weight": (24, 17)}, {}, False, True),
        (UP, {"r": 3}, False, False),
        (UP, {"use_dora": True}, True, False),
        ({"model.layers.9.mlp.up_proj.weight": (24, 16)}, {"use_dora": True}, True, True),
    ],
)
def test_the_advice_is_about_what_was_found(tmp_path, base, shapes, settings, merge, base_hint):
    hint = str(refused(base, make_adapter(tmp_path / "adapter", shapes, config=settings)).hint)
    assert ("merge_and_unload" in hint) is merge
    assert ("give the base that it was trained over" in hint) is base_hint


@pytest.mark.parametrize("text", ["{", "[]"])
def test_settings_that_are_no_json_object_have_a_next_step(tmp_path, base, text):
    folder = make_adapter(tmp_path / "adapter", UP)
    (folder / "adapter_config.json").write_text(text)
    with Checkpoint(base) as checkpoint, pytest.raises(CheckpointError, match="JSON") as caught:
        Adapter(folder, checkpoint)
    assert caught.value.hint


def test_a_module_that_is_only_made_on_loading_is_told_as_such(tmp_path):
    """NomicBert's projections are one stored tensor; no factors of one of them are a tensor's."""
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    model = transformers.NomicBertModel(transformers.NomicBertConfig(**sizes, num_attention_heads=2))
    model.save_pretrained(tmp_path / "base")
    with Checkpoint(tmp_path / "base") as base:
        assert any("Wqkv" in name for name in base.specs)
        parameter = next(name for name, _ in model.named_parameters() if name.endswith("q_proj.weight"))
        adapter = make_adapter(tmp_path / "adapter", {parameter: (16, 16)})
        with pytest.raises(AdapterError, match=r"is made of .*Wqkv.* on loading") as caught:
            Adapter(adapter, base)
        assert "merge_and_unload" in str(caught.value.hint)
