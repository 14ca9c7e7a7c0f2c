"""Finding directions on the Hub by their cards, and collecting them by base."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.hubs import connection, running_hub
from tests.loopback_hub import Fault, LoopbackHub
from tests.registry.artifacts import make_artifact
from wsmerge.api.hub import search_hub as api_search
from wsmerge.core.hub.connection import Hub
from wsmerge.errors import HubError, UsageError
from wsmerge.registry import DatasetRecord, open_direction_folder
from wsmerge.registry.hub.collecting import collect, collection_title
from wsmerge.registry.hub.push import push
from wsmerge.registry.hub.search import search_hub
from wsmerge.registry.search import Wanted


@pytest.fixture(scope="module")
def loopback(tmp_path_factory) -> Iterator[LoopbackHub]:
    """acme/legalese in two versions, acme/terse, and a model that is no direction."""
    folder = tmp_path_factory.mktemp("search")
    with pytest.MonkeyPatch.context() as patch, running_hub(folder, patch) as server:
        hub, data = connection(server), (DatasetRecord(source="acme/letters"),)
        for version, seed in (("1.0.0", 1), ("1.1.0", 2)):
            about = {"description": "Writes like a lawyer.", "datasets": data}
            put(hub, make_artifact(folder / version, "formal", version, seed=seed, **about), "acme/legalese")
        put(hub, make_artifact(folder / "brief", "brief", seed=3), "acme/terse")
        server.make_repo("acme/other")
        server.commit("acme/other", {"README.md": b"---\ntags: [direction]\nbase_model: acme/base\n---\nlawyer"})
        yield server


@pytest.fixture
def hub(loopback, monkeypatch) -> Hub:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    loopback.faults.clear()
    loopback.requests.clear()
    return connection(loopback)


def put(hub: Hub, folder, repo: str) -> None:
    with open_direction_folder(folder) as direction:
        push(hub, direction, repo)


@pytest.mark.parametrize(
    ("wanted", "repos"),
    [
        (Wanted(), {"acme/legalese", "acme/terse"}),
        (Wanted(query="LAWYER writes"), {"acme/legalese"}),
        (Wanted(query="lawyer brief"), set()),
        (Wanted(behaviour="form"), {"acme/legalese"}),
        (Wanted(behaviour="lawyer"), {"acme/legalese"}),
        (Wanted(base="acme/base", kind="Contrastive"), {"acme/legalese", "acme/terse"}),
        (Wanted(base="base"), {"acme/legalese", "acme/terse"}),
        (Wanted(base="acme/bas"), {"acme/legalese", "acme/terse"}),
        (Wanted(base="acme/elsewhere"), set()),
        (Wanted(kind="composed"), set()),
        (Wanted(name="terse"), {"acme/terse"}),
        (Wanted(dataset="letters"), {"acme/legalese"}),
    ],
)
def test_what_is_found(hub, wanted, repos):
    assert {found.repo for found in search_hub(hub, wanted)} == repos


def test_what_is_told(hub, loopback):
    (found,) = search_hub(hub, Wanted(query="lawyer"))
    assert (found.behaviour, found.description, found.kind) == ("formal", "Writes like a lawyer.", "contrastive")
    assert (found.base, found.versions, found.datasets) == ("acme/base", ("1.0.0", "1.1.0"), ("acme/letters",))
    # Whether the Hub is there, the list, and the versions of what was found.
    assert len(loopback.requests) == 3


def test_a_repository_that_goes_meanwhile_has_no_versions(hub, loopback):
    loopback.faults.add(Fault("status", status=404, path="/acme/terse/refs"))
    assert [found.versions for found in search_hub(hub, Wanted(query="terse"))] == [()]


def test_what_cannot_be_searched(hub, loopback, monkeypatch):
    with pytest.raises(UsageError, match="no kind 'x'"):
        search_hub(hub, Wanted(kind="x"))
    loopback.faults.add(Fault("status", status=500, path="/refs", times=None))
    with pytest.raises(HubError, match="status 500"):
        search_hub(hub, Wanted())
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        search_hub(hub, Wanted())


def test_a_collection_of_one_base(hub):
    slugs = {collect(hub, repo, "acme/base") for repo in ("acme/legalese", "acme/terse", "acme/legalese")}
    assert len(slugs) == 1
    collection = hub.api.get_collection(slugs.pop())
    assert collection.title == "wsmerge directions for base"
    assert [item.item_id for item in collection.items] == ["acme/legalese", "acme/terse"]
    assert collect(hub, "acme/terse", "acme/another") != collection.slug


def test_titles_fit_the_hub():
    title = collection_title("acme/" + "a-very-long-name-of-a-model-" * 3)
    assert len(title) == 60
    assert re.fullmatch(r"wsmerge directions for a-very-long-.*…", title)


def test_as_many_as_are_asked_for(hub):
    assert len(search_hub(hub, Wanted(), limit=1)) == 1
    assert len(api_search(hub=hub, limit=1)) == 1
    assert len(api_search(hub=hub)) == 2
    with pytest.raises(UsageError, match="limit"):
        search_hub(hub, Wanted(), limit=0)
