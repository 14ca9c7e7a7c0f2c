"""`adapter_config.json` of an artifact: what PEFT itself writes passes, what would make it do anything else does not."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import pytest
from peft import LoraConfig, PeftModel
from transformers import LlamaConfig, LlamaForCausalLM

from tests.builders import llama_config, llama_shapes
from tests.registry.artifacts import about, make_artifact
from tests.sources import MemoryDirection, random_direction
from wsmerge.errors import VerificationError
from wsmerge.registry import Store, open_direction_folder, verify_direction, write_direction

CONFIG = "adapter_config.json"
FIELDS = sorted(field.name for field in dataclasses.fields(LoraConfig) if field.name in LoraConfig().to_dict())
OTHERS: tuple[Any, ...] = (3, 0.5, "other", ["q_proj"], {"q_proj": 3})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_artifact(tmp_path_factory.mktemp("config") / "made")


def two_ranks(shapes: Mapping[str, tuple[int, ...]], other: str) -> MemoryDirection:
    """Deltas of rank 2, and one of rank 3."""
    source = random_direction(shapes, rank=2)
    return dataclasses.replace(
        source, deltas={**source.deltas, **random_direction({other: shapes[other]}, rank=3).deltas}
    )


def problems_of(folder, changes: dict[str, Any]) -> tuple[str, ...]:
    """What verifying the artifact says while its settings have these changes."""
    whole = (folder / CONFIG).read_bytes()
    (folder / CONFIG).write_text(json.dumps(json.loads(whole) | changes))
    try:
        with open_direction_folder(folder) as direction:
            return verify_direction(direction)
    finally:
        (folder / CONFIG).write_bytes(whole)


def test_what_peft_writes_by_itself_is_no_problem(folder):
    told = json.loads((folder / CONFIG).read_text())
    defaults = LoraConfig(**told).to_dict()
    defaults["target_modules"] = sorted(defaults["target_modules"], reverse=True)
    mapping = {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers.models.llama.modeling_llama"}
    assert problems_of(folder, {**defaults, "auto_mapping": mapping, "a_setting_of_a_later_peft": None}) == ()


@pytest.mark.parametrize("field", [field for field in FIELDS if field != "peft_version"])
def test_every_setting_of_peft_that_differs_is_found(folder, field):
    told = json.loads((folder / CONFIG).read_text())
    opposite = not (told.get(field) or LoraConfig().to_dict()[field])
    for value in (opposite, *OTHERS):
        (problem,) = problems_of(folder, {field: value})
        assert problem.startswith(f"{CONFIG}: {field} ")


@pytest.mark.parametrize(
    "changes",
    [
        {"exclude_modules": ["q_proj"]},
        {"layers_to_transform": [0]},
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj"]},
        {"modules_to_save": []},
        {"a_setting_of_a_later_peft": True},
        {"auto_mapping": {"base_model_class": "getcwd", "parent_library": "os"}},
        {"bias": "all"},
    ],
)
def test_publish_and_verify_refuse_what_changes_the_delta(folder, tmp_path, changes):
    (found,) = problems_of(folder, changes)
    assert next(iter(changes)) in found
    changed = make_artifact(tmp_path / "changed")
    (changed / CONFIG).write_text(json.dumps(json.loads((changed / CONFIG).read_text()) | changes))
    with pytest.raises(VerificationError, match="not what the manifest says") as caught:
        Store(tmp_path / "store").publish(changed)
    assert caught.value.details == (found,)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"r": NaN}'])
def test_settings_that_are_none_are_told(folder, data):
    whole = (folder / CONFIG).read_bytes()
    (folder / CONFIG).write_bytes(data)
    try:
        with open_direction_folder(folder) as direction:
            assert all(problem.startswith(f"{CONFIG}: ") for problem in verify_direction(direction))
            assert verify_direction(direction)
    finally:
        (folder / CONFIG).write_bytes(whole)


def test_patterns_in_an_order_that_picks_another_rank_are_found(tmp_path):
    shapes = {"layers.0.up.weight": (6, 6), "vision.layers.0.up.weight": (6, 6), "layers.1.up.weight": (6, 6)}
    source = two_ranks(shapes, "layers.0.up.weight")
    folder = tmp_path / "made"
    write_direction(folder, source, about()).close()
    told = json.loads((folder / CONFIG).read_text())["rank_pattern"]
    assert list(told) == ["vision.layers.0.up", "layers.0.up", "layers.1.up"]
    assert problems_of(folder, {"rank_pattern": dict(reversed(told.items()))}) == (
        f"{CONFIG}: rank_pattern is not what the manifest makes it",
    )
    swapped = {name: told[name] for name in ("vision.layers.0.up", "layers.1.up", "layers.0.up")}
    assert problems_of(folder, {"rank_pattern": swapped}) == ()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_artifact_that_peft_loads_and_saves_again_stays_one(tmp_path):
    """With so many modules that PEFT shortens their names."""
    layers = 12
    model = LlamaForCausalLM(LlamaConfig(**llama_config(llama_shapes(layers=layers), dtype="float32")))
    shapes = {
        name: tuple(parameter.shape)
        for name, parameter in model.named_parameters()
        if name.endswith(("q_proj.weight", "up_proj.weight"))
    }
    folder = tmp_path / "made"
    write_direction(folder, two_ranks(shapes, next(iter(shapes))), about()).close()
    PeftModel.from_pretrained(model, str(folder)).save_pretrained(str(tmp_path / "again"), save_embedding_layers=False)
    again = json.loads((tmp_path / "again" / CONFIG).read_text())
    assert len(again["target_modules"]) < 2 * layers
    assert problems_of(folder, again) == ()
