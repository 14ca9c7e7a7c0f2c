"""Pulling over HTTP with the real client's Hub: what enters the store, and what is refused."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.hubs import connection
from tests.loopback_hub import Fault
from tests.registry.artifacts import about, make_artifact
from tests.sources import random_direction
from wsmerge.core.hub.connection import Hub
from wsmerge.errors import ConflictError, DirectionError, HubError, NotFoundError, TensorFileError, VerificationError
from wsmerge.registry import Store, open_direction_folder, write_direction
from wsmerge.registry.hub.pins import commits_of
from wsmerge.registry.hub.pull import pull
from wsmerge.registry.hub.push import push

REPO = "acme/formal"
PAYLOAD = "adapter_model.safetensors"


@pytest.fixture
def first(hub, tmp_path) -> Path:
    """Version 1.0.0, pushed."""
    return pushed(hub, make_artifact(tmp_path / "first"))


def pushed(hub: Hub, folder: Path, repo: str = REPO) -> Path:
    with open_direction_folder(folder) as direction:
        push(hub, direction, repo)
    return folder


def downloads(loopback) -> list[tuple[str, str | None]]:
    """Which files were asked for, with their ranges."""
    return [
        (request.path.rpartition("/")[2], request.range) for request in loopback.requests if "/resolve/" in request.path
    ]


def names_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_version_enters_the_store_as_it_is_and_is_pinned(hub, loopback, store, first):
    got = pull(hub, REPO, store)
    commit = loopback.tags(REPO)["v1.0.0"]
    assert (got.outcome, got.entry.label, got.commit) == ("pulled", f"{REPO}@1.0.0", commit)
    with open_direction_folder(first) as direction:
        assert got.entry.version_digest == direction.digest
    assert (got.entry.path / PAYLOAD).read_bytes() == (first / PAYLOAD).read_bytes()
    assert names_below(got.entry.path) == names_below(first)
    assert commits_of(got.entry) == (commit,)
    assert [event.alias for event in store.log(REPO)] == ["", f"commit-{commit}"]
    assert store.verify().problems == ()
    sizes = sum(path.stat().st_size for path in got.entry.path.iterdir())
    # The manifest is read before all of it is fetched, and a large file's redirect has a body.
    assert got.bytes_read - sizes - (first / "direction.json").stat().st_size < 500
    assert names_below(store.paths.temporary) == set()


@pytest.mark.usefixtures("first")
@pytest.mark.parametrize("revision", ["1.0.0", "v1.0.0", "good", "main", "commit"])
def test_each_way_to_say_a_revision(hub, loopback, store, revision):
    loopback.move_tag(REPO, "good", loopback.tags(REPO)["v1.0.0"])
    asked = loopback.tags(REPO)["v1.0.0"] if revision == "commit" else revision
    assert pull(hub, f"{REPO}@{asked}", store).entry.label == f"{REPO}@1.0.0"
    assert pull(hub, f"hub:{REPO}@{asked}", store).outcome == "present"


@pytest.mark.usefixtures("first")
def test_without_a_revision_it_is_the_highest_release(hub, store, tmp_path):
    pushed(hub, make_artifact(tmp_path / "second", version="1.1.0", seed=2))
    pushed(hub, make_artifact(tmp_path / "candidate", version="2.0.0-rc.1", seed=3))
    pushed(hub, make_artifact(tmp_path / "patch", version="1.0.1", seed=4))
    assert pull(hub, REPO, store).entry.label == f"{REPO}@1.1.0"
    assert pull(hub, f"{REPO}@2.0.0-rc.1", store).entry.label == f"{REPO}@2.0.0-rc.1"


@pytest.mark.usefixtures("first")
def test_without_a_revision_it_is_latest_where_that_is_a_tag(hub, loopback, store, tmp_path):
    pushed(hub, make_artifact(tmp_path / "second", version="1.1.0", seed=2))
    loopback.move_tag(REPO, "latest", loopback.tags(REPO)["v1.0.0"])
    assert pull(hub, REPO, store).entry.label == f"{REPO}@1.0.0"


@pytest.mark.usefixtures("first")
def test_without_a_version_it_is_main(hub, loopback, store):
    hub.api.delete_tag(REPO, tag="v1.0.0")
    assert pull(hub, REPO, store).commit == loopback.head(REPO)


@pytest.mark.usefixtures("first")
def test_a_version_that_is_not_there_names_those_that_are(hub, store):
    with pytest.raises(NotFoundError, match=r"no version 3\.0\.0") as refused:
        pull(hub, f"{REPO}@3.0.0", store)
    assert "1.0.0" in str(refused.value.hint)
    with pytest.raises(HubError, match="no such revision"):
        pull(hub, f"{REPO}@nowhere", store)
    with pytest.raises(HubError, match="no such repository"):
        pull(hub, "acme/nothing", store)
    assert store.known_names() == ()


@pytest.mark.usefixtures("first")
def test_pulling_again_fetches_nothing_but_the_manifest(hub, loopback, store):
    pull(hub, REPO, store)
    loopback.requests.clear()
    again = pull(hub, f"{REPO}@1.0.0", store)
    assert again.outcome == "present"
    assert {name for name, _ in downloads(loopback)} == {"direction.json"}
    assert len(store.log(REPO)) == 2


@pytest.mark.usefixtures("first")
def test_a_commit_that_was_pulled_is_not_asked_for(hub, loopback, store):
    commit = pull(hub, REPO, store).commit
    loopback.requests.clear()
    assert pull(hub, f"{REPO}@{commit}", store).outcome == "present"
    assert loopback.requests == []


@pytest.mark.usefixtures("first")
def test_offline_the_store_answers(hub, loopback, store, monkeypatch):
    commit = pull(hub, REPO, store).commit
    loopback.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for reference in (REPO, f"{REPO}@1.0.0", f"{REPO}@v1.0.0", f"{REPO}@{commit}"):
        got = pull(hub, reference, store)
        assert (got.outcome, got.entry.label, got.commit) == ("offline", f"{REPO}@1.0.0", commit)
    for reference in ("acme/other", f"{REPO}@2.0.0", f"{REPO}@good"):
        with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
            pull(hub, reference, store)
    assert loopback.requests == []


@pytest.mark.usefixtures("first")
def test_a_moved_tag_with_another_direction_is_refused(hub, loopback, store, tmp_path):
    before = pull(hub, REPO, store)
    other = make_artifact(tmp_path / "other", seed=9)
    commit = loopback.commit(REPO, {path.name: path.read_bytes() for path in other.iterdir()})
    loopback.move_tag(REPO, "v1.0.0", commit)
    with pytest.raises(ConflictError, match="is in the store with digest") as refused:
        pull(hub, f"{REPO}@1.0.0", store)
    assert before.commit in refused.value.message
    assert commit in refused.value.message
    assert store.resolve(f"{REPO}@1.0.0").version_digest == before.entry.version_digest
    # What the error proposes works.
    assert pull(hub, f"{REPO}@{commit}", store, name="formal-other").entry.label == "formal-other@1.0.0"


@pytest.mark.usefixtures("first")
def test_a_moved_tag_with_the_same_direction_is_told(hub, loopback, store):
    before = pull(hub, REPO, store)
    commit = loopback.commit(REPO, {"evaluations/a.json": b"{}"})
    loopback.move_tag(REPO, "v1.0.0", commit)
    again = pull(hub, f"{REPO}@1.0.0", store)
    assert again.outcome == "present"
    assert before.commit in again.notes[0]
    assert commit in again.notes[0]
    assert set(commits_of(again.entry)) == {before.commit, commit}
    assert pull(hub, f"{REPO}@1.0.0", store).notes == ()


@pytest.mark.usefixtures("first")
def test_a_tag_that_says_another_version_is_refused(hub, loopback, store):
    loopback.move_tag(REPO, "v2.0.0", loopback.head(REPO))
    with pytest.raises(VerificationError, match=r"the tag says version 2\.0\.0"):
        pull(hub, f"{REPO}@2.0.0", store)
    assert store.known_names() == ()


@pytest.mark.usefixtures("first")
@pytest.mark.parametrize("name", [PAYLOAD, "adapter_config.json", "direction.json", "README.md"])
def test_a_byte_that_changes_on_the_way_is_refused(hub, loopback, store, name):
    where = "/large-files/" if name == PAYLOAD else f"/resolve/.*/{name}"
    loopback.faults.add(Fault("wrong_byte", path=where, after_bytes=300, times=None))
    with pytest.raises((VerificationError, DirectionError)):
        pull(hub, REPO, store)
    assert store.known_names() == ()
    assert store.survey().entries == ()
    loopback.faults.clear()
    assert pull(hub, REPO, store).outcome == "pulled"
    assert store.verify().problems == ()


def test_a_repository_whose_tensors_are_not_what_its_manifest_says_is_refused(hub, loopback, store, first):
    """A consistent commit: only the manifest's own digests can tell."""
    data = bytearray((first / PAYLOAD).read_bytes())
    data[-2] ^= 1
    commit = loopback.commit(REPO, {PAYLOAD: bytes(data)})
    with pytest.raises(VerificationError, match="not what the manifest says"):
        pull(hub, f"{REPO}@{commit}", store)
    assert store.survey().entries == ()


def test_a_repository_whose_adapter_settings_change_the_delta_is_refused(hub, loopback, store, first):
    settings = json.loads((first / "adapter_config.json").read_text()) | {"layers_to_transform": [0]}
    commit = loopback.commit(REPO, {"adapter_config.json": json.dumps(settings).encode()})
    with pytest.raises(VerificationError, match="not what the manifest says") as caught:
        pull(hub, f"{REPO}@{commit}", store)
    assert caught.value.details == ("adapter_config.json: layers_to_transform is set, which changes what PEFT does",)
    assert store.survey().entries == ()
    assert not list(store.paths.temporary.glob("pull-*"))


def test_what_is_no_direction_is_refused(hub, loopback, store):
    loopback.make_repo("acme/model")
    with pytest.raises(DirectionError):
        pull(hub, "acme/model", store)
    assert store.known_names() == ()


def test_a_cut_download_goes_on_where_it_stopped(hub, loopback, store, tmp_path):
    """The process ends at the cut: the next one asks for the missing bytes alone."""
    dense = random_direction({"model.layers.0.mlp.up_proj.weight": (3000, 1024)}, rank=None)
    with write_direction(tmp_path / "dense", dense, about()) as direction:
        push(hub, direction, REPO)
    size = (tmp_path / "dense" / "direction.safetensors").stat().st_size
    kept = 8 << 20
    assert size > kept
    # The first 8 MiB come, and no more.
    loopback.faults.add(Fault("status", path="/large-files/", status=404, times=None, skip=1))
    with pytest.raises(HubError):
        pull(hub, REPO, store)
    assert store.survey().entries == ()
    loopback.faults.clear()
    loopback.requests.clear()
    got = pull(connection(loopback), REPO, store)
    assert got.outcome == "pulled"
    ranges = [asked for name, asked in downloads(loopback) if name == "direction.safetensors"]
    assert ranges[0] == f"bytes={kept}-{size - 1}"
    assert got.bytes_read < size - kept + 20_000
    assert names_below(store.paths.temporary) == set()


@pytest.mark.usefixtures("first")
def test_what_a_cut_leaves_is_garbage_once_it_is_old(hub, loopback, store):
    loopback.faults.add(Fault("drop_before", path="/large-files/", times=None))
    with pytest.raises(HubError):
        pull(hub, REPO, store)
    left = next(store.paths.temporary.glob("pull-*"))
    assert store.gc(dry_run=False).temporaries == 0
    assert left.exists()
    assert store.gc(dry_run=False, min_age_s=0).temporaries == 1
    assert not left.exists()


def test_gated_and_private_repositories_need_who_may(loopback, hub, store, first, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    loopback.make_repo("acme/gated", gated=True)
    loopback.commit("acme/gated", {path.name: path.read_bytes() for path in first.iterdir()})
    nobody = Hub(endpoint=loopback.endpoint)
    with pytest.raises(HubError):
        pull(nobody, "acme/gated", store)
    assert pull(hub, "acme/gated", store).entry.name == "acme/gated"
    loopback.make_repo("acme/private", private=True)
    loopback.commit("acme/private", {path.name: path.read_bytes() for path in first.iterdir()})
    with pytest.raises(HubError, match="no such repository, or does not show it"):
        pull(nobody, "acme/private", store)
    assert pull(hub, "acme/private", store).entry.label == "acme/private@1.0.0"


@pytest.mark.usefixtures("first")
def test_names_that_leave_the_folder_are_refused(hub, loopback, store):
    index = {"weight_map": {"a": "../../evil.safetensors"}}
    loopback.commit(REPO, {"direction.safetensors.index.json": json.dumps(index).encode()})
    hub.api.delete_file("adapter_model.safetensors", REPO)
    with pytest.raises(TensorFileError, match="names files outside the folder"):
        pull(hub, f"{REPO}@main", store)
    assert store.survey().entries == ()


@pytest.mark.usefixtures("first")
def test_a_direction_comes_back_through_another_repository(hub, store):
    """Pulled, pushed on elsewhere, and pulled there: the same digests, and a card for each place."""
    entry = pull(hub, REPO, store).entry
    with store.open(entry.label) as direction:
        push(hub, direction, "acme/copy")
    other = pull(hub, "acme/copy", store).entry
    assert (other.name, other.version_digest) == ("acme/copy", entry.version_digest)
    assert "wsmerge pull acme/copy@1.0.0" in (other.path / "README.md").read_text()


@pytest.mark.usefixtures("first")
def test_two_pulls_at_once(loopback, store):
    with ThreadPoolExecutor(3) as threads:
        got = list(threads.map(lambda _: pull(connection(loopback), REPO, Store(store.root)), range(3)))
    assert {one.entry.version_digest for one in got} == {got[0].entry.version_digest}
    assert [event.action for event in store.log(REPO)] == ["publish", "tag"]
    assert names_below(store.paths.temporary) == set()


@pytest.mark.usefixtures("first")
def test_a_stale_part_of_a_file_is_thrown_away(hub, loopback, store):
    """Bytes that an earlier run left and that are not the file's are found by its digest, and the next pull starts anew."""
    commit = loopback.tags(REPO)["v1.0.0"]
    part = store.paths.temporary / f"pull-acme--formal-{commit}" / f"{PAYLOAD}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 100)
    os.utime(part, (time.time(), time.time()))
    with pytest.raises(VerificationError, match=f"the bytes that came for {PAYLOAD}"):
        pull(hub, REPO, store)
    assert pull(hub, REPO, store).outcome == "pulled"


def test_a_file_that_was_spoilt_while_a_pull_was_cut_is_fetched_again(hub, loopback, store, first):
    loopback.faults.add(Fault("drop_before", path="README", times=None))
    with pytest.raises(HubError):
        pull(hub, REPO, store)
    loopback.faults.clear()
    (kept,) = store.paths.temporary.glob("pull-*")
    payload = kept / PAYLOAD
    data = payload.read_bytes()
    payload.write_bytes(data[:-8] + bytes(8))  # as a crash of the machine may leave it
    assert pull(hub, REPO, store).outcome == "pulled"
    assert store.verify().problems == ()
    with open_direction_folder(first) as direction:
        assert store.resolve(REPO).version_digest == direction.digest


@pytest.mark.usefixtures("first")
def test_the_highest_release_has_to_be_the_version_that_its_tag_says(hub, loopback, store):
    loopback.move_tag(REPO, "v2.0.0", loopback.head(REPO))
    with pytest.raises(VerificationError, match=r"the tag says version 2\.0\.0"):
        pull(hub, REPO, store)
    assert store.known_names() == ()


@pytest.mark.usefixtures("first")
def test_under_a_name_of_its_own_it_is_known_again(hub, loopback, store):
    got = pull(hub, REPO, store, name="casual")
    assert (got.outcome, got.entry.label) == ("pulled", "casual@1.0.0")
    again = pull(hub, REPO, store, name="casual")
    assert (again.outcome, again.entry.version_digest) == ("present", got.entry.version_digest)
    commit = loopback.commit(REPO, {"notes.txt": b"of no matter"})
    loopback.move_tag(REPO, "v1.0.0", commit)
    assert pull(hub, REPO, store, name="casual").outcome == "present"
    assert set(commits_of(store.resolve("casual"))) == {got.commit, commit}


@pytest.mark.usefixtures("first")
def test_a_part_that_is_longer_than_the_file_is_fetched_anew(hub, loopback, store):
    loopback.faults.add(Fault("drop_before", path="/large-files/", times=None))
    with pytest.raises(HubError):
        pull(hub, REPO, store)
    loopback.faults.clear()
    (kept,) = store.paths.temporary.glob("pull-*")
    (kept / f"{PAYLOAD}.part").write_bytes(bytes(1 << 20))
    assert pull(hub, REPO, store).outcome == "pulled"
