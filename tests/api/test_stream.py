"""Merges whose inputs stay on the Hub: the same bytes as with copies here, read once and told."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

import wsmerge
from tests.builders import llama_shapes, make_adapter, make_checkpoint, random_tensors
from tests.hubs import IMPATIENT, running_hub
from tests.loopback_hub import Fault, LoopbackHub
from tests.sources import random_direction
from wsmerge.core.hub import connection
from wsmerge.errors import CheckpointError, HubError, VerificationError, WsmergeError
from wsmerge.registry import About, write_direction

SHAPES = llama_shapes(layers=4, hidden=64, inner=96, vocab=300)
STORAGE = "/large-files/"
STREAM = wsmerge.Settings(stream=True)
WEIGHTS_BYTES = 2 * sum(rows * (columns or [1])[0] for rows, *columns in SHAPES.values())


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    monkeypatch.setattr(connection, "Patience", lambda: IMPATIENT)
    with running_hub(tmp_path, monkeypatch) as server:
        yield server


@pytest.fixture
def put(hub: LoopbackHub) -> Callable[[str, Path], Path]:
    def put(repo: str, folder: Path) -> Path:
        hub.make_repo(repo)
        hub.commit(repo, {path.name: path.read_bytes() for path in folder.iterdir()})
        return folder

    return put


@pytest.fixture
def models(put: Callable[[str, Path], Path], tmp_path: Path) -> dict[str, Path]:
    """`acme/base` in one file, `acme/chat` in shards, and an adapter."""
    folders = {
        "acme/base": make_checkpoint(tmp_path / "base", random_tensors(SHAPES, seed=1)),
        "acme/chat": make_checkpoint(tmp_path / "chat", random_tensors(SHAPES, seed=2), shards=3),
        "acme/lora": make_adapter(tmp_path / "lora", {n: s for n, s in SHAPES.items() if "up_proj" in n}),
    }
    return {repo: put(repo, folder) for repo, folder in folders.items()}


def weighted(*names: str) -> list[dict[str, Any]]:
    return [{"model": name, "parameters": {"weight": 0.5}} for name in names]


TIES = {
    "merge_method": "ties",
    "base_model": "acme/base",
    "models": [
        {"model": "acme/chat", "parameters": {"weight": 0.5, "density": 0.5}},
        {"model": "acme/base+acme/lora", "parameters": {"weight": 0.25, "density": 0.5}},
    ],
    "dtype": "bfloat16",
}
LINEAR = {
    "merge_method": "linear",
    "models": weighted("acme/base", "acme/chat"),
    "dtype": "float32",
}
SLERP = {
    "merge_method": "slerp",
    "base_model": "acme/base",
    "models": [{"model": "acme/base"}, {"model": "acme/chat"}],
    "parameters": {"t": 0.3},
    "dtype": "bfloat16",
}


def with_paths(recipe: Mapping[str, Any], folders: Mapping[str, Path]) -> dict[str, Any]:
    text = json.dumps(recipe)
    for repo, folder in folders.items():
        text = text.replace(repo, str(folder))
    replaced: dict[str, Any] = json.loads(text)
    return replaced


def outputs(folder: Path) -> dict[str, bytes]:
    """All that is written but what tells of the inputs' names and of the run."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    told = ("wsmerge.json", "README.md")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if path.name not in told}


def weights_sent(hub: LoopbackHub) -> int:
    return sum(request.bytes_sent for request in hub.requests if STORAGE in request.path)


@pytest.mark.parametrize("recipe", [TIES, LINEAR, SLERP], ids=["ties", "linear", "slerp"])
def test_the_output_is_that_of_copies_here(
    hub: LoopbackHub, models: Mapping[str, Path], tmp_path: Path, recipe: Mapping[str, Any]
) -> None:
    wsmerge.merge(with_paths(recipe, models), tmp_path / "copied")
    hub.requests.clear()
    report = wsmerge.merge(recipe, tmp_path / "streamed", settings=STREAM)
    assert outputs(tmp_path / "streamed") == outputs(tmp_path / "copied")
    assert any(name.endswith(".safetensors") for name in outputs(tmp_path / "streamed"))
    sent = weights_sent(hub)
    assert sent <= report.hub_bytes <= sent + 4_000  # redirects are counted too
    assert not list(Path(os.environ["HF_HOME"]).rglob("*.safetensors"))
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    told = json.loads((tmp_path / "streamed" / "wsmerge.json").read_text())
    assert {item["repository"]: item["commit"] for item in told["hub"]} == {
        repo: hub.head(repo) for repo in ({*models} if recipe is TIES else {*models} - {"acme/lora"})
    }
    assert sum(item["bytes_read"] for item in told["hub"]) == report.hub_bytes


@pytest.mark.usefixtures("models")
def test_weights_that_are_read_once_come_once(hub: LoopbackHub, tmp_path: Path) -> None:
    wsmerge.merge(LINEAR, tmp_path / "out", settings=STREAM)
    assert 2 * WEIGHTS_BYTES < weights_sent(hub) < 2.1 * WEIGHTS_BYTES + 100_000


@pytest.mark.usefixtures("models")
def test_planning_reads_headers_only(hub: LoopbackHub) -> None:
    hub.requests.clear()
    with wsmerge.plan(TIES, settings=STREAM) as planned:
        assert planned.merge.peak_bytes > 0
        kept = sum(commit.most_kept_bytes for commit in planned.merge.commits)
        assert 0 < kept < planned.merge.peak_bytes
    assert weights_sent(hub) <= 5 * (64 << 10)


def test_a_base_is_steered_by_a_direction_where_both_lie(
    hub: LoopbackHub, models: Mapping[str, Path], put: Callable[[str, Path], Path], tmp_path: Path
) -> None:
    about = About(name="formal", version="1.2.0", kind="contrastive")
    dense = random_direction({n: s for n, s in SHAPES.items() if "down_proj" in n}, rank=None)
    dense.base = random_direction(SHAPES).base
    write_direction(tmp_path / "formal", dense, about).close()
    put("acme/formal", tmp_path / "formal")
    hub.move_tag("acme/formal", "v1.2.0", hub.head("acme/formal"))
    directions = [{"direction": "hub:acme/formal@v1.2.0", "weight": 0.5}]
    recipe = {"base_model": "acme/base", "directions": directions}
    local = {
        "base_model": str(models["acme/base"]),
        "directions": [{"direction": str(tmp_path / "formal"), "weight": 0.5}],
    }
    wsmerge.merge(local, tmp_path / "copied")
    wsmerge.merge(recipe, tmp_path / "streamed", settings=STREAM)
    assert outputs(tmp_path / "streamed") == outputs(tmp_path / "copied")
    text = (tmp_path / "streamed" / "wsmerge.json").read_text()
    told = json.loads(text)
    commit = hub.head("acme/formal")
    assert told["directions"][0]["label"] == "hub:acme/formal@v1.2.0"
    assert told["recipe"]["directions"][0]["direction"] == f"hub:acme/formal@{commit}"
    assert {item["repository"] for item in told["hub"]} == {"acme/base", "acme/formal"}
    assert str(tmp_path) not in text


def test_a_changed_byte_of_a_dense_direction_stops_the_merge(
    hub: LoopbackHub, models: Mapping[str, Path], put: Callable[[str, Path], Path], tmp_path: Path
) -> None:
    dense = random_direction(SHAPES, rank=None)
    write_direction(tmp_path / "formal", dense, About(name="formal", kind="contrastive")).close()
    put("acme/formal", tmp_path / "formal")
    recipe = {
        "base_model": str(models["acme/base"]),
        "directions": [{"direction": "hub:acme/formal", "weight": 0.5}],
    }
    with wsmerge.plan(recipe) as planned:
        hub.faults.add(Fault("wrong_byte", path=STORAGE, after_bytes=9))
        with pytest.raises(WsmergeError, match="not those that the manifest names"):
            wsmerge.merge(planned, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json"])
def test_a_changed_byte_beside_the_weights_is_caught(hub: LoopbackHub, file: str) -> None:
    hub.faults.add(
        Fault("wrong_byte", method="GET", path=re.escape("/acme/chat/resolve/") + f".*/{file}", after_bytes=30)
    )
    recipe = {"merge_method": "linear", "dtype": "bfloat16", "models": weighted("acme/base", "acme/chat")}
    with pytest.raises(VerificationError, match="not those of the commit") as caught:
        wsmerge.plan(recipe, settings=STREAM)
    assert f"{file}: has other bytes than the commit names" in caught.value.details


@pytest.mark.parametrize("kind", ["cut", "status"])
def test_what_passes_is_got_over(hub: LoopbackHub, models: Mapping[str, Path], tmp_path: Path, kind: Any) -> None:
    wsmerge.merge(with_paths(LINEAR, models), tmp_path / "copied")
    hub.faults.add(Fault(kind, path=STORAGE, status=403, skip=2, after_bytes=1000))
    hub.faults.add(Fault(kind, path=STORAGE, status=503, skip=5, after_bytes=0))
    wsmerge.merge(LINEAR, tmp_path / "streamed", settings=STREAM)
    assert len(hub.faults.fired) == 2
    assert outputs(tmp_path / "streamed") == outputs(tmp_path / "copied")


@pytest.mark.usefixtures("models")
def test_a_connection_that_stays_lost_leaves_nothing(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.faults.add(Fault("drop_before", path=STORAGE, skip=6, times=None))
    with pytest.raises(HubError, match="cannot be read, after 4 attempts") as caught:
        wsmerge.merge(LINEAR, tmp_path / "out", settings=STREAM)
    assert "acme/" in str(caught.value.where)
    assert not list(tmp_path.glob("out*"))
    hub.faults.clear()
    wsmerge.merge(LINEAR, tmp_path / "out", settings=STREAM)


def test_a_branch_that_moves_meanwhile_changes_nothing(
    hub: LoopbackHub, models: Mapping[str, Path], tmp_path: Path
) -> None:
    wsmerge.merge(with_paths(LINEAR, models), tmp_path / "copied")
    with wsmerge.plan(LINEAR, settings=STREAM) as planned:
        other = make_checkpoint(tmp_path / "other", random_tensors(SHAPES, seed=7))
        hub.commit("acme/base", {path.name: path.read_bytes() for path in other.iterdir()})
        wsmerge.merge(planned, tmp_path / "streamed")
    assert outputs(tmp_path / "streamed") == outputs(tmp_path / "copied")


@pytest.mark.usefixtures("models")
def test_copies_that_the_cache_holds_are_not_read_again(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloaded = wsmerge.merge(LINEAR, tmp_path / "downloaded")
    assert (downloaded.hub_bytes, downloaded.hub_requests) == (0, 0)
    hub.requests.clear()
    wsmerge.merge(LINEAR, tmp_path / "again", settings=STREAM)
    assert weights_sent(hub) == 0
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # the client reads the variable when it is imported
    hub.requests.clear()
    wsmerge.merge(LINEAR, tmp_path / "offline", settings=STREAM)
    assert not hub.requests
    assert outputs(tmp_path / "offline") == outputs(tmp_path / "again") == outputs(tmp_path / "downloaded")


@pytest.mark.usefixtures("hub")
def test_pickles_are_refused_with_the_way_out(put: Callable[[str, Path], Path], tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "old", random_tensors(SHAPES))
    (folder / "model.safetensors").unlink()
    torch.save({name: torch.zeros(shape) for name, shape in SHAPES.items()}, folder / "pytorch_model.bin")
    put("acme/old", folder)
    recipe = {"merge_method": "passthrough", "models": [{"model": "acme/old"}]}
    with pytest.raises(CheckpointError, match="is a pickle, which can only be loaded whole") as caught:
        wsmerge.plan(recipe, settings=STREAM)
    assert "leave --stream out" in str(caught.value.hint)


@pytest.mark.usefixtures("hub", "models")
def test_what_is_not_on_the_hub_is_told_with_its_place() -> None:
    recipe = LINEAR | {"models": weighted("acme/base", "acme/nothing", "acme/chat@v7")}
    with pytest.raises(WsmergeError) as caught:
        wsmerge.plan(recipe, settings=STREAM)
    assert "acme/nothing: the Hub has no such repository" in str(caught.value)
    assert "acme/chat@v7: the repository has no such revision" in str(caught.value)


@pytest.mark.usefixtures("models")
def test_shapes_are_checked_before_weights_are_read(
    hub: LoopbackHub, put: Callable[[str, Path], Path], tmp_path: Path
) -> None:
    put("acme/small", make_checkpoint(tmp_path / "small", random_tensors(llama_shapes(layers=4))))
    hub.requests.clear()
    with pytest.raises(WsmergeError, match="acme/small"):
        wsmerge.plan(LINEAR | {"models": weighted("acme/base", "acme/small")}, settings=STREAM)
    assert weights_sent(hub) <= 5 * (64 << 10)


@pytest.mark.usefixtures("hub", "models")
def test_named_recipes_stream_too(tmp_path: Path) -> None:
    first = json.dumps(LINEAR | {"name": "blend"})
    second = json.dumps(LINEAR | {"models": weighted("blend", "acme/chat")})
    recipes = tmp_path / "two.yml"
    recipes.write_text(f"{first}\n---\n{second}\n")
    report = wsmerge.merge(recipes, tmp_path / "out", settings=STREAM)
    assert report.hub_bytes > 2.9 * WEIGHTS_BYTES


@pytest.mark.usefixtures("models")
def test_the_command_line_tells_what_was_read(hub: LoopbackHub, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(json.dumps(LINEAR))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= hub.environment(tmp_path / "fresh")
    command = [sys.executable, "-m", "wsmerge", "merge", str(recipe), str(tmp_path / "out"), "--stream", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert 2 * WEIGHTS_BYTES < told["hub_bytes"] < 2.1 * WEIGHTS_BYTES + 100_000
    assert 0 < told["hub_requests"] < 40
    assert not list((tmp_path / "fresh").rglob("*.safetensors"))
