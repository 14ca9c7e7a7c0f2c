from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete
from huggingface_hub.errors import (
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.loopback_hub import LoopbackHub

REPO = "acme/formal"


def test_create_tells_what_is_there(hub: LoopbackHub) -> None:
    api = hub.api()
    made = api.create_repo("acme/new")
    assert made.repo_id == "acme/new"
    assert api.create_repo("acme/new", exist_ok=True) == made
    with pytest.raises(HfHubHTTPError, match="already created"):
        api.create_repo("acme/new")
    assert [(commit.title, commit.authors) for commit in api.list_repo_commits("acme/new")] == [
        ("initial commit", ["acme"])
    ]


def test_settings_move_and_delete(hub: LoopbackHub) -> None:
    api = hub.api()
    api.update_repo_settings(REPO, private=True, gated="manual")
    info = api.model_info(REPO)
    assert (info.private, info.gated) == (True, "manual")
    api.move_repo(REPO, "acme/informal")
    assert not api.repo_exists(REPO)
    assert api.model_info("acme/informal").sha == info.sha
    api.delete_repo("acme/informal")
    assert not api.repo_exists("acme/informal")
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo("acme/informal")


def test_a_commit_holds_small_files_in_git_and_large_ones_as_pointers(hub: LoopbackHub, tmp_path: Path) -> None:
    weights = os.urandom(70_000)
    (tmp_path / "weights").write_bytes(weights)
    written = hub.api().create_commit(
        REPO,
        [
            CommitOperationAdd("direction.json", b"{}"),
            CommitOperationAdd("deep/er/direction.safetensors", tmp_path / "weights"),
            CommitOperationAdd("empty.safetensors", b""),
        ],
        commit_message="One",
        commit_description="Two",
    )
    assert written.oid == hub.head(REPO)
    files = hub.files(REPO)
    assert files["direction.json"] == b"{}"
    assert files["deep/er/direction.safetensors"] == weights
    assert files["empty.safetensors"] == b""
    large = hub.site.repositories[REPO].files(written.oid)["deep/er/direction.safetensors"].pointer
    assert large is not None
    assert large.digest == hashlib.sha256(weights).hexdigest()
    (newest, _) = hub.api().list_repo_commits(REPO)
    assert (newest.title, newest.message, newest.authors) == ("One", "Two", ["acme"])


def test_a_large_file_is_uploaded_once(hub: LoopbackHub) -> None:
    weights = os.urandom(50_000)
    for name in ("a", "b"):
        hub.api().create_commit(REPO, [CommitOperationAdd(f"{name}.safetensors", weights)], commit_message=name)
    assert [request.bytes_received for request in hub.requests if request.method == "PUT"] == [len(weights)]
    assert hub.files(REPO)["a.safetensors"] == hub.files(REPO)["b.safetensors"] == weights


def test_a_large_file_in_parts(hub: LoopbackHub) -> None:
    hub.site.part_size = 30_000
    weights = os.urandom(70_001)
    hub.api().create_commit(REPO, [CommitOperationAdd("a.safetensors", weights)], commit_message="parts")
    assert [request.bytes_received for request in hub.requests if request.method == "PUT"] == [30_000, 30_000, 10_001]
    assert hub.files(REPO)["a.safetensors"] == weights


def test_the_expected_parent_is_checked(hub: LoopbackHub) -> None:
    api, head = hub.api(), hub.head(REPO)
    first = api.create_commit(REPO, [CommitOperationAdd("a", b"1")], commit_message="1", parent_commit=head[:7])
    with pytest.raises(HfHubHTTPError, match="a commit has happened since") as caught:
        api.create_commit(REPO, [CommitOperationAdd("a", b"2")], commit_message="2", parent_commit=head)
    assert caught.value.response.status_code == 412
    assert hub.head(REPO) == first.oid
    assert hub.files(REPO)["a"] == b"1"


def test_nothing_new_is_no_commit_even_on_a_stale_parent(hub: LoopbackHub) -> None:
    first = hub.head(REPO)
    there = hub.commit(REPO, {"a": b"same", "b.safetensors": b"same"})
    operations = [CommitOperationAdd("a", b"same"), CommitOperationAdd("b.safetensors", b"same")]
    written = hub.api().create_commit(REPO, operations, commit_message="again", parent_commit=first)
    assert written.oid == there
    assert not [request for request in hub.requests if "/commit/" in request.path]


def test_copies_and_deletions(hub: LoopbackHub) -> None:
    hub.commit(REPO, {"a.safetensors": b"large", "b.txt": b"small", "old/1": b"1", "old/2": b"2", "gone": b"g"})
    hub.api().create_commit(
        REPO,
        [
            CommitOperationCopy("a.safetensors", "c.safetensors"),
            CommitOperationCopy("b.txt", "d.txt"),
            CommitOperationDelete("old/"),
            CommitOperationDelete("gone"),
        ],
        commit_message="rearrange",
    )
    files = hub.files(REPO)
    assert files["c.safetensors"] == b"large"
    assert files["d.txt"] == b"small"
    assert not {"old/1", "old/2", "gone"} & set(files)
    with pytest.raises(RemoteEntryNotFoundError, match="doesn't exist"):
        hub.api().create_commit(REPO, [CommitOperationDelete("gone")], commit_message="twice")


def test_a_large_file_that_was_not_sent_is_refused(hub: LoopbackHub) -> None:
    digest = hashlib.sha256(b"never sent").hexdigest()
    lines = b'{"key": "header", "value": {"summary": "x"}}\n' + (
        b'{"key": "lfsFile", "value": {"path": "a.safetensors", "algo": "sha256", "oid": "%s", "size": 10}}\n'
        % digest.encode()
    )
    head = hub.head(REPO)
    response = hub.ask("/api/models/acme/formal/commit/main", method="POST", content=lines)
    assert response.status_code == 400
    assert hub.head(REPO) == head


def test_an_upload_must_be_what_its_digest_says(hub: LoopbackHub) -> None:
    digest = hashlib.sha256(b"right").hexdigest()
    body = {"operation": "upload", "objects": [{"oid": digest, "size": 5}]}
    asked = hub.ask("/acme/formal.git/info/lfs/objects/batch", method="POST", json=body).json()
    target = asked["objects"][0]["actions"]["upload"]["href"]
    assert hub.ask(target, method="PUT", content=b"wrong", token=False).status_code == 400
    assert hub.ask(target, method="PUT", content=b"right").status_code == 400, "storage takes no token"
    assert hub.ask(target, method="PUT", content=b"right", token=False).status_code == 200
    assert hub.site.repositories[REPO].large.path(digest).read_bytes() == b"right"


def test_a_card_that_is_not_yaml_is_refused(hub: LoopbackHub) -> None:
    with pytest.raises(ValueError, match="front matter"):
        hub.api().create_commit(REPO, [CommitOperationAdd("README.md", b"---\na: [\n---\n")], commit_message="card")


def test_tags(hub: LoopbackHub) -> None:
    api, first = hub.api(), hub.head(REPO)
    second = hub.commit(REPO, {"a": b"1"})
    api.create_tag(REPO, tag="v1.0.0", revision=first)
    api.create_tag(REPO, tag="v1.1.0", tag_message="the second")
    assert {tag.name: tag.target_commit for tag in api.list_repo_refs(REPO).tags} == {"v1.0.0": first, "v1.1.0": second}
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_tag(REPO, tag="v1.0.0")
    assert caught.value.response.status_code == 409
    api.create_tag(REPO, tag="v1.0.0", exist_ok=True)
    assert api.model_info(REPO, revision="v1.0.0").sha == first
    hub.move_tag(REPO, "v1.0.0", second)
    assert api.model_info(REPO, revision="v1.0.0").sha == second
    api.delete_tag(REPO, tag="v1.0.0")
    with pytest.raises(RevisionNotFoundError):
        api.delete_tag(REPO, tag="v1.0.0")
    with pytest.raises(RevisionNotFoundError):
        api.create_tag(REPO, tag="v2", revision="0" * 40)
    assert hub.tags(REPO) == {"v1.1.0": second}


def test_branches(hub: LoopbackHub) -> None:
    api, first = hub.api(), hub.head(REPO)
    hub.commit(REPO, {"a": b"1"})
    api.create_branch(REPO, branch="try/out", revision=first)
    api.create_branch(REPO, branch="try/out", exist_ok=True)
    written = api.create_commit(REPO, [CommitOperationAdd("b", b"2")], commit_message="b", revision="try/out")
    assert written.oid == hub.head(REPO, "try/out")
    assert set(hub.files(REPO, "try/out")) == {".gitattributes", "b"}
    assert set(hub.files(REPO)) == {".gitattributes", "a"}
    api.delete_branch(REPO, branch="try/out")
    assert [branch.name for branch in api.list_repo_refs(REPO).branches] == ["main"]
    with pytest.raises(RevisionNotFoundError):
        api.create_commit(REPO, [CommitOperationAdd("b", b"2")], commit_message="b", revision="try/out")


def test_squashing_leaves_the_files_and_one_commit(hub: LoopbackHub) -> None:
    pinned = hub.commit(REPO, {"a": b"1"})
    hub.api().super_squash_history(REPO)
    assert len(hub.api().list_repo_commits(REPO)) == 1
    assert hub.head(REPO) != pinned
    assert hub.files(REPO)["a"] == b"1"
