"""`plan` and `merge` on the command line: what they print, and what bad input comes to."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.builders import llama_shapes, make_adapter, make_checkpoint, random_tensors
from tests.cli.conftest import Done

SHAPES = llama_shapes(layers=4)
LINEAR = {name: shape for name, shape in SHAPES.items() if "_proj" in name}


@pytest.fixture
def lab(tmp_path: Path, wsmerge: Callable[..., Done]) -> Path:
    """A base, two poles, the direction `kind@1.0.0` in the store, and a recipe for it."""
    make_checkpoint(tmp_path / "base", random_tensors(SHAPES))
    for seed, pole in enumerate(("plus", "minus")):
        make_adapter(tmp_path / pole, LINEAR, seed=seed)
    done = wsmerge(
        "extract",
        "kind",
        "--base",
        tmp_path / "base",
        "--positive",
        tmp_path / "plus",
        "--negative",
        tmp_path / "minus",
    )
    assert done.code == 0, done.err
    recipe(tmp_path, "weight: 0.5")
    return tmp_path


def recipe(folder: Path, weight: str, *, direction: str = "kind", more: str = "") -> Path:
    path = folder / "recipe.yml"
    path.write_text(f"base_model: {folder / 'base'}\ndirections:\n  - direction: {direction}\n    {weight}\n{more}")
    return path


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_plan_shows_which_coefficient_applies_where(lab, wsmerge):
    recipe(lab, "weight: [{filter: mlp, value: [0, 3]}, {layers: 1-2, value: 2}, {value: 0.25}]")
    before = files(lab)
    done = wsmerge("plan", lab / "recipe.yml")
    assert done.code == 0, done.err
    assert "kind@1.0.0" in done.out
    for fact in ("weight[0]: filter mlp", "weight[1]: layers 1-2", "0.25", "model.safetensors", "peak memory at most"):
        assert fact in done.out
    assert files(lab) == before
    told = json.loads(wsmerge("plan", lab / "recipe.yml", "--json").out)
    rows = told["coefficients"][0]["rows"]
    mlp = {row["layers"]: row["k"] for row in rows if row["modules"] == ["mlp"]}
    assert mlp == pytest.approx({"0": 0, "1": 1, "2": 2, "3": 3})
    assert told["peak_bytes"] < 400e6


def test_merge_writes_what_the_plan_said(lab, wsmerge):
    told = json.loads(wsmerge("plan", lab / "recipe.yml", "--json").out)
    done = wsmerge("merge", lab / "recipe.yml", lab / "out")
    assert done.code == 0, done.err
    assert "fidelity: cosine" in done.out
    assert (lab / "out/model.safetensors").stat().st_size == told["write_bytes"]
    assert wsmerge("merge", lab / "recipe.yml", lab / "out", "--json", "--overwrite").code == 0


def test_dry_run_writes_nothing(lab, wsmerge):
    before = files(lab)
    assert wsmerge("merge", lab / "recipe.yml", lab / "out", "--dry-run").code == 0
    assert files(lab) == before


def test_a_dry_run_looks_at_the_output_too(lab, wsmerge):
    assert wsmerge("merge", lab / "recipe.yml", lab / "out").code == 0
    done = wsmerge("merge", lab / "recipe.yml", lab / "out", "--dry-run")
    assert done.code == 1
    assert "exists already" in done.err


@pytest.mark.usefixtures("lab")
def test_composing_on_the_command_line(wsmerge):
    done = wsmerge("compose", "less", "--add", "kind=-0.5", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["label"] == "less@1.0.0"
    for part, word in (("kind", "no coefficient"), ("kind=x", "no number"), ("nobody=1", "nobody")):
        failed = wsmerge("compose", "more", "--add", part)
        assert failed.code in (1, 2)
        assert word in failed.err


# Python itself must be up before its handling of Ctrl-C is ours; some schedulers start jobs with the signal ignored.
READY = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from wsmerge.__main__ import run
print("ready", flush=True)
run()
"""


@pytest.mark.parametrize("wait_s", [0.05, 0.4, 0.9, 1.3])
def test_ctrl_c_is_130_at_any_time_and_leaves_nothing(lab, wait_s):
    before = files(lab)
    command = [sys.executable, "-c", READY, "merge", lab / "recipe.yml", lab / "out", "--block-mib", "1"]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(wait_s)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=240)
    if (lab / "out").exists():  # it was quicker, and is on its way out
        assert (lab / "out/wsmerge.json").exists()
    else:
        assert process.returncode == 130, stderr
        assert "Traceback" not in stderr
    assert files(lab) - {"out"} == before


def other_base(lab: Path) -> None:
    make_checkpoint(lab / "base", random_tensors(llama_shapes(layers=4, hidden=8)))


def truncated_base(lab: Path) -> None:
    file = lab / "base/model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (other_base, 1, ["directions do not fit this base", "kind@1.0.0", "up_proj.weight is"]),
        (truncated_base, 1, ["model.safetensors", "truncated", "next:"]),
        (lambda lab: recipe(lab, "weight: 1", direction="kin"), 1, ["kin", "kind"]),
        (lambda lab: recipe(lab, "weight: 1", direction="kind@9.9.9"), 1, ["9.9.9", "1.0.0"]),
        (lambda lab: recipe(lab, "weight: 1", direction="a b"), 2, ["a b"]),
        (lambda lab: recipe(lab, "wieght: 1"), 2, ["recipe.yml:4", "wieght", "did you mean", "weight"]),
        (lambda lab: recipe(lab, "weight: .nan"), 2, ["recipe.yml:4", "finite"]),
        (lambda lab: recipe(lab, "weight: [{layers: 2-40, value: 1}]"), 2, ["recipe.yml", "2-40"]),
        (lambda lab: recipe(lab, "weight: 1", more="merge_method: ties\n"), 2, ["merge_method", "nothing to merge"]),
        (lambda lab: (lab / "recipe.yml").unlink(), 2, ["recipe.yml", "No such file"]),
    ],
)
def test_bad_input_is_told_and_leaves_nothing(lab, wsmerge, change, code, words):
    change(lab)
    before = files(lab)
    done = wsmerge("merge", lab / "recipe.yml", lab / "out")
    assert done.code == code, done.err
    for word in words:
        assert word in done.err
    assert files(lab) == before


def test_a_folder_that_cannot_be_written_is_told(lab, wsmerge, monkeypatch):
    (lab / "file").write_text("no folder")
    before = files(lab)
    done = wsmerge("merge", lab / "recipe.yml", lab / "file" / "out")
    assert done.code == 1
    assert "is no folder" in done.err
    # The tests may run as root, to whom everything is open.
    monkeypatch.setattr("os.access", lambda _path, mode, **_: not mode & os.W_OK)
    done = wsmerge("merge", lab / "recipe.yml", lab / "out")
    assert done.code == 1
    assert "permission denied" in done.err
    assert "next:" in done.err
    assert files(lab) == before


def test_a_taken_version_is_refused(lab, wsmerge):
    options = ["--base", lab / "base", "--positive", lab / "minus", "--version", "1.0.0"]
    done = wsmerge("extract", "kind", *options)
    assert done.code == 1
    assert "1.0.0" in done.err
    assert "next:" in done.err


def test_errors_are_json_where_json_is_asked_for(lab, wsmerge):
    recipe(lab, "wieght: 1")
    done = wsmerge("merge", lab / "recipe.yml", lab / "out", "--json")
    assert done.code == 2
    assert json.loads(done.err)["error"]["code"] == "recipe"
    assert not done.out


@pytest.mark.parametrize(("size", "code"), [("1KB", 0), ("0", 2), ("5 parsecs", 2)])
def test_shard_sizes(lab, wsmerge, size, code):
    assert wsmerge("merge", lab / "recipe.yml", lab / "out", "--max-shard-size", size).code == code
    assert (lab / "out/model.safetensors.index.json").exists() == (code == 0)


def test_usage_errors_are_2(wsmerge):
    assert wsmerge("merge").code == 2
    assert wsmerge("no-such-command").code == 2
    assert wsmerge("--version").code == 0


def test_several_recipes_of_one_file_are_planned_and_looked_at_with_dry_run(lab, wsmerge):
    several = lab / "several.yml"
    several.write_text(
        f"name: steered\nbase_model: {lab / 'base'}\ndirections:\n  - direction: kind\n    weight: 0.5\n"
        f"---\nmerge_method: linear\nmodels:\n"
        f"- {{model: steered, parameters: {{weight: 1}}}}\n- {{model: {lab / 'base'}, parameters: {{weight: 1}}}}\n"
    )
    for command in (("plan", several), ("merge", several, lab / "out", "--dry-run")):
        done = wsmerge(*command)
        assert done.code == 0, done.err
        assert done.out.index("recipe steered:") < done.out.index("the result:") < done.out.index("linear")
    told = json.loads(wsmerge("plan", several, "--json").out)
    assert [need["name"] for need in told["needs"]] == ["steered"]
    assert told["write_bytes"] == told["needs"][0]["write_bytes"]
    assert not (lab / "out").exists()
    assert wsmerge("merge", several, lab / "base", "--dry-run").code != 0
