from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from huggingface_hub import HfFileSystem
from huggingface_hub.errors import (
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.loopback_hub import LoopbackHub

REPO = "acme/formal"
CARD = b"""---
library_name: peft
base_model: org/base
datasets: [org/pairs]
tags: [wsmerge, direction]
license: apache-2.0
---
# Formal
"""


def test_info_at_a_tag_and_at_the_head(hub: LoopbackHub) -> None:
    api = hub.api()
    first = hub.commit(REPO, {"README.md": CARD, "adapter_model.safetensors": b"x" * 9})
    api.create_tag(REPO, tag="v1.0.0")
    second = hub.commit(REPO, {"later": b"1"})
    at_tag, at_head = api.model_info(REPO, revision="v1.0.0", files_metadata=True), api.model_info(REPO)
    assert (at_tag.sha, at_head.sha) == (first, second)
    assert at_tag.tags == [
        *("peft", "safetensors", "wsmerge", "direction", "dataset:org/pairs", "base_model:org/base"),
        *("base_model:adapter:org/base", "license:apache-2.0", "region:us"),
    ]
    assert at_tag.card_data is not None
    assert at_tag.card_data.base_model == "org/base"
    assert at_tag.library_name == "peft"
    sizes = {file.rfilename: file.size for file in at_tag.siblings or []}
    assert sizes["adapter_model.safetensors"] == 9
    assert {file.rfilename for file in at_head.siblings or []} == {*sizes, "later"}
    narrow = api.model_info(REPO, expand=["sha"])
    assert (narrow.sha, narrow.tags, narrow.siblings) == (second, None, None)


def test_downloads_are_counted_by_the_file_of_the_library(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.commit(REPO, {"README.md": CARD, "adapter_config.json": b"{}", "meta.yaml": b"name: formal"})
    hub.make_repo("acme/other")
    hub.commit("acme/other", {"meta.yaml": b"name: other", "weights.txt": b"1"})
    api = hub.api()
    before = [api.model_info(name).downloads for name in (REPO, "acme/other")]
    api.hf_hub_download(REPO, "meta.yaml", cache_dir=tmp_path / "cache")
    api.hf_hub_download("acme/other", "weights.txt", cache_dir=tmp_path / "cache")
    assert [api.model_info(name).downloads for name in (REPO, "acme/other")] == before == [0, 0]
    api.hf_hub_download(REPO, "adapter_config.json", cache_dir=tmp_path / "cache")
    api.hf_hub_download("acme/other", "meta.yaml", cache_dir=tmp_path / "cache")
    assert [api.model_info(name).downloads for name in (REPO, "acme/other")] == [2, 2]


def test_the_tree(hub: LoopbackHub) -> None:
    api = hub.api()
    first = hub.commit(REPO, {"a/b/c.txt": b"1", "a/d.safetensors": b"22", "e": b"333"}, message="one")
    second = hub.commit(REPO, {"a/b/c.txt": b"4444"}, message="two")
    top = {entry.path: entry for entry in api.list_repo_tree(REPO)}
    assert set(top) == {".gitattributes", "a", "e"}
    inside = {entry.path for entry in api.list_repo_tree(REPO, "a")}
    assert inside == {"a/b", "a/d.safetensors"}
    every = {entry.path: entry for entry in api.list_repo_tree(REPO, recursive=True, expand=True)}
    assert set(every) == {".gitattributes", "a", "a/b", "a/b/c.txt", "a/d.safetensors", "e"}
    changed = {path: entry.last_commit.oid for path, entry in every.items() if entry.last_commit}
    assert changed["a/b/c.txt"] == changed["a"] == second
    assert changed["a/d.safetensors"] == changed["e"] == first
    with pytest.raises(RemoteEntryNotFoundError):
        list(api.list_repo_tree(REPO, "nowhere"))
    found = api.get_paths_info(REPO, ["a", "a/d.safetensors", "nowhere"], revision=first)
    assert [entry.path for entry in found] == ["a", "a/d.safetensors"]
    assert found[1].lfs.size == 2  # type: ignore[union-attr]  # it is a file


def test_pages(hub: LoopbackHub) -> None:
    hub.site.page_size = 4
    hub.commit(REPO, {f"{number:02d}": b"" for number in range(10)})
    names = [entry.path for entry in hub.api().list_repo_tree(REPO, recursive=True)]
    assert names == [".gitattributes", *(f"{number:02d}" for number in range(10))]
    assert len([request for request in hub.requests if "/tree/" in request.path]) == 3


@pytest.mark.parametrize("name", ["small.txt", "large.safetensors"])
def test_download(hub: LoopbackHub, tmp_path: Path, name: str) -> None:
    content = os.urandom(200_000)
    hub.commit(REPO, {name: content})
    path = hub.api().hf_hub_download(REPO, name, cache_dir=tmp_path / "cache")
    assert Path(path).read_bytes() == content
    sent = len(hub.requests)
    assert hub.api().hf_hub_download(REPO, name, cache_dir=tmp_path / "cache") == path
    assert [request.method for request in hub.requests[sent:]] == ["HEAD"]
    assert not [request for request in hub.requests if request.path.startswith("/large-files/") and request.user]


def test_snapshots(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.commit(REPO, {"a/b.safetensors": b"1" * 1000, "c.txt": b"2"})
    hub.api().create_tag(REPO, tag="v1")
    hub.commit(REPO, {"c.txt": b"3"})
    cached = hub.api().snapshot_download(REPO, revision="v1", cache_dir=tmp_path / "cache")
    local = hub.api().snapshot_download(REPO, local_dir=tmp_path / "local", allow_patterns=["c.txt"])
    assert {path.name: path.read_bytes() for path in Path(cached).rglob("*.*") if path.name != ".gitattributes"} == {
        "b.safetensors": b"1" * 1000,
        "c.txt": b"2",
    }
    assert (Path(local) / "c.txt").read_bytes() == b"3"
    assert not (Path(local) / "a").exists()
    assert hub.api().snapshot_download(REPO, revision="v1", cache_dir=tmp_path / "cache", local_files_only=True)


@pytest.mark.parametrize("name", ["small.txt", "large.safetensors"])
@pytest.mark.parametrize(
    ("asked", "start", "stop"), [("bytes=5-9", 5, 10), ("bytes=90-", 90, 100), ("bytes=-7", 93, 100), (None, 0, 100)]
)
def test_ranges(hub: LoopbackHub, name: str, asked: str | None, start: int, stop: int) -> None:
    content = bytes(range(100))
    hub.commit(REPO, {name: content})
    response = hub.ask(f"/{REPO}/resolve/main/{name}", headers={"Range": asked} if asked else {})
    assert response.content == content[start:stop]
    assert response.status_code == (206 if asked else 200)
    assert response.headers.get("Content-Range") == (f"bytes {start}-{stop - 1}/100" if asked else None)
    assert hub.requests[-1].bytes_sent == stop - start


def test_a_range_outside_the_file(hub: LoopbackHub) -> None:
    hub.commit(REPO, {"a.txt": b"abc"})
    response = hub.ask(f"/{REPO}/resolve/main/a.txt", headers={"Range": "bytes=3-"})
    assert (response.status_code, response.headers["Content-Range"]) == (416, "bytes */3")


def test_a_file_system_reads_what_it_needs(hub: LoopbackHub) -> None:
    content = os.urandom(100_000)
    hub.commit(REPO, {"a.safetensors": content})
    files = HfFileSystem(endpoint=hub.endpoint, token=hub.token, skip_instance_cache=True)
    with files.open(f"{REPO}/a.safetensors", block_size=1000) as file:
        file.seek(40_000)
        assert file.read(10) == content[40_000:40_010]
    assert hub.requests[-1].range == "bytes=40000-41009"


def test_the_header_of_a_safetensors_file(hub: LoopbackHub) -> None:
    tensors = {f"layer.{number}": np.zeros((100, 200), np.float32) for number in range(5)}
    hub.commit(REPO, {"model.safetensors": safetensors.numpy.save(tensors)})
    read = hub.api().parse_safetensors_file_metadata(REPO, "model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in read.tensors.items()} == dict.fromkeys(tensors, (100, 200))
    assert sum(request.bytes_sent for request in hub.requests if "large-files" in request.path) == 100_001


def test_raw_is_what_git_holds(hub: LoopbackHub) -> None:
    hub.commit(REPO, {"a.txt": b"abc", "b.safetensors": b"abc"})
    assert hub.ask(f"/{REPO}/raw/main/a.txt").content == b"abc"
    assert hub.ask(f"/{REPO}/raw/main/b.safetensors").content.startswith(b"version https://git-lfs")


def test_what_is_not_there(hub: LoopbackHub, tmp_path: Path) -> None:
    api, cache = hub.api(), tmp_path / "cache"
    with pytest.raises(RemoteEntryNotFoundError):
        api.hf_hub_download(REPO, "nothing", cache_dir=cache)
    assert list((cache / "models--acme--formal" / ".no_exist" / hub.head(REPO)).iterdir())
    with pytest.raises(RevisionNotFoundError):
        api.hf_hub_download(REPO, ".gitattributes", revision="v9", cache_dir=cache)
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision="v9")
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("acme/nothing")
    with pytest.raises(RepositoryNotFoundError):
        api.hf_hub_download("acme/nothing", "a", cache_dir=cache)
    assert not api.file_exists(REPO, "nothing")
    assert api.file_exists(REPO, ".gitattributes")
    with pytest.raises(LocalEntryNotFoundError):
        api.hf_hub_download(REPO, "never", cache_dir=cache, local_files_only=True)


def test_commits_are_found_by_their_first_digits(hub: LoopbackHub) -> None:
    first, second = hub.head(REPO), hub.commit(REPO, {"a": b"1"})
    assert hub.api().model_info(REPO, revision=first[:10]).sha == first
    assert [commit.commit_id for commit in hub.api().list_repo_commits(REPO)] == [second, first]
    assert [commit.commit_id for commit in hub.api().list_repo_commits(REPO, revision=first)] == [first]
