"""`model+lora` where embeddings are tied: names, values and warnings, with PEFT and transformers, and mergekit, as judges."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import wsmerge
from tests.mergekit.oracle import differing, run_mergekit
from tests.peft_adapters import quietly, save_adapter, save_gpt2, save_llama
from wsmerge.engine.merging.models import Model, Models
from wsmerge.recipe.merging import ModelPath, ModelReference

E, L = "model.embed_tokens.weight", "lm_head.weight"
APART: dict[str, dict[str, Any]] = {
    "factors of the input": {"target_modules": ["embed_tokens"]},
    "factors of the output": {"target_modules": ["lm_head"]},
    "factors of both": {"target_modules": ["embed_tokens", "lm_head"]},
    "input saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "output saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "both saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "output saved, factors of the input": {"target_modules": ["embed_tokens"], "modules_to_save": ["lm_head"]},
    "input saved, factors of the output": {"target_modules": ["lm_head"], "modules_to_save": ["embed_tokens"]},
    "input saved as one": {
        "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True
    },
    "output saved as one": {
        "target_modules": ["q_proj"], "modules_to_save": ["lm_head"], "ensure_weight_tying": True
    },
}  # fmt: skip
AS_ONE: dict[str, dict[str, Any]] = {
    "input": {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    "output": {"target_modules": ["lm_head"], "ensure_weight_tying": True},
    "both": {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
}
UNTIED = {name for name, settings in APART.items() if "modules_to_save" in settings and "as one" not in name}


def narrowed(base: Path, folder: Path) -> Path:
    """A copy in bfloat16."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    quietly(model.save_pretrained, folder)
    return folder


def with_stored_output(base: Path, folder: Path) -> Path:
    """A copy that stores the tied output too, as old checkpoints do."""
    shutil.copytree(base, folder)
    tensors = load_file(base / "model.safetensors")
    save_file(tensors | {L: tensors[E].clone()}, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    tied = save_llama(root / "f32", tied=True)
    return {"f32": tied, "bf16": narrowed(tied, root / "bf16"), "stored": with_stored_output(tied, root / "stored")}


@pytest.fixture(scope="module")
def adapters(bases, tmp_path_factory) -> dict[str, Path]:
    """By name; the base's dtype is no part of an adapter."""
    root = tmp_path_factory.mktemp("adapters")
    return {
        name: save_adapter(bases["f32"], root / name, LoraConfig(r=2, lora_alpha=4, **settings))
        for name, settings in {**APART, **AS_ONE}.items()
    }


def merged_by_peft(base: Path, adapter: Path, folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and config of what mergekit would put in its cache."""
    model = AutoModelForCausalLM.from_pretrained(base)
    merged = quietly(quietly(PeftModel.from_pretrained, model, adapter).merge_and_unload)
    quietly(merged.save_pretrained, folder)
    return load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())


def opened(models: Models, base: Path, adapter: Path) -> Model:
    return models.open(ModelReference(model=ModelPath(path=str(base)), lora=ModelPath(path=str(adapter))))


def values(model: Model, name: str) -> torch.Tensor:
    tensor = model.tensor(name)
    assert tensor.spec.name == name
    data = bytearray(tensor.spec.nbytes)
    tensor.read_into(0, memoryview(data))
    return torch.frombuffer(data, dtype=getattr(torch, tensor.spec.dtype.recipe_name)).reshape(tensor.spec.shape)


def assert_equal(ours: torch.Tensor, theirs: torch.Tensor, name: str) -> None:
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), name
    assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("name", APART)
@pytest.mark.parametrize("kind", ["f32", "bf16", "stored"])
def test_the_model_is_the_one_that_peft_merges(bases, adapters, tmp_path, kind, name):
    theirs, config = merged_by_peft(bases[kind], adapters[name], tmp_path / "merged")
    with Models() as models:
        ours = opened(models, bases[kind], adapters[name])
        assert set(ours.names) == set(theirs)
        assert (L in ours.names) == (name in UNTIED) == (not config["tie_word_embeddings"])
        for tensor in theirs:
            assert_equal(values(ours, tensor), theirs[tensor], tensor)
        assert bool(ours.notes(E)) == name.startswith("factors")


@pytest.mark.parametrize("name", AS_ONE)
@pytest.mark.parametrize("kind", ["f32", "bf16"])
def test_a_delta_of_tied_factors_is_added_once_or_as_often_as_peft_does(bases, adapters, tmp_path, kind, name):
    theirs, _ = merged_by_peft(bases[kind], adapters[name], tmp_path / "merged")
    base = load_file(bases[kind] / "model.safetensors")[E].double()
    with Models(mergekit_bugs=True) as models:
        ours = opened(models, bases[kind], adapters[name])
        assert set(ours.names) == set(theirs)
        assert_equal(values(ours, E), theirs[E], E)
        assert "is added twice, as in mergekit" in "".join(ours.notes(E))
    with Models() as models:
        ours = opened(models, bases[kind], adapters[name])
        twice = theirs[E].double() - base
        once = values(ours, E).double() - base
        assert twice.abs().max() > 0.01
        assert (2 * once - twice).abs().max() < {"f32": 1e-7, "bf16": 4 * 2.0**-11}[kind]
        assert "is added once" in "".join(ours.notes(E))


def test_a_tied_gpt2(tmp_path):
    base = save_gpt2(tmp_path / "base")
    saved = {"target_modules": ["c_fc"], "fan_in_fan_out": True, "modules_to_save": ["lm_head"]}
    for name, settings in {"input": {"target_modules": ["wte"]}, "output": saved}.items():
        config = LoraConfig(r=2, **settings)  # type: ignore[arg-type]  # of several types
        adapter = save_adapter(base, tmp_path / name, config)
        theirs, _ = merged_by_peft(base, adapter, tmp_path / f"{name}-merged")
        with Models() as models:
            ours = opened(models, base, adapter)
            assert set(ours.names) == set(theirs)
            for tensor in theirs:
                assert_equal(values(ours, tensor), theirs[tensor], tensor)


def test_precise_sums_are_not_rounded_between_the_two(bases, adapters):
    name = "factors of both"
    with Models() as rounded, Models(precise=True) as precise:
        wide = values(opened(rounded, bases["f32"], adapters[name]), E)
        ours = values(opened(precise, bases["bf16"], adapters[name]), E)
        narrow = values(opened(rounded, bases["bf16"], adapters[name]), E)
    # The adapter brings the float32 weights that it was trained over.
    assert torch.equal(ours, wide)
    assert not torch.equal(narrow.float(), wide)


def merged_both_ways(recipe: dict[str, Any], folder: Path) -> tuple[dict[str, int], wsmerge.MergeReport]:
    """Number of elements that differ, by tensor, and our report."""
    text = yaml.safe_dump(recipe, sort_keys=False)
    theirs = run_mergekit(text, folder / "theirs", lora_merge_cache=str(folder / "cache"))
    report = wsmerge.merge(text, folder / "ours")
    return differing(folder / "ours", theirs), report


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("bf16", "factors of both"),
        ("bf16", "output saved"),
        ("f32", "input saved, factors of the output"),
        ("stored", "factors of the output"),
    ],
)
def test_merges_are_mergekits(bases, adapters, tmp_path, kind, name):
    adapted = f"{bases[kind]}+{adapters[name]}"
    recipe = {
        "merge_method": "linear",
        "models": [
            {"model": adapted, "parameters": {"weight": 0.75}},
            {"model": str(bases[kind]), "parameters": {"weight": 0.5}},
        ],
    }
    different, report = merged_both_ways(recipe, tmp_path)
    assert different == {}
    text = "".join(report.warnings)
    assert ("are one tensor" in text) == (name not in UNTIED)
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    written = load_file(tmp_path / "ours" / "model.safetensors")
    assert (L in written) == (name in UNTIED or kind == "stored")
    assert config["tie_word_embeddings"] is (name not in UNTIED)


def test_a_passthrough_writes_the_output_that_is_trained_apart(bases, adapters, tmp_path):
    adapted = f"{bases['f32']}+{adapters['both saved']}"
    different, _ = merged_both_ways({"merge_method": "passthrough", "models": [{"model": adapted}]}, tmp_path)
    assert different == {}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    state = loaded.state_dict()
    assert not torch.equal(state[E], state[L])
