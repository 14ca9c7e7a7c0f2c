"""The Python API end to end on a tiny model: train, extract, publish, compose, merge, steer, and PEFT as the judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import wsmerge
from tests.builders import llama_shapes, make_adapter, make_checkpoint, random_tensors
from tests.engine.test_merge import read_all
from tests.steering.tiny import save_tiny_base
from wsmerge.errors import (
    BadReferenceError,
    BaseMismatchError,
    CheckpointError,
    ConflictError,
    DirectionError,
    NotFoundError,
    RecipeError,
)
from wsmerge.registry.history import Event, append_event
from wsmerge.steering.pairs import Pair
from wsmerge.steering.training import Data, TrainConfig, train_pole

# peft 0.21 asks transformers 5.23 for a property under its old name.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The PEFT config's `base_model_name_or_path` was renamed:UserWarning"),
]

IDS = torch.arange(3, 40).reshape(1, -1)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base and the poles of two directions, trained by PEFT."""
    folder = tmp_path_factory.mktemp("lab")
    base = save_tiny_base(folder / "base")
    pairs = [Pair(id=str(i), domain="d", template="t", prompt=f"{i}?", plus="Yes, yes.", minus="No.") for i in range(8)]
    for name, rank, modules in (("yes", 4, ("q_proj", "up_proj")), ("other", 2, ("v_proj", "up_proj"))):
        config = TrainConfig(
            name=name,
            behaviour="says yes",
            base="acme/tiny",
            steps=6,
            batch_size=4,
            learning_rate=0.05,
            rank=rank,
            alpha=8,
            target_modules=modules,
        )
        for pole in ("plus", "minus"):
            train_pole(config, Data(pairs), pole, base, folder / name / pole)
    return folder


@pytest.fixture
def store(tmp_path, lab) -> wsmerge.Store:
    store = wsmerge.Store(tmp_path / "store")
    for name in ("yes", "other"):
        plus, minus = lab / name / "plus", lab / name / "minus"
        wsmerge.extract(name, base=lab / "base", positive=plus, negative=minus, to=store).close()
    return store


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


def merge(lab: Path, store: wsmerge.Store, out: Path, directions: dict[str, Any]) -> Path:
    entries = [{"direction": name, "weight": weight} for name, weight in directions.items()]
    recipe = {"base_model": str(lab / "base"), "directions": entries, "out_dtype": "float32"}
    return wsmerge.merge(recipe, out, store=store).out


def test_peft_loads_the_artifact_and_gives_the_merged_logits(lab, store, tmp_path):
    merged = load(merge(lab, store, tmp_path / "out", {"yes": 1.0}))
    with wsmerge.open_direction("yes", store=store) as direction:
        adapted = PeftModel.from_pretrained(load(lab / "base"), str(direction.path))
    torch.testing.assert_close(logits(adapted), logits(merged), atol=1e-4, rtol=0)
    assert not torch.allclose(logits(merged), logits(load(lab / "base")), atol=0.1)


def test_the_direction_is_the_difference_of_the_poles(lab, store, tmp_path):
    """base + 0.5 w = base + (plus - minus) / 2, with the poles merged by PEFT in float64."""
    merged = load(merge(lab, store, tmp_path / "out", {"yes": 0.5}))
    poles = []
    for pole in ("plus", "minus"):
        adapted: Any = PeftModel.from_pretrained(load(lab / "base").double(), str(lab / "yes" / pole))
        poles.append(dict(adapted.merge_and_unload().named_parameters()))
    base = dict(load(lab / "base").named_parameters())
    for name, parameter in merged.named_parameters():
        expected = base[name].double() + (poles[0][name] - poles[1][name]) / 2
        torch.testing.assert_close(parameter.double(), expected, atol=1e-6, rtol=1e-6)


def test_steering_gives_what_merging_gives_and_ends(lab, store, tmp_path):
    weights: dict[str, Any] = {"yes": {0: 1.5}, "other": [0.0, -1.0]}
    merged = load(
        merge(lab, store, tmp_path / "out", {"yes": [{"layers": 0, "value": 1.5}, {"value": 0}], "other": [0.0, -1.0]})
    )
    model = load(lab / "base")
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with wsmerge.steer(model, weights, store=store):
        torch.testing.assert_close(logits(model), logits(merged), atol=1e-4, rtol=0)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])


def test_composing_gives_what_summing_gives(lab, store, tmp_path):
    parts: dict[str, Any] = {"yes": 1.5, "other@1.0.0": [{"filter": "v_proj", "value": -1.0}, {"value": 0.25}]}
    with wsmerge.compose("both", parts, store=store) as composed:
        assert composed.label == "both@1.0.0"
        assert composed.manifest.kind == "composed"
        assert {parent.reference for parent in composed.manifest.parents} == {"yes@1.0.0", "other@1.0.0"}
        assert composed.rank("model.layers.0.mlp.up_proj.weight") == 8 + 4
        assert (composed.path / "adapter_model.safetensors").exists()
    one = load(merge(lab, store, tmp_path / "one", {"both": 1.0}))
    two = load(merge(lab, store, tmp_path / "two", parts))
    torch.testing.assert_close(logits(one), logits(two), atol=1e-4, rtol=0)


def test_composing_with_a_dense_direction_is_dense(tmp_path):
    shapes = llama_shapes()
    base = make_checkpoint(tmp_path / "base", random_tensors(shapes, dtype="float32"))
    tuned = make_checkpoint(tmp_path / "tuned", random_tensors(shapes, dtype="float32", seed=5))
    pole = make_adapter(tmp_path / "pole", {name: shape for name, shape in shapes.items() if "q_proj" in name})
    store = wsmerge.Store(tmp_path / "store")
    wsmerge.extract("dense", base=base, positive=tuned, to=store).close()
    wsmerge.extract("sparse", base=base, positive=pole, to=store).close()
    with wsmerge.compose("mix", {"dense": 1.0, "sparse": -2.0}, to=tmp_path / "mix", store=store) as mix:
        name = "model.layers.1.self_attn.q_proj.weight"
        with store.open("dense") as dense, store.open("sparse") as sparse:
            expected = dense.delta(name).dense() - 2 * sparse.delta(name).dense()
        assert mix.rank(name) is None
        np.testing.assert_array_equal(mix.delta(name).dense(), expected.astype(np.float32).astype(np.float64))
    wsmerge.merge(
        {"base_model": str(base), "directions": [{"direction": "dense", "weight": 1}]}, tmp_path / "out", store=store
    )
    written, wanted = read_all(tmp_path / "out"), read_all(tuned)
    for name in shapes:
        np.testing.assert_allclose(written[name][1], wanted[name][1], rtol=0, atol=1e-8)


def test_directions_of_different_bases_do_not_compose(store, tmp_path):
    base = make_checkpoint(tmp_path / "base", random_tensors(llama_shapes()))
    pole = make_adapter(tmp_path / "pole", {name: shape for name, shape in llama_shapes().items() if "q_proj" in name})
    wsmerge.extract("stranger", base=base, positive=pole, to=store).close()
    with pytest.raises(BaseMismatchError, match="different bases"):
        wsmerge.compose("both", {"yes": 1.0, "stranger": 1.0}, store=store)
    assert "both" not in store.names()


def test_versions_go_up_and_are_not_taken_twice(lab, store, tmp_path):
    folders = {"positive": lab / "other/plus", "negative": lab / "other/minus"}
    with wsmerge.extract("yes", base=lab / "base", to=store, **folders) as second:
        assert second.label == "yes@1.0.1"
    with pytest.raises(ConflictError, match=r"yes@1\.0\.0"):
        wsmerge.extract("yes", base=lab / "base", to=store, details=wsmerge.Details(version="1.0.0"), **folders)
    folder = tmp_path / "folder"
    wsmerge.extract("mine", base=lab / "base", to=folder, **folders).close()
    assert wsmerge.publish(folder, store=store, aliases=["stable"]).label == "mine@1.0.0"
    with wsmerge.open_direction("mine@stable", store=store) as one, wsmerge.open_direction(folder) as two:
        assert one.digest == two.digest
    with pytest.raises(NotFoundError):
        wsmerge.open_direction("nobody", store=store)


def test_what_a_killed_extraction_left_is_in_nobodys_way(lab, store):
    folders = {"base": lab / "base", "positive": lab / "other/plus", "negative": lab / "other/minus"}
    store.paths.versions("made").mkdir(parents=True)
    wsmerge.extract("made", to=store, **folders).close()
    store.paths.versions("logged").mkdir(parents=True)
    append_event(store.paths.log("logged"), Event.now("publish", "1.2.0", "0" * 64))
    wsmerge.extract("logged", details=wsmerge.Details(version="1.2.0"), to=store, **folders).close()
    assert [entry.label for entry in store.list() if entry.name in ("made", "logged")] == ["logged@1.2.0", "made@1.0.0"]
    assert store.verify().problems == ()


def test_a_plan_is_carried_out_as_it_is(lab, store, tmp_path):
    recipe = {"base_model": str(lab / "base"), "directions": [{"direction": "yes", "weight": [1.0, 0.0]}]}
    with wsmerge.plan(recipe, store=store) as planned:
        ks = planned.coefficients[0].by_tensor
        assert ks["model.layers.0.mlp.up_proj.weight"].k == 1.0
        assert ks["model.layers.1.mlp.up_proj.weight"].k == 0.0
        report = wsmerge.merge(planned, tmp_path / "out")
    assert report.written_bytes == planned.merge.write_bytes
    assert report.warnings == ()
    with pytest.raises(RecipeError, match="directions"):
        wsmerge.plan({"base_model": "x", "directions": []}, store=store)


def test_extracting_the_same_again_makes_no_new_version(lab, store):
    folders = {"positive": lab / "yes/plus", "negative": lab / "yes/minus"}
    with wsmerge.extract("yes", base=lab / "base", to=store, **folders) as again:
        assert again.label == "yes@1.0.0"
    described = wsmerge.Details(description="says yes")
    with wsmerge.extract("yes", base=lab / "base", to=store, details=described, **folders) as other:
        assert other.label == "yes@1.0.1"


def test_a_version_that_another_process_took_meanwhile_is_stepped_over(lab, store, monkeypatch):
    monkeypatch.setattr("wsmerge.api.placing.checked_version", lambda *_: "1.0.0")
    monkeypatch.setattr("wsmerge.api.directions.checked_version", lambda *_: "1.0.0")
    folders = {"positive": lab / "other/plus", "negative": lab / "other/minus"}
    with wsmerge.extract("yes", base=lab / "base", to=store, **folders) as second:
        assert second.label == "yes@1.0.1"


@pytest.mark.parametrize(
    ("name", "details", "error"),
    [
        ("a b", wsmerge.Details(), BadReferenceError),
        ("yes", wsmerge.Details(version="v1"), BadReferenceError),
        ("yes", wsmerge.Details(version="1.0.0"), ConflictError),
    ],
)
def test_name_and_version_are_checked_before_any_weight_is_read(lab, store, monkeypatch, name, details, error):
    monkeypatch.setattr("wsmerge.api.directions.Checkpoint", pytest.fail)
    with pytest.raises(error):
        wsmerge.extract(name, base=lab / "base", positive=lab / "yes/plus", to=store, details=details)


def test_composing_nothing_is_refused(store):
    with pytest.raises(DirectionError, match="every coefficient is 0"):
        wsmerge.compose("zero", {"yes": 0.0}, store=store)


def test_everything_that_cannot_be_opened_is_told_with_its_line(store):
    text = "base_model: ./nowhere\ndirections:\n- {direction: nobody, weight: 1}\n- {direction: yes@7.0.0, weight: 1}\n"
    with pytest.raises(CheckpointError) as caught:
        wsmerge.plan(text, store=store)
    told = str(caught.value)
    for part in (
        "line 1: base_model: ./nowhere",
        "line 3: directions[0].direction",
        "line 4: directions[1].direction",
        "7.0.0",
    ):
        assert part in told
