"""The command line on an object store over HTTP: every command that takes a store takes one by its address."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator

import pytest

from tests.builders import llama_shapes, make_checkpoint, random_tensors
from tests.registry.objects import s3_server
from tests.sources import identity, random_direction
from wsmerge.registry import About, write_direction

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")
    for package in ("obstore", "moto")
]
ADDRESS = f"s3://{s3_server.BUCKET}/cli"


@pytest.fixture
def s3(monkeypatch, tmp_path) -> Iterator[s3_server.LoopbackS3]:
    with s3_server.running() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("WSMERGE_HOME", str(tmp_path / "home"))
        yield server


@pytest.mark.usefixtures("s3")
def test_a_registry_on_s3_does_what_the_local_store_does(wsmerge, tmp_path, monkeypatch):
    shapes = llama_shapes(layers=1, tied=False)
    base = make_checkpoint(tmp_path / "base", random_tensors(shapes))
    source = random_direction({name: shape for name, shape in shapes.items() if "down_proj" in name})
    source.base = identity(shapes)
    write_direction(tmp_path / "direction", source, About(name="formal", kind="contrastive")).close()

    published = json.loads(wsmerge("publish", tmp_path / "direction", "--store", ADDRESS, "--json").out)
    assert published["path"] == f"{ADDRESS}/formal@1.0.0"
    monkeypatch.setenv("WSMERGE_STORE", ADDRESS)
    assert wsmerge("tag", "formal@1.0.0", "good").code == 0
    (listed,) = json.loads(wsmerge("list", "--json").out)
    assert (listed["version_digest"], listed["aliases"]) == (published["version_digest"], ["good", "latest"])
    shown = wsmerge("show", "formal@good")
    assert (shown.code, f"{ADDRESS}/formal@1.0.0" in shown.out) == (0, True)
    assert wsmerge("verify").code == 0
    assert [event["action"] for event in json.loads(wsmerge("log", "formal", "--json").out)] == ["publish", "tag"]

    merged = {}
    for place, reference in (("remote", "formal@good"), ("local", tmp_path / "direction")):
        recipe = tmp_path / f"{place}.yaml"
        recipe.write_text(f"base_model: {base}\ndirections:\n  - direction: {reference}\n    weight: 0.5\n")
        assert wsmerge("merge", recipe, tmp_path / place).code == 0
        merged[place] = (tmp_path / place / "model.safetensors").read_bytes()
    assert merged["remote"] == merged["local"]
    assert merged["remote"] != (base / "model.safetensors").read_bytes()
    assert wsmerge("rm", "formal@1.0.0").code == 0
    assert wsmerge("gc", "--delete", "--min-age", "0").code == 0
    assert json.loads(wsmerge("list", "--json").out) == []
    assert not (tmp_path / "home").exists()


@pytest.mark.usefixtures("s3")
def test_new_directions_go_there_and_end_with_0(wsmerge, tmp_path):
    shapes = llama_shapes(layers=1, tied=False)
    base = make_checkpoint(tmp_path / "base", random_tensors(shapes))
    tuned = make_checkpoint(tmp_path / "tuned", random_tensors(shapes, seed=2))
    store = ("--store", ADDRESS)
    extracted = wsmerge("extract", "formal", "--base", base, "--positive", tuned, *store)
    assert (extracted.code, f"at {ADDRESS}/formal@1.0.0" in extracted.out) == (0, True)
    composed = wsmerge("compose", "half", "--add", "formal=0.5", *store, "--json")
    assert (composed.code, json.loads(composed.out)["path"]) == (0, f"{ADDRESS}/half@1.0.0")
    assert [entry["name"] for entry in json.loads(wsmerge("list", *store, "--json").out)] == ["formal", "half"]
