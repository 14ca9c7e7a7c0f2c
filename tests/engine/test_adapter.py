"""Adapters read without PEFT, judged by PEFT: each scaling, each layout, each thing that is no plain LoRA."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file

from tests import peft_adapters
from tests.builders import llama_config, llama_shapes, make_adapter, make_checkpoint, random_tensors, write_tensor_file
from tests.engine.test_names import built
from tests.oracles import deltas as oracle
from tests.peft_adapters import (
    ALL_LINEAR,
    adapted_logits,
    load,
    merged_deltas,
    quietly,
    save_adapter,
    save_gpt2,
    save_llama,
)
from wsmerge.core.dtypes import BF16, F32, dtype_named, from_float32
from wsmerge.core.reading import tensor_values
from wsmerge.core.tensor_file import TensorFile
from wsmerge.engine.adapter import Adapter
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.engine.lora_settings import LoraSettings, Refusals
from wsmerge.errors import AdapterError

UP = {"model.layers.1.mlp.up_proj.weight": (24, 16)}
# Half an ulp for s * B in float32, and the reference's own float64 rounding of base + delta.
ULP = 2.0**-24
EPS64 = 1e-15


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return save_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def tied_llama(tmp_path_factory) -> Path:
    return save_llama(tmp_path_factory.mktemp("models") / "tied", tied=True)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> Path:
    return save_gpt2(tmp_path_factory.mktemp("models") / "gpt2")


def read_deltas(base: Path, folder: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, str]]:
    """Our deltas and how far they may be off, dense float64, and the layouts."""
    values, bounds = {}, {}
    with Checkpoint(base) as checkpoint, Adapter(folder, checkpoint) as adapter:
        for name, spec in checkpoint.specs.items():
            stored = tensor_values(checkpoint, name, 0, spec.numel).reshape(spec.shape)
            delta, bound = np.zeros(spec.shape), EPS64 * (1 + np.abs(stored))
            whole = adapter.stored_whole(name)
            if whole is not None:
                delta += tensor_values(*whole, 0, spec.numel).reshape(spec.shape) - stored
            if adapter.rank(name) is not None:
                factors = adapter.low_rank(name)
                assert {str(factors.b.dtype), str(factors.a.dtype)} == {"float32"}
                assert factors.rank == adapter.rank(name)
                delta += factors.dense()
                bound += ULP * (np.abs(factors.b).astype(np.float64) @ np.abs(factors.a).astype(np.float64))
            if whole is not None or adapter.rank(name) is not None:
                values[name], bounds[name] = delta, 1.01 * bound
        return values, bounds, dict(adapter.layouts)


def assert_as_peft_merges(base: Path, folder: Path) -> dict[str, str]:
    ours, bounds, layouts = read_deltas(base, folder)
    theirs = merged_deltas(base, folder)
    assert sorted(ours) == sorted(theirs)
    for name, delta in theirs.items():
        assert (np.abs(ours[name] - delta) <= bounds[name]).all(), name
    return layouts


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 8},
        {"r": 4, "lora_alpha": 5},
        {"r": 3, "lora_alpha": 7, "use_rslora": True},
        {"r": 2, "alpha_pattern": {"q_proj": 5, "layers.1.mlp.up_proj": 3, "up_proj": 9}},
        {"r": 2, "rank_pattern": {"self_attn.*_proj": 5, "model.layers.0.mlp.down_proj": 1}, "lora_alpha": 3},
        {
            "r": 4,
            "use_rslora": True,
            "rank_pattern": {"^model.layers.0.self_attn.k_proj": 2},
            "alpha_pattern": {"k_proj": 11},
        },
        {"r": 2, "init_lora_weights": "gaussian", "layers_to_transform": [1]},
        {"r": 2, "init_lora_weights": "orthogonal"},
        {"r": 2, "lora_alpha": -3},
        {"r": 2, "alpha_pattern": {"layers.1.mlp.up_proj": -2, "q_proj": 1e-3}},
    ],
    ids=",".join,
)
def test_scalings(tmp_path, llama, settings):
    folder = save_adapter(llama, tmp_path / "adapter", LoraConfig(target_modules=ALL_LINEAR, **settings))
    layouts = assert_as_peft_merges(llama, folder)
    assert set(layouts.values()) == {"linear"}


def test_a_layer_that_is_switched_off(tmp_path, llama):
    config = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], alpha_pattern={"layers.1.mlp.up_proj": 0})
    folder = save_adapter(llama, tmp_path / "adapter", config)
    deltas, _, _ = read_deltas(llama, folder)
    off = deltas.pop("model.layers.1.mlp.up_proj.weight")
    assert not off.any()
    assert sorted(deltas) == sorted(merged_deltas(llama, folder))


def test_modules_to_save_and_embeddings_of_an_untied_model(tmp_path, llama):
    saved = save_adapter(
        llama, tmp_path / "saved", LoraConfig(r=2, modules_to_save=["embed_tokens", "lm_head", "norm"])
    )
    assert_as_peft_merges(llama, saved)
    targets = ["embed_tokens", "lm_head", "q_proj"]
    adapted = save_adapter(llama, tmp_path / "adapted", LoraConfig(r=3, lora_alpha=5, target_modules=targets))
    layouts = assert_as_peft_merges(llama, adapted)
    assert layouts["model.embed_tokens.weight"] == "embedding"
    assert layouts["lm_head.weight"] == "linear"


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_trained_biases(tmp_path, bias):
    base = save_llama(tmp_path / "base", bias=True)
    folder = save_adapter(base, tmp_path / "adapter", LoraConfig(r=2, target_modules=["q_proj"], bias=bias))
    assert_as_peft_merges(base, folder)


def test_conv1d_is_transposed_also_where_it_is_square(tmp_path, gpt2):
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)
    layouts = assert_as_peft_merges(gpt2, save_adapter(gpt2, tmp_path / "adapter", config))
    assert set(layouts.values()) == {"transposed"}
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings | {"fan_in_fan_out": False}))
    assert set(read_deltas(gpt2, tmp_path / "adapter")[2].values()) == {"transposed"}


def test_names_without_the_models_prefix(tmp_path, gpt2):
    """GPT-2 on the Hub names its tensors `h.0...`, in memory they are `transformer.h.0...`."""
    with Checkpoint(gpt2) as source:
        tensors = {
            name.removeprefix("transformer."): (
                spec.dtype, np.frombuffer(source.read(name), spec.dtype.storage).reshape(spec.shape)
            )
            for name, spec in source.specs.items()
        }  # fmt: skip
        stripped = make_checkpoint(tmp_path / "stripped", tensors, config=source.config)
    config = LoraConfig(r=2, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    folder = save_adapter(gpt2, tmp_path / "adapter", config)
    ours, _, _ = read_deltas(stripped, folder)
    expected, _, _ = read_deltas(gpt2, folder)
    assert {f"transformer.{name}": delta.tolist() for name, delta in ours.items()} == {
        name: delta.tolist() for name, delta in expected.items()
    }


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
)
def test_tied_embeddings_trained_as_one_are_one_delta(tmp_path, tied_llama, settings):
    config = LoraConfig(r=2, ensure_weight_tying=True, **settings)
    folder = save_adapter(tied_llama, tmp_path / "adapter", config)
    ours, _, _ = read_deltas(tied_llama, folder)
    assert "model.embed_tokens.weight" in ours
    assert "lm_head.weight" not in ours
    # PEFT's merge adds the delta of tied factors twice, once a name, so the judge is the model that is not merged.
    model = load(tied_llama)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, delta in ours.items():
            parameters[name].add_(torch.from_numpy(delta).float())
        tokens = torch.arange(8)[None]
        assert torch.allclose(model(tokens).logits, adapted_logits(tied_llama, folder, tokens), atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
)
def test_one_of_two_tied_names_is_refused(tmp_path, tied_llama, settings):
    folder = save_adapter(tied_llama, tmp_path / "adapter", LoraConfig(r=2, **settings))
    with Checkpoint(tied_llama) as base, pytest.raises(AdapterError, match="changes only one of the two"):
        Adapter(folder, base)


def test_tied_names_trained_apart_are_refused(tmp_path, tied_llama):
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    folder = save_adapter(tied_llama, tmp_path / "adapter", config)
    with Checkpoint(tied_llama) as base, pytest.raises(AdapterError, match="changes them differently"):
        Adapter(folder, base)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_factors_of_other_dtypes_are_read_exactly(tmp_path, dtype):
    shapes = llama_shapes(layers=1)
    base = make_checkpoint(tmp_path / "base", random_tensors(shapes))
    folder = make_adapter(tmp_path / "adapter", {"model.layers.0.mlp.up_proj.weight": (24, 16)}, rank=2, alpha=3)
    held = dtype_named(dtype)
    with TensorFile(folder / "adapter_model.safetensors") as file:
        read = {name: np.frombuffer(file.read(name), "<f4").reshape(spec.shape) for name, spec in file.specs.items()}
    bits = {name: from_float32(v, held) if dtype != "float64" else v.astype("<f8") for name, v in read.items()}
    write_tensor_file(folder / "adapter_model.safetensors", {name: (held, v) for name, v in bits.items()})
    with TensorFile(folder / "adapter_model.safetensors") as file:
        a, b = (tensor_values(file, name, 0, spec.numel).reshape(spec.shape) for name, spec in file.specs.items())
    ours, _, _ = read_deltas(base, folder)
    bound = oracle.factor_rounding_bound(a, b, scale=1.5)
    assert (np.abs(ours["model.layers.0.mlp.up_proj.weight"] - oracle.lora_delta(a, b, alpha=3, rank=2)) <= bound).all()


def test_a_pickled_adapter_is_the_same_adapter(tmp_path, llama):
    folder = save_adapter(llama, tmp_path / "adapter", LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"]))
    with Checkpoint(llama) as base, Adapter(folder, base) as adapter:
        digest, fingerprint = adapter.content_digest(), adapter.fingerprint
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    assert_as_peft_merges(llama, folder)
    with Checkpoint(llama) as base, Adapter(folder, base) as adapter:
        assert adapter.content_digest() == digest
        assert adapter.fingerprint[0] == fingerprint[0]
        assert adapter.fingerprint[1][0] == "adapter_model.bin"


keys = st.lists(st.sampled_from(["a", "b", r"a\.b", ".*b", "^a", "c$", "b.a"]), unique=True, max_size=4)


@given(keys, st.lists(st.sampled_from(["a", "b", "c", "ab", "ba"]), min_size=1, max_size=4).map(".".join))
def test_patterns_match_as_in_peft(patterns, module):
    alphas = {key: number + 1 for number, key in enumerate(patterns)}
    problems = Refusals()
    settings = LoraSettings({"peft_type": "LORA", "r": 4, "lora_alpha": 16, "alpha_pattern": alphas}, problems)
    assert not problems
    assert settings.scale(module) == alphas.get(get_pattern_key(list(alphas), module), 16) / 4


def test_a_copy_of_the_bases_tensor_is_no_change(tmp_path):
    tensors = random_tensors(llama_shapes())
    base = make_checkpoint(tmp_path / "base", tensors)
    folder = make_adapter(tmp_path / "adapter", UP)
    name = "model.norm.weight"
    copy = (F32, (tensors[name][1].astype(np.uint32) << 16).view(np.float32))
    with TensorFile(folder / "adapter_model.safetensors") as file:
        read = {key: (F32, np.frombuffer(file.read(key), "<f4").reshape(s.shape)) for key, s in file.specs.items()}
    write_tensor_file(folder / "adapter_model.safetensors", read | {f"base_model.model.{name}": copy})
    assert tensors[name][0] is BF16
    assert list(read_deltas(base, folder)[0]) == list(UP)


def test_provenance(tmp_path):
    base = make_checkpoint(tmp_path / "base", random_tensors(llama_shapes()))
    config = {
        "target_modules": ["up_proj"],
        "use_rslora": True,
        "base_model_name_or_path": "acme/base",
        "revision": "v1",
    }
    folder = make_adapter(tmp_path / "adapter", UP, rank=2, alpha=4, config=config)
    with Checkpoint(base) as checkpoint, Adapter(folder, checkpoint) as adapter:
        assert adapter.label == "adapter"
        assert adapter.settings.summary == {"r": 2, "lora_alpha": 4, "use_rslora": True, "target_modules": ["up_proj"]}
        assert (adapter.settings.base_name, adapter.settings.revision) == ("acme/base", "v1")
        first = adapter.content_digest()
    other = make_adapter(tmp_path / "other", UP, seed=5)
    with Checkpoint(base) as checkpoint, Adapter(other, checkpoint) as adapter:
        assert adapter.content_digest() != first
        assert adapter.nbytes == 4 * 2 * (24 + 16)


def test_vision_language_names_are_swapped(tmp_path):
    shapes = {name.replace("model.", "language_model.model.", 1): shape for name, shape in llama_shapes().items()}
    config = llama_config(llama_shapes())
    base = make_checkpoint(tmp_path / "base", random_tensors(shapes), config={"text_config": config})
    folder = make_adapter(tmp_path / "adapter", {"model.language_model.layers.1.mlp.up_proj.weight": (24, 16)})
    assert list(read_deltas(base, folder)[0]) == ["language_model.model.layers.1.mlp.up_proj.weight"]


def test_the_helper_and_the_oracle_agree_with_each_other(llama, tmp_path):
    """The judge itself: PEFT's merged delta is the oracle's s * B @ A."""
    folder = save_adapter(
        llama, tmp_path / "adapter", LoraConfig(r=3, lora_alpha=5, use_rslora=True, target_modules=["k_proj"])
    )
    with TensorFile(folder / "adapter_model.safetensors") as file:
        read = [tensor_values(file, name, 0, spec.numel).reshape(spec.shape) for name, spec in file.specs.items()]
    delta = peft_adapters.merged_deltas(llama, folder)["model.layers.0.self_attn.k_proj.weight"]
    assert np.abs(delta - oracle.lora_delta(read[0], read[1], alpha=5, rank=3, rslora=True)).max() < 1e-15


WRAPPINGS = {
    "compiled outside": lambda key: f"_orig_mod.{key}",
    "compiled inside": lambda key: key.replace("base_model.model.", "base_model.model._orig_mod."),
    "compiled layers": lambda key: key.replace(".mlp.", ".mlp._orig_mod."),
    "checkpointed": lambda key: key.replace(".self_attn.", "._checkpoint_wrapped_module.self_attn."),
    "FSDP": lambda key: key.replace(".mlp.", "._fsdp_wrapped_module.mlp."),
    "DistributedDataParallel": lambda key: f"module.{key}",
    "Lightning": lambda key: f"model._orig_mod.{key}",
    "PEFT twice": lambda key: f"base_model.model.{key}",
    "no PEFT": lambda key: key.removeprefix("base_model.model."),
    "without the head": lambda key: key.replace("base_model.model.model.", "base_model.model."),
    "the adapter's name": lambda key: re.sub(r"(lora_[AB])\.", r"\1.default.", key),
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_what_programs_put_around_names_is_no_part_of_them(llama, tmp_path, wrapping):
    config = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], alpha_pattern={"model.layers.1.mlp.up_proj": 5})
    adapter = save_adapter(llama, tmp_path / "adapter", config)
    expected, _, _ = read_deltas(llama, adapter)
    tensors = load_file(adapter / "adapter_model.safetensors")
    wrapped = {WRAPPINGS[wrapping](key): value for key, value in tensors.items()}
    assert wrapped.keys() != tensors.keys()
    save_file(wrapped, adapter / "adapter_model.safetensors")
    found, _, _ = read_deltas(llama, adapter)
    assert {name: delta.tolist() for name, delta in found.items()} == {
        name: delta.tolist() for name, delta in expected.items()
    }


def test_two_adapters_in_one_file_are_refused(llama, tmp_path):
    adapter = save_adapter(llama, tmp_path / "adapter", LoraConfig(r=2, target_modules=["q_proj"]))
    tensors = load_file(adapter / "adapter_model.safetensors")
    both = {key.replace("lora_A.", f"lora_A.{name}."): value.clone() for key, value in tensors.items() for name in "ab"}
    save_file(both, adapter / "adapter_model.safetensors")
    with Checkpoint(llama) as base, pytest.raises(AdapterError) as caught:
        Adapter(adapter, base)
    assert any("is the same factor" in line for line in caught.value.details)


def test_copies_of_an_extended_vocabulary_with_and_without_what_peft_puts_into_their_keys(tmp_path, llama):
    extended = load(llama)
    quietly(extended.resize_token_embeddings, 44)
    extended.save_pretrained(tmp_path / "extended")
    # PEFT saves each copy three times where the vocabulary was resized.
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    model = load(llama)
    quietly(model.resize_token_embeddings, 44)
    config.base_model_name_or_path = str(llama)
    trained = quietly(get_peft_model, model, config)
    for parameter in trained.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter.data, std=0.05)
    quietly(trained.save_pretrained, tmp_path / "adapter")
    keys = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert any(".modules_to_save." in key for key in keys)
    assert any(".original_module." in key for key in keys)
    assert_as_peft_merges(tmp_path / "extended", tmp_path / "adapter")
    with Checkpoint(llama) as base, pytest.raises(AdapterError) as caught:
        Adapter(tmp_path / "adapter", base)
    assert "[44, 16], and lm_head.weight of the base is [40, 16]" in str(caught.value)
    assert "resize_token_embeddings" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["Qwen2VLForConditionalGeneration", "LlavaForConditionalGeneration"])
def test_both_towers_of_a_vision_language_model(tmp_path, name):
    model_class, _, stored = built(name, tmp_path)
    model = model_class.from_pretrained(tmp_path)
    targets = ["q_proj", "qkv", "up_proj", "fc1"]
    adapted = quietly(get_peft_model, model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    quietly(adapted.save_pretrained, tmp_path / "adapter")
    merged = quietly(adapted.merge_and_unload)
    quietly(merged.save_pretrained, tmp_path / "merged")
    wanted = load_file(tmp_path / "merged" / "model.safetensors")
    changed = {key for key, value in wanted.items() if not torch.equal(value, stored[key])}
    assert {key.partition(".layers")[0].partition(".blocks")[0].partition(".encoder")[0] for key in changed} >= (
        {"model", "visual"} if name.startswith("Qwen") else {"language_model.model", "vision_tower"}
    )
    with Checkpoint(tmp_path) as base, Adapter(tmp_path / "adapter", base) as adapter:
        assert {key for key in stored if adapter.rank(key) is not None} == changed
        for key in changed:
            delta = (wanted[key] - stored[key]).numpy()
            np.testing.assert_allclose(adapter.low_rank(key).dense(), delta, rtol=0, atol=1e-6)
