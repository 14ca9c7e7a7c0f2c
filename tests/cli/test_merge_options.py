"""Options of `plan` and `merge` for recipes that merge models."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import yaml

from tests.builders import write_tensor_file
from tests.engine.merging.made import dtypes_of, entries, fine_tune, model, values
from tests.recipe.live import mergekit
from wsmerge.core.dtypes import F32

HALF = {"weight": 0.5, "density": 0.5}


@pytest.fixture
def lab(tmp_path):
    base = model(tmp_path / "base")
    fine_tune(base, tmp_path / "one", seed=1)
    fine_tune(base, tmp_path / "two", seed=2)
    return tmp_path


def recipe(lab, method="ties", **top):
    sources = entries((lab / "one", HALF), (lab / "two", HALF))
    path = lab / "recipe.yml"
    text = {"merge_method": method, "base_model": str(lab / "base"), "models": sources, **top}
    path.write_text(yaml.safe_dump(text, sort_keys=False))
    return path


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_plan_tells_methods_costs_and_warnings(lab, wsmerge):
    before = names(lab)
    done = wsmerge("plan", recipe(lab, dype=1))
    assert done.code == 0, done.err
    for words in ("ties", "bfloat16", "model.safetensors", "configuration from base", "peak memory at most"):
        assert words in done.out
    assert "dype" in done.err
    assert names(lab) - {"recipe.yml"} == before
    told = json.loads(wsmerge("plan", lab / "recipe.yml", "--json", "--precise", "--seed", "3").out)
    assert told["numerics"] == {"precise": True, "mergekit_bugs": False, "mergekit_rng": False, "seed": 3}
    tensor = next(item for item in told["tensors"] if item["name"] == "model.norm.weight")
    assert (tensor["method"], tensor["computed_in"], tensor["dtype"]) == ("ties", "float32", "bfloat16")
    inputs = {item["tensor"].split(":")[0]: item for item in tensor["inputs"]}
    assert {name: item.get("base", False) for name, item in inputs.items()} == {
        "base": True,
        "one": False,
        "two": False,
    }
    assert inputs["one"]["parameters"]["density"] == 0.5
    assert told["read_bytes"] == 3 * sum(2 * item.size for item in values(lab / "base").values())


def test_a_dry_run_prints_the_plan_and_writes_nothing(lab, wsmerge):
    path = recipe(lab)
    before = names(lab)
    done = wsmerge("merge", path, lab / "out", "--dry-run", "--json")
    assert done.code == 0
    assert {shard["file"] for shard in json.loads(done.out)["shards"]} == {"model.safetensors"}
    assert names(lab) == before
    assert wsmerge("merge", path, lab / "base", "--dry-run").code == 2  # the output would lie over an input
    assert wsmerge("merge", recipe(lab, dype=1), lab / "out", "--dry-run", "--strict").code == 2
    assert names(lab) == before


def test_merge_reports_as_json_and_keeps_warnings_out_of_it(lab, wsmerge):
    done = wsmerge("merge", recipe(lab, dype=1), lab / "out", "--json", "--max-shard-size", "4KB")
    assert done.code == 0
    told = json.loads(done.out)
    assert len(told["outputs"]) > 2
    assert [line.count("dype") for line in told["warnings"]] == [1]


def test_seed_and_numerics_reach_the_merge(lab, wsmerge):
    path = recipe(lab, "dare_linear")
    runs = {
        "first": [],
        "again": ["--seed", "0", "--threads", "1", "--block-mib", "2"],
        "other": ["--seed", "1"],
        "precise": ["--precise"],
        "theirs": ["--mergekit-rng"],
    }
    for name, options in runs.items():
        done = wsmerge("merge", path, lab / name, *options)
        assert done.code == 0, done.err
    found = {name: values(lab / name)["model.embed_tokens.weight"] for name in runs}
    assert (found["first"] == found["again"]).all()
    for name in ("other", "precise", "theirs"):
        assert (found["first"] != found[name]).any()


@pytest.mark.parametrize(
    "options",
    [
        ["--precise", "--mergekit-rng"],
        ["--seed", "-1"],
        ["--seed", "4294967296"],
        ["--tensor-union"],
        ["--raw", "--tensor-union", "--tensor-intersection"],
        ["--plugin", "no_such_module_anywhere"],
        ["--block-mib", "17"],
        ["--threads", "0"],
    ],
    ids=" ".join,
)
def test_options_that_make_no_sense_are_2(lab, wsmerge, options):
    path = recipe(lab)
    before = names(lab)
    for command in (["merge", path, lab / "out"], ["plan", path]):
        done = wsmerge(*command, *options)
        assert done.code == 2
        assert done.err
    assert names(lab) == before


def test_raw_files(lab, wsmerge, monkeypatch):
    monkeypatch.chdir(lab)
    for seed, more in enumerate(("a", "b")):
        generator = np.random.default_rng(seed)
        tensors = {name: (F32, generator.standard_normal(5).astype(np.float32)) for name in ("shared", more)}
        write_tensor_file(lab / f"part{seed}.safetensors", tensors)
    sources = [{"model": f"./part{seed}.safetensors", "parameters": {"weight": 1}} for seed in (0, 1)]
    (lab / "raw.yml").write_text(json.dumps({"merge_method": "linear", "models": sources}))
    done = wsmerge("merge", "raw.yml", "refused", "--raw")
    assert done.code == 1
    assert "--tensor-union" in done.err
    for option, expected in (("-u", {"shared", "a", "b"}), ("--tensor-intersection", {"shared"})):
        done = wsmerge("merge", "raw.yml", f"out{option}", "--raw", option)
        assert done.code == 0, done.err
        assert set(values(lab / f"out{option}")) == expected


def test_intermediates(lab, wsmerge):
    blend = {
        "name": "blend",
        "merge_method": "linear",
        "models": entries((lab / "one", {"weight": 1}), (lab / "two", {"weight": 1})),
    }
    last = {"merge_method": "passthrough", "models": [{"model": "blend"}]}
    (lab / "recipe.yml").write_text(yaml.safe_dump_all([blend, last]))
    assert wsmerge("merge", lab / "recipe.yml", lab / "out", "--intermediate-dir", lab / "kept").code == 0
    assert len(names(lab / "kept")) == 1
    assert wsmerge("merge", lab / "recipe.yml", lab / "other").code == 0
    assert names(lab) == {"base", "one", "two", "out", "other", "kept", "recipe.yml"}


PLUGIN = """
import torch
from mergekit.merge_methods import register
from mergekit.merge_methods.base import TensorGroup
from mergekit.merge_methods.easy_define import merge_method

@merge_method(name="{name}")
def largest(group: TensorGroup, factor: float = 1.0) -> torch.Tensor:
    return factor * torch.stack(list(group.tensors)).amax(dim=0)

register(largest)
"""


@pytest.mark.parametrize("command", ["merge", "plan", "lint"])
def test_a_plugin_brings_its_method(lab, wsmerge, monkeypatch, command):
    monkeypatch.chdir(lab)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    registry = mergekit("merge_methods.registry")
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))  # other tests look at all there are
    name = f"largest_of_{command}"
    (lab / f"plugin_{name}.py").write_text(PLUGIN.format(name=name))
    sources = entries((lab / "one", {}), (lab / "two", {}))
    (lab / "recipe.yml").write_text(
        yaml.safe_dump({"merge_method": name, "models": sources, "parameters": {"factor": 2}})
    )
    out = ["out"] if command == "merge" else []
    done = wsmerge(command, "recipe.yml", *out)
    assert done.code == (1 if command == "lint" else 2)
    assert "--plugin" in done.out + done.err
    done = wsmerge(command, "recipe.yml", *out, "--plugin", f"plugin_{name}")
    assert done.code == 0, done.err
    if command == "merge":
        one, two = values(lab / "one"), values(lab / "two")
        for tensor, written in values(lab / "out").items():
            np.testing.assert_array_equal(written, 2 * np.maximum(one[tensor], two[tensor]))
        assert dtypes_of(lab / "out") == {"bfloat16"}


@pytest.mark.parametrize(
    "text", ["import no_such_module_anywhere", "raise ValueError('no')", "x ="], ids=["import", "value", "syntax"]
)
def test_a_plugin_that_fails_is_told(lab, wsmerge, monkeypatch, text, request):
    monkeypatch.chdir(lab)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    module = f"bad_plugin_{request.node.callspec.id}"
    (lab / f"{module}.py").write_text(text)
    done = wsmerge("merge", recipe(lab), lab / "out", "--plugin", module)
    assert done.code == 2
    assert module in done.err
    assert "next:" in done.err
    assert not (lab / "out").exists()
