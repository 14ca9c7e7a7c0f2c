"""Directions read where they lie: lazily, pinned, and never with bytes that the manifest does not name."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from tests.loopback_hub import Fault, LoopbackHub
from tests.registry.artifacts import SHAPES, about
from tests.sources import MemoryDirection, random_direction
from wsmerge.core.deltas import DenseDelta, LowRankDelta
from wsmerge.core.hub.commit import RepoCommit
from wsmerge.core.hub.connection import Hub
from wsmerge.core.ranges import read_range
from wsmerge.errors import DirectionError, HubError, NotFoundError, OutputError, VerificationError
from wsmerge.registry import Direction, Store, open_reference, verify_direction, write_direction
from wsmerge.registry.convert import convert_direction
from wsmerge.registry.direction import open_direction_folder
from wsmerge.registry.hub.files import CommitFiles
from wsmerge.registry.hub.partial import pull_part
from wsmerge.registry.hub.remote import open_remote
from wsmerge.registry.references import HubReference
from wsmerge.registry.resolve import verify_reference

REPO = "acme/formal"
WEIGHTS = r"\.safetensors|large-files"


def folder_files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def put(loopback: LoopbackHub, files: Mapping[str, bytes], *, tag: str | None = "v1.0.0", repo: str = REPO) -> str:
    if repo not in loopback.site.repositories:
        loopback.make_repo(repo)
    commit = loopback.commit(repo, files)
    if tag:
        loopback.move_tag(repo, tag, commit)
    return commit


def made(folder: Path, *, rank: int | None = 4, seed: int = 1) -> tuple[MemoryDirection, dict[str, bytes]]:
    source = random_direction(SHAPES, rank=rank, seed=seed)
    with write_direction(folder, source, about()):
        return source, folder_files(folder)


@pytest.fixture(params=[4, None], ids=["factors", "dense"])
def pushed(
    request: pytest.FixtureRequest, loopback: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[MemoryDirection, str]:
    source, files = made(tmp_path / "it", rank=request.param)
    monkeypatch.setenv("HF_ENDPOINT", loopback.endpoint)
    monkeypatch.setenv("HF_TOKEN", loopback.token)
    commit = put(loopback, files)
    loopback.requests.clear()
    return source, commit


def assert_same(direction: Direction, source: MemoryDirection) -> None:
    assert set(direction.shapes) == set(source.deltas)
    for name, expected in source.deltas.items():
        held = direction.delta(name)
        if isinstance(expected, LowRankDelta):
            assert isinstance(held, LowRankDelta)
            assert np.array_equal(held.b, expected.b)
            assert np.array_equal(held.a, expected.a)
        else:
            assert isinstance(expected, DenseDelta)
            assert isinstance(held, DenseDelta)
            assert np.array_equal(held.values, expected.values)


def test_a_reference_opens_what_lies_on_the_hub(pushed: tuple[MemoryDirection, str], store: Store) -> None:
    source, commit = pushed
    with open_reference("hub:acme/formal@v1.0.0", store) as direction:
        assert direction.label == "hub:acme/formal@v1.0.0"
        assert direction.pinned == f"hub:acme/formal@{commit}"
        assert_same(direction, source)
    with open_reference(direction.pinned, store) as again:
        assert again.digest == direction.digest
        assert_same(again, source)
    assert not store.names()


@pytest.mark.parametrize("revision", [None, "1.0.0", "v1.0.0", "main", "COMMIT"])
def test_every_form_of_revision_is_pinned_to_its_commit(
    pushed: tuple[MemoryDirection, str], hub: Hub, revision: str | None
) -> None:
    commit = pushed[1]
    wanted = commit if revision == "COMMIT" else revision
    with open_remote(hub, HubReference(REPO, wanted)) as direction:
        assert direction.commit.commit == commit
        assert commit in f"{direction.label} {direction.pinned}"


@pytest.mark.usefixtures("loopback", "pushed")
def test_opening_reads_manifest_and_headers_only(hub: Hub) -> None:
    with open_remote(hub, HubReference(REPO, "v1.0.0"), ahead=False) as direction:
        opened_bytes = direction.bytes_read
        assert opened_bytes < 10_000 + direction.commit.files["direction.json"].size
        name = next(iter(direction.shapes))
        direction.delta(name)
        once = direction.bytes_read
        direction.delta(name)
        assert direction.bytes_read == once > opened_bytes


def test_a_moved_tag_and_branch_change_nothing_that_is_open(
    loopback: LoopbackHub, pushed: tuple[MemoryDirection, str], hub: Hub, tmp_path: Path
) -> None:
    source, commit = pushed
    with open_remote(hub, HubReference(REPO, "v1.0.0")) as direction:
        rank = source.rank(next(iter(source.deltas)))
        other, files = made(tmp_path / "other", rank=rank, seed=9)
        assert put(loopback, files) != commit
        assert_same(direction, source)
    with open_remote(hub, HubReference(REPO, "v1.0.0")) as direction:
        assert_same(direction, other)


def test_a_changed_byte_is_refused_before_it_is_used(
    loopback: LoopbackHub, pushed: tuple[MemoryDirection, str], hub: Hub
) -> None:
    source, _ = pushed
    with open_remote(hub, HubReference(REPO), ahead=False) as direction:
        name, *others = source.deltas
        loopback.faults.add(Fault("wrong_byte", path=WEIGHTS, after_bytes=3))
        with pytest.raises(VerificationError, match="not those that the manifest names") as caught:
            direction.delta(name)
        assert caught.value.where == direction.label
        assert name in caught.value.message
        assert_same(direction, source)  # it came whole the second time
        assert others


def test_dense_blocks_are_checked_before_the_first_element_is_given(
    loopback: LoopbackHub, hub: Hub, tmp_path: Path
) -> None:
    source, files = made(tmp_path / "dense", rank=None)
    put(loopback, files)
    name = next(iter(source.deltas))
    with open_remote(hub, HubReference(REPO), ahead=False) as direction:
        last = source.deltas[name].shape[0] * source.deltas[name].shape[1] * 4 - 1
        loopback.faults.add(Fault("wrong_byte", path=WEIGHTS, after_bytes=last))
        out = np.zeros(2, np.float32)
        with pytest.raises(VerificationError):
            direction.read_dense(name, 0, out)
        assert not out.any()


def test_nothing_is_left_in_the_temporary_folder(
    pushed: tuple[MemoryDirection, str], hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = tmp_path / "room"
    room.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(room))
    with open_remote(hub, HubReference(REPO)) as direction:
        assert_same(direction, pushed[0])
        assert not list(room.iterdir())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with (
        open_remote(hub, HubReference(REPO)) as direction,
        pytest.raises(OutputError, match="what is fetched cannot be kept") as caught,
    ):
        direction.delta(next(iter(direction.shapes)))
    assert "TMPDIR" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("payload", "file", "text"),
    [
        ("safetensors", "direction.json", b'"norm":0.0'),
        ("zarr", "direction.json", b'"norm":0.0'),
        ("zarr", "direction.zarr/zarr.json", b'"fill_value": 0'),
        ("safetensors", "adapter_config.json", b'"lora_alpha": '),
        ("safetensors", "README.md", b"formal"),
    ],
)
def test_a_small_file_that_a_mirror_changes_at_a_pinned_commit_is_caught(
    loopback: LoopbackHub, hub: Hub, tmp_path: Path, payload: str, file: str, text: bytes
) -> None:
    """Also where it stays well-formed: a digit or a letter becomes another."""
    folder = tmp_path / "made"
    made(folder)
    if payload == "zarr":
        with open_direction_folder(folder) as direction:
            convert_direction(direction, tmp_path / "zarr", "zarr").close()
        folder = tmp_path / "zarr"
    files = folder_files(folder)
    commit = put(loopback, files)
    at = files[file].index(text) + len(text)
    loopback.faults.add(Fault("wrong_byte", path=re.escape(file), after_bytes=at, times=None))
    read = CommitFiles(RepoCommit.resolve(hub, REPO, commit)).open(file)
    with pytest.raises(VerificationError, match="not those that the commit names") as caught:
        read_range(read, 0, read.size)
    assert caught.value.where == f"hub:{REPO}@{commit[:12]}/{file}"
    if file not in ("adapter_config.json", "README.md"):
        with pytest.raises(VerificationError, match="not those that the commit names"):
            open_remote(hub, HubReference(REPO, commit))


@pytest.mark.usefixtures("pushed")
def test_verify_reads_all_of_it(loopback: LoopbackHub, store: Store) -> None:
    assert not verify_reference("hub:acme/formal@1.0.0", store).problems
    loopback.faults.add(Fault("wrong_byte", path=WEIGHTS, after_bytes=3000, skip=1, times=None))
    with pytest.raises(VerificationError):
        verify_reference("hub:acme/formal@1.0.0", store).raise_if_bad()


@pytest.mark.usefixtures("pushed")
def test_offline_says_what_to_do(loopback: LoopbackHub, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set") as caught:
        open_reference("hub:acme/formal@v1.0.0", store)
    assert "pull it" in str(caught.value.hint)
    assert "acme/formal" in str(caught.value.hint)
    assert not loopback.requests


@pytest.mark.usefixtures("pushed")
def test_what_is_not_there_is_told_with_what_is(store: Store) -> None:
    with pytest.raises(NotFoundError, match=r"no version 2\.0\.0") as caught:
        open_reference("hub:acme/formal@2.0.0", store)
    assert "1.0.0" in str(caught.value.hint)
    with pytest.raises(HubError, match="no such revision"):
        open_reference("hub:acme/formal@nightly", store)
    with pytest.raises(HubError, match="no such repository"):
        open_reference("hub:acme/nothing", store)


def test_a_repository_without_a_direction_is_told(loopback: LoopbackHub, hub: Hub) -> None:
    put(loopback, {"config.json": b"{}"}, tag=None, repo="acme/model")
    with pytest.raises(DirectionError, match=r"no direction\.json"):
        open_remote(hub, HubReference("acme/model"))


@pytest.mark.parametrize("rank", [4, None])
def test_zarr_is_read_where_it_lies_too(loopback: LoopbackHub, hub: Hub, tmp_path: Path, rank: int | None) -> None:
    source, _ = made(tmp_path / "it", rank=rank)
    with open_direction_folder(tmp_path / "it") as local, convert_direction(local, tmp_path / "zarr", "zarr"):
        pass
    put(loopback, folder_files(tmp_path / "zarr"))
    with open_remote(hub, HubReference(REPO)) as direction:
        assert_same(direction, source)


@pytest.mark.usefixtures("pushed")
def test_reading_after_it_was_closed_is_an_error(hub: Hub) -> None:
    with open_remote(hub, HubReference(REPO, "v1.0.0")) as direction:
        key = next(iter(direction.payload.specs))
        direction.payload.read(key)
    with pytest.raises(DirectionError, match="closed"):
        direction.payload.read(key)


def test_a_zarr_payload_that_repeats_another_manifest_is_found(loopback: LoopbackHub, hub: Hub, tmp_path: Path) -> None:
    with write_direction(tmp_path / "it", random_direction(SHAPES), about()) as direction:
        convert_direction(direction, tmp_path / "zarr", "zarr").close()
    group = tmp_path / "zarr" / "direction.zarr" / "zarr.json"
    group.chmod(0o644)
    group.write_bytes(group.read_bytes().replace(b"acme/base", b"acme/other"))
    with open_direction_folder(tmp_path / "zarr") as direction:
        problems = verify_direction(direction)
    assert len(problems) == 1
    put(loopback, folder_files(tmp_path / "zarr"))
    with open_remote(hub, HubReference(REPO, "v1.0.0")) as remote:
        (found,) = verify_direction(remote)
    assert "the manifest in its attributes" in found


@pytest.mark.usefixtures("pushed")
def test_a_tag_that_says_another_version_is_refused(loopback: LoopbackHub, hub: Hub, store: Store) -> None:
    loopback.move_tag(REPO, "v2.0.0", loopback.head(REPO))
    with pytest.raises(VerificationError, match=r"the tag says version 2\.0\.0"):
        open_remote(hub, HubReference(REPO, "2.0.0"))
    with pytest.raises(VerificationError, match=r"the tag says version 2\.0\.0"):
        pull_part(hub, HubReference(REPO, "v2.0.0"), store, layers="0")
    loopback.move_tag(REPO, "stable", loopback.head(REPO))
    with open_remote(hub, HubReference(REPO, "stable")) as direction:
        assert direction.manifest.version == "1.0.0"
