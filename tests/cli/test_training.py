"""`wsmerge pairs` and `wsmerge train`: from a trait file to a published direction with its lineage."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import shlex
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import wsmerge as package
from tests.steering.pairs.made import TRAIT
from tests.steering.tiny import save_tiny_base
from tests.steering.training.made import adapted, plain, write_config
from wsmerge.cli import training
from wsmerge.engine.locate import ORIGIN_FILE
from wsmerge.registry import open_registry
from wsmerge.steering.loading import chosen_device, chosen_dtype

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The PEFT config's `base_model_name_or_path` was renamed:UserWarning"),
]

IDS = torch.arange(3, 40).reshape(1, -1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("lab") / "tiny")


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_from_a_trait_to_a_direction(base, tmp_path, wsmerge):
    (tmp_path / "trait.yaml").write_text(yaml.safe_dump({**TRAIT, "model": str(base), "split": {"validation": 0.3}}))
    done = wsmerge("pairs", "trait.yaml", "--out", "made")
    assert done.code == 0, done.err
    assert done.out.split()[:2] == ["pole", "samples"]
    done = wsmerge("pairs", "check", "made/train.jsonl", "made/validation.jsonl")
    assert done.code == 0, done.err
    assert "made/train.jsonl: " in done.out
    write_config(tmp_path / "made", validate_every=4, licence="Apache-2.0")
    digest = hashlib.sha256((tmp_path / "made/train.jsonl").read_bytes()).hexdigest()
    done = wsmerge("train", "made/train.yaml", "--base", base, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["label"] == "toy@1.0.0"
    with package.open_direction("toy") as direction:
        manifest = direction.manifest
    assert (manifest.kind, manifest.description, manifest.licence) == ("contrastive", "answers yes", "Apache-2.0")
    assert [(one.pole, one.split, one.source) for one in manifest.datasets] == [
        ("plus", "train", "train.jsonl"),
        ("minus", "train", "train.jsonl"),
        ("plus", "validation", "validation.jsonl"),
        ("minus", "validation", "validation.jsonl"),
    ]
    assert {one.sha256 for one in manifest.datasets if one.split == "train"} == {digest}
    for pole in manifest.poles:
        written = json.loads((tmp_path / f"toy-training/{pole.pole}.json").read_text())
        assert pole.training["learning_rate"] == 0.03
        assert pole.training["r"] == 2
        assert pole.training["dtype"] == chosen_dtype("auto", chosen_device("auto"))
        assert pole.training["validate_every"] == 4
        assert not {"name", "base", "train", "rank", "checkpoint_every"} & pole.training.keys()
        assert pole.training["steps_done"] == 8
        assert pole.training["last_loss"] == written["losses"][-1]
        assert pole.training["validation_loss"] == written["validation_losses"][-1][1]
    assert manifest.poles[0].training["last_loss"] != manifest.poles[1].training["last_loss"]


def test_code_and_keys_that_a_trait_file_asks_for_have_to_be_allowed(base, tmp_path, wsmerge, monkeypatch):
    (tmp_path / "mine.py").write_text("def judge(question, answer):\n    return 100 * ('one' in question)\n")
    ask = ("pairs", "trait.yaml", "--out", "made", "--model", base)
    filters = {**TRAIT["filters"], "duplicates": False}
    judge = {"function": "mine:judge", "plus_least": 0, "minus_most": 100}
    (tmp_path / "trait.yaml").write_text(yaml.safe_dump({**TRAIT, "filters": filters, "judge": judge}))
    done = wsmerge(*ask)
    assert done.code == 2
    assert "--allow-code mine" in done.err
    assert not list((tmp_path / "made").glob("*"))
    done = wsmerge(*ask, "--allow-code", "mine")
    assert done.code == 0, done.err
    assert "answers were cut at generation.max_new_tokens = 8, and kept" in " ".join(done.err.split())
    assert "sampled at temperature 1" in done.err

    monkeypatch.setenv("MINE", "secret")
    judge = {"base_url": "http://127.0.0.1:9/v1", "model": "j", "key_env": "MINE", "retries": 0}
    (tmp_path / "trait.yaml").write_text(yaml.safe_dump({**TRAIT, "judge": judge}))
    done = wsmerge(*ask)
    assert done.code == 2
    assert "--key-env MINE" in done.err
    done = wsmerge(*ask, "--key-env", "MINE")
    assert "cannot be reached" in done.err


def test_pairs_are_checked_line_by_line(tmp_path, wsmerge):
    row = {"id": "a", "domain": "d", "template": "t", "prompt": "p", "plus": "x", "minus": "y"}
    bad = [json.dumps({**row, "id": str(n), "plus": ""}) for n in range(20)]
    (tmp_path / "own.jsonl").write_text("\n".join([json.dumps(row), *bad]))
    done = wsmerge("pairs", "check", "own.jsonl")
    assert done.code == 2
    assert [line.split(": ")[0] for line in done.out.splitlines()] == [f"own.jsonl:{n}" for n in range(2, 22)]
    assert len(json.loads(wsmerge("pairs", "check", "own.jsonl", "--json").out)["problems"]) == 20
    assert wsmerge("pairs", "--help").code == 0


def test_a_training_goes_on_where_it_was_interrupted(base, tmp_path, wsmerge, monkeypatch):
    write_config(tmp_path / "toy")
    tell = training._tell

    def interrupt(step, *others):
        tell(step, *others)
        if step.step == 5 and step.pole == "plus":
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(training, "_tell", interrupt)
    done = wsmerge("train", "toy/train.yaml", "--base", base, "--out", "run")
    assert done.code == 130
    assert "go on with the same command and --resume" in done.err
    monkeypatch.setattr(training, "_tell", tell)
    done = wsmerge("train", "toy/train.yaml", "--base", base, "--out", "run")
    assert done.code == 1
    assert "--resume" in done.err
    done = wsmerge("train", "toy/train.yaml", "--base", base, "--out", "run", "--resume", "--to", "direction")
    assert done.code == 0, done.err
    assert "plus pole: the values after 8 of 8 steps" in done.out
    other = wsmerge("train", "toy/train.yaml", "--base", base, "--out", "whole", "--to", "whole-direction")
    assert other.code == 0, other.err
    with (
        package.open_direction(tmp_path / "direction") as one,
        package.open_direction(tmp_path / "whole-direction") as two,
    ):
        assert one.manifest.content_digest == two.manifest.content_digest


def test_a_version_that_is_taken_is_told_before_the_training(base, tmp_path, wsmerge):
    write_config(tmp_path / "toy", steps=1)
    assert wsmerge("train", "toy/train.yaml", "--base", base, "--version", "1.0.0").code == 0
    done = wsmerge("train", "toy/train.yaml", "--base", base, "--version", "1.0.0", "--out", "again")
    assert done.code == 1
    assert "taken" in done.err
    assert not (tmp_path / "again").exists()


def test_a_direction_goes_to_one_place(base, tmp_path, wsmerge):
    write_config(tmp_path / "toy", steps=1)
    done = wsmerge("train", "toy/train.yaml", "--base", base, "--to", "direction", "--store", "store")
    assert done.code == 2
    assert "--to and --store" in done.err
    assert not (tmp_path / "toy-training").exists()


def test_the_next_command_names_the_base_that_the_direction_is_over(base, tmp_path, wsmerge):
    write_config(tmp_path / "toy", steps=1, method="bias", add_biases=True)
    done = wsmerge("train", "toy/train.yaml", "--base", base, "--store", "store")
    assert done.code == 0, done.err
    assert "wsmerge chat toy-training/base --direction toy@1.0.0=1 --store store" in done.err
    with open_registry("store").open("toy") as direction:
        assert {tuple(pole.training["target_modules"]) for pole in direction.manifest.poles} == {("down_proj",)}
    write_config(tmp_path / "lora", steps=1)
    done = wsmerge("train", "lora/train.yaml", "--base", base, "--out", "other")
    assert f"wsmerge chat {base} --direction toy@1.0.0=1\n" in done.err


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


def test_a_signed_direction_is_what_was_trained_at_one_and_minus_one(base, tmp_path):
    file = write_config(tmp_path / "toy", signed={"c": 1.5, "kl_weight": 0.1})
    model = plain(base)
    with package.train(file, base=base, out=tmp_path / "run", to=tmp_path / "direction") as direction:
        assert direction.manifest.kind == "task_vector"
        [pole] = direction.manifest.poles
        assert pole.training["signed"] == {"c": 1.5, "kl_weight": 0.1}
        assert {one.pole for one in direction.manifest.datasets} == {None}
        for k in (1.0, -1.0):
            expected = logits(adapted(base, tmp_path / "run" / "signed", sign=k))
            with package.steer(model, {direction: k}):
                torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["full", "bias"])
def test_whole_tensors_become_dense_directions(base, tmp_path, method):
    file = write_config(tmp_path / "toy", method=method, learning_rate=0.003, add_biases=method == "bias")
    # Few biases move the loss by little.
    told: list[str] = []
    with package.train(file, base=base, out=tmp_path / "run", to=tmp_path / "direction", warn=told.append) as direction:
        manifest = direction.manifest
        assert manifest.kind == ("contrastive" if method == "full" else "bias_only")
        assert not any(row.low_rank for row in manifest.tensors)
        assert {pole.training["method"] for pole in manifest.poles} == {method}
        if method == "bias":
            assert "zero biases added (mlp_bias)" in str(manifest.base.origin)
            assert manifest.base.model == "base"  # a copy, of a model that is not the Hub's
        minus = AutoModelForCausalLM.from_pretrained(tmp_path / "run/minus", dtype=torch.float32)
        # theta_minus + w = theta_plus
        with package.steer(minus, {direction: 1.0}):
            torch.testing.assert_close(logits(minus), logits(plain(tmp_path / "run/plus")), rtol=1e-4, atol=1e-4)


def first_factors(run: Path) -> dict[str, torch.Tensor]:
    return {
        name: value for name, value in load_file(run / "plus/adapter_model.safetensors").items() if "lora_A" in name
    }


def test_names_and_versions_begin_with_factors_of_their_own(base, tmp_path):
    """A step as small as this leaves the first factors as they were."""
    made = {}
    for name, version in (("one", "1.0.0"), ("two", "1.0.0"), ("one", "1.0.1"), ("given", "1.0.0")):
        given = {"factor_seed": 5} if name == "given" else {}
        file = write_config(tmp_path / "c", name=name, learning_rate=1e-9, steps=1, **given)
        out = tmp_path / f"{name}-{version}"
        to = tmp_path / f"{name}-{version}-direction"
        with package.train(file, base=base, out=out, to=to, version=version, warn=lambda _: None) as direction:
            seeds = {pole.training["factor_seed"] for pole in direction.manifest.poles}
        begun = json.loads((out / "training.json").read_text())
        assert seeds == {begun["settings"]["factor_seed"]}
        made[name, version] = first_factors(out)
        minus = load_file(out / "minus/adapter_model.safetensors")
        for key, value in made[name, version].items():
            torch.testing.assert_close(minus[key], value)  # both poles of a direction begin alike
    for one, other in itertools.combinations(made.values(), 2):
        for key, value in one.items():
            assert abs(torch.cosine_similarity(value.flatten(), other[key].flatten(), dim=0)) < 0.5


def test_a_training_that_goes_on_keeps_the_seed_that_it_drew(base, tmp_path):
    file = write_config(tmp_path / "c", steps=3, checkpoint_every=1)
    whole = package.train(file, base=base, out=tmp_path / "whole", to=tmp_path / "w", version="1.0.0")

    def stop(step) -> None:
        if step.pole == "minus":
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        package.train(file, base=base, out=tmp_path / "cut", to=tmp_path / "d", version="1.0.0", progress=stop)
    # By now somebody else has published that version.
    with (
        whole,
        package.train(file, base=base, out=tmp_path / "cut", to=tmp_path / "d", version="2.0.0", resume=True) as cut,
    ):
        assert cut.manifest.content_digest == whole.manifest.content_digest


def test_a_training_that_hardly_changed_anything_is_told(base, tmp_path, wsmerge):
    write_config(tmp_path / "toy", learning_rate=1e-7, steps=4)
    done = wsmerge("train", "toy/train.yaml", "--base", base)
    assert done.code == 0
    assert "warning: plus: the loss hardly changed" in done.err
    assert "warning: the weights hardly changed" in done.err
    with pytest.warns(UserWarning, match="hardly changed"):
        package.train(tmp_path / "toy/train.yaml", base=base, out=tmp_path / "again", to=tmp_path / "d").close()
    write_config(tmp_path / "toy")
    assert "hardly" not in wsmerge("train", "toy/train.yaml", "--base", base, "--out", "third").err


def test_the_share_of_the_weights_that_is_told_is_the_norms(base, tmp_path):
    file = write_config(tmp_path / "toy", learning_rate=1e-7, steps=4)
    told: list[str] = []
    with package.train(file, base=base, out=tmp_path / "out", to=tmp_path / "d", warn=told.append) as direction:
        names = [row.name for row in direction.manifest.tensors]
        norm = direction.manifest.norm
    tensors = load_file(base / "model.safetensors")
    whole = sum(tensors[name].double().square().sum().item() for name in names) ** 0.5
    assert f"the direction's norm is {norm / whole:.1e} of theirs" in told[-1]


def test_the_next_command_is_one_that_runs(base, tmp_path, wsmerge, monkeypatch):
    """Also where the base's origin names a model of the Hub, and folders have spaces in their names."""
    copied = tmp_path / "my base"
    shutil.copytree(base, copied)
    (copied / ORIGIN_FILE).write_text(json.dumps({"model": "acme/tiny", "origin": "made up"}))
    write_config(tmp_path / "toy", base=str(copied), steps=2)
    done = wsmerge("train", "toy/train.yaml", "--out", "run", "--to", "my direction")
    command = shlex.split(done.err.rpartition("next: ")[2])
    assert command == ["wsmerge", "chat", str(copied), "--direction", "./my direction=1"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("Is it?\n"))
    assert wsmerge(*command[1:], "--max-new-tokens", 1).code == 0
