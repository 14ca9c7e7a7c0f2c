"""push, pull and search on the command line, against a Hub on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hubs import running_hub
from tests.loopback_hub import LoopbackHub
from tests.registry.artifacts import make_artifact
from wsmerge.registry import Store

REPO = "acme/formal"


@pytest.fixture
def loopback(tmp_path_factory, monkeypatch) -> Iterator[LoopbackHub]:
    with running_hub(tmp_path_factory.mktemp("loopback"), monkeypatch) as served:
        yield served


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_artifact(tmp_path / "formal", description="Writes like a lawyer.")


def test_push_pull_and_push_again(wsmerge, loopback, folder):
    done = wsmerge("push", folder, REPO, "--alias", "good")
    commit = loopback.tags(REPO)["v1.0.0"]
    assert done.code == 0, done.err
    assert done.out.splitlines()[0] == f"{REPO}@1.0.0 pushed: commit {commit}, tag v1.0.0"
    assert loopback.tags(REPO)["good"] == commit
    assert f"wsmerge pull {REPO}@1.0.0" in done.err
    assert "is there already" in wsmerge("push", folder, REPO).out

    done = wsmerge("pull", REPO)
    assert (done.code, done.out.splitlines()[0].partition(",")[0]) == (0, f"{REPO}@1.0.0: commit {commit}")
    assert "is in the store already" in wsmerge("pull", f"{REPO}@good").out
    assert commit in wsmerge("log", REPO).out
    shown = wsmerge("show", f"{REPO}@1.0.0").out
    assert commit in shown.split("pulled from commit")[1]
    assert f"commit-{commit[:12]}," in wsmerge("list").out
    assert wsmerge("verify", REPO).code == 0


def test_json(wsmerge, loopback, folder):
    pushed = json.loads(wsmerge("push", folder, REPO, "--private", "--message", "The first one", "--json").out)
    assert (pushed["outcome"], pushed["tag"], pushed["repo"]) == ("pushed", "v1.0.0", REPO)
    assert loopback.api().model_info(REPO).private
    assert loopback.api().list_repo_commits(REPO)[0].title == "The first one"
    pulled = json.loads(wsmerge("pull", REPO, "--json").out)
    assert (pulled["outcome"], pulled["commit"], pulled["name"]) == ("pulled", pushed["commit"], REPO)
    assert pulled["version_digest"] == pushed["version_digest"]


def test_a_conflict_is_told_with_what_to_do(wsmerge, loopback, folder, tmp_path):
    wsmerge("push", folder, REPO)
    done = wsmerge("push", make_artifact(tmp_path / "other", seed=2), REPO)
    assert (done.code, done.out) == (1, "")
    assert "version 1.0.0 is there with digest" in done.err
    assert "next: versions never change: publish it as 1.0.1" in done.err
    assert list(loopback.tags(REPO)) == ["v1.0.0"]


def test_a_lower_version_says_that_main_stays(wsmerge, loopback, folder, tmp_path):
    wsmerge("push", make_artifact(tmp_path / "two", version="2.0.0", seed=2), REPO)
    done = wsmerge("push", folder, REPO)
    assert "main stays where it is" in done.err
    assert loopback.head(REPO) == loopback.tags(REPO)["v2.0.0"]


def test_part_of_a_direction(wsmerge, loopback, folder):
    wsmerge("push", folder, REPO)
    part = json.loads(wsmerge("pull", REPO, "--layers", "1", "--modules", "mlp,q_proj", "--name", "top", "--json").out)
    assert (part["name"], part["tensors"]) == ("top", 2)
    assert 0 < part["bytes_read"] < part["whole_bytes"]
    assert part["commit"] == loopback.tags(REPO)["v1.0.0"]
    done = wsmerge("pull", REPO, "--layers", "0", "--name", "bottom")
    assert "bytes read, of " in done.out
    assert wsmerge("pull", REPO, "--modules", ",").code == 2


@pytest.mark.usefixtures("loopback")
def test_search_in_both_places(wsmerge, folder, tmp_path):
    wsmerge("push", folder, REPO)
    Store().publish(make_artifact(tmp_path / "brief", "brief", seed=3))
    Store().publish(make_artifact(tmp_path / "brief-2", "brief", "1.1.0", seed=4))
    done = wsmerge("search", "--base", "acme/base")
    assert done.code == 0, done.err
    rows = [line.split() for line in done.out.splitlines()]
    assert rows[0] == ["where", "direction", "versions", "behaviour", "kind", "base"]
    assert rows[1:] == [
        ["local", "brief", "1.0.0,", "1.1.0", "brief", "contrastive", "acme/base"],
        ["hub", REPO, "1.0.0", "formal", "contrastive", "acme/base"],
    ]
    found = json.loads(wsmerge("search", "lawyer", "--json").out)
    assert [(row["where"], row["repo"], row["versions"]) for row in found] == [("hub", REPO, ["1.0.0"])]
    assert json.loads(wsmerge("search", "lawyer", "--local", "--json").out) == []
    assert [row["where"] for row in json.loads(wsmerge("search", "--hub", "--json").out)] == ["hub"]
    assert json.loads(wsmerge("search", "--behaviour", "law", "--kind", "composed", "--json").out) == []


def test_search_without_a_hub_says_so(wsmerge, loopback, folder, monkeypatch):
    Store().publish(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = wsmerge("search", "lawyer")
    assert (done.code, done.out.splitlines()[1].split()[:2]) == (0, ["local", "formal"])
    assert "the Hub was not searched" in done.err
    assert wsmerge("search", "lawyer", "--hub").code == 1
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    done = wsmerge("search", "lawyer")
    assert (done.code, done.out.splitlines()[1].split()[:2]) == (0, ["local", "formal"])
    assert "the Hub was not searched: the Hub cannot be reached" in done.err
    assert loopback.requests == []


def test_a_collection(wsmerge, loopback, folder):
    done = json.loads(wsmerge("push", folder, REPO, "--collect", "--json").out)
    assert [
        item.item_id for item in loopback.api().get_collection(done["collection"].partition("/collections/")[2]).items
    ] == [REPO]
    assert "/collections/acme/" in wsmerge("push", folder, REPO, "--collect").out


def test_offline_pulls_come_from_the_store(wsmerge, loopback, folder, monkeypatch):
    wsmerge("push", folder, REPO)
    wsmerge("pull", REPO)
    loopback.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "the Hub was not asked" in wsmerge("pull", f"{REPO}@1.0.0").out
    done = wsmerge("pull", "acme/unknown")
    assert done.code == 1
    assert "HF_HUB_OFFLINE" in done.err
    assert loopback.requests == []
