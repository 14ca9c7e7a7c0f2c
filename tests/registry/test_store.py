"""The local store in one process: every operation, what it says when it refuses, and what it leaves."""

from __future__ import annotations

import errno
import math
import os
import shutil
import time
from importlib import import_module
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from tests.registry.artifacts import CREATED, SHAPES, about, make_artifact, same_bytes
from tests.sources import MemoryDirection, random_direction
from wsmerge.core.deltas import DenseDelta
from wsmerge.core.opening import read_whole
from wsmerge.errors import (
    BadReferenceError,
    ConflictError,
    DirectionError,
    HubError,
    NotFoundError,
    OutputError,
    StoreError,
    UsageError,
    VerificationError,
    WsmergeError,
)
from wsmerge.registry import DatasetRecord, Store, open_direction_folder, open_reference, write_direction
from wsmerge.registry.history import Event, append_event
from wsmerge.registry.references import StoreReference
from wsmerge.registry.resolve import verify_reference


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def source(tmp_path):
    return make_artifact(tmp_path / "source")


def test_reading_an_empty_store_makes_nothing(store):
    assert store.names() == ()
    assert store.list() == ()
    assert store.search("formal") == ()
    assert store.verify().versions == ()
    assert store.gc(dry_run=False).freed_bytes == 0
    assert str(store.next_version("formal")) == "1.0.0"
    for refused in (
        lambda: store.resolve("formal"),
        lambda: store.versions("formal"),
        lambda: store.log("formal"),
        lambda: store.tag("formal", "good", "1.0.0"),
        lambda: store.untag("formal", "good"),
        lambda: store.remove("formal@1.0.0"),
    ):
        with pytest.raises(NotFoundError, match="the store is empty"):
            refused()
    assert not store.paths.root.exists()


def test_the_root_is_looked_up_when_it_is_needed(tmp_path, monkeypatch):
    monkeypatch.setenv("WSMERGE_HOME", str(tmp_path / "here"))
    assert Store().paths.root == tmp_path / "here"
    monkeypatch.delenv("WSMERGE_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert Store().paths.root == tmp_path / "data" / "wsmerge"


def test_what_is_published_is_opened_by_every_reference(store, source):
    entry = store.publish(source, aliases=("good",))
    assert (entry.name, str(entry.version), entry.aliases) == ("formal", "1.0.0", ("good", "latest"))
    for reference in (
        "formal",
        "formal@1.0.0",
        "formal@good",
        "formal@latest",
        f"formal@sha256:{entry.version_digest}",
        f"formal@content:{entry.content_digest[:12]}",
        str(entry.path),
    ):
        with open_reference(reference, store) as direction, open_direction_folder(source) as original:
            assert direction.digest == original.digest
            assert same_bytes(direction, original)
    assert {path.name for path in entry.path.iterdir()} == {path.name for path in source.iterdir()}
    assert all(not path.stat().st_mode & 0o222 for path in entry.path.iterdir())


def test_publishing_again_is_nothing_and_other_content_a_conflict(store, source, tmp_path):
    first = store.publish(source)
    assert store.publish(source) == first
    other = make_artifact(tmp_path / "other", seed=2)
    with open_direction_folder(other) as direction, pytest.raises(ConflictError) as caught:
        store.publish(direction)
    told = str(caught.value)
    assert first.version_digest in told
    assert direction.digest in told
    assert "1.0.1" in told
    assert str(store.publish(other, version=str(store.next_version("formal"))).version) == "1.0.1"
    assert [event.action for event in store.log("formal")] == ["publish", "publish"]


def test_under_another_name_only_the_metadata_changes(store, source):
    entry = store.publish(source, name="polite", version="2.0.0")
    with store.open("polite") as direction, open_direction_folder(source) as original:
        assert direction.label == "polite@2.0.0"
        assert same_bytes(direction, original)
        expected = original.manifest.fields() | {"name": "polite", "version": "2.0.0"}
        assert direction.manifest.fields() == expected
    assert (entry.path / "README.md").read_text().count("polite@2.0.0") == 2
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (entry.path / file).read_bytes() == (source / file).read_bytes()


def test_versions_share_the_bytes_they_have_in_common(store, source):
    paths = [
        store.publish(source, version=version).path / "adapter_model.safetensors" for version in ("1.0.0", "1.0.1")
    ]
    assert paths[0].samefile(paths[1])
    assert paths[0].stat().st_nlink == 3  # and the blob


def test_what_was_pulled_keeps_its_digest_under_its_owner(store, source):
    mine, theirs = store.publish(source), store.publish(source, name="acme/formal")
    assert mine.version_digest == theirs.version_digest
    assert store.names() == ("acme/formal", "formal")
    assert theirs.label == "acme/formal@1.0.0"
    with store.open("acme/formal") as direction:
        assert direction.label == "acme/formal@1.0.0"


def test_latest_is_the_highest_release_unless_moved(store, source):
    for version in ("1.0.0", "1.10.0", "1.9.0", "2.0.0-rc.1"):
        store.publish(source, version=version)
    assert str(store.resolve("formal").version) == "1.10.0"
    store.tag("formal", "latest", "1.9.0")
    assert str(store.resolve("formal").version) == "1.9.0"
    store.publish(source, version="3.0.0")
    assert str(store.resolve("formal@latest").version) == "1.9.0"
    store.untag("formal", "latest")
    assert str(store.resolve("formal").version) == "3.0.0"


def test_aliases_move_and_the_log_remembers(store, source):
    store.publish(source, aliases=("good",))
    store.publish(source, version="1.1.0", aliases=("good",))
    store.publish(source, version="1.1.0", aliases=("good",))
    store.tag("formal", "best", "good")
    store.untag("formal", "good")
    with pytest.raises(NotFoundError, match="no alias good"):
        store.untag("formal", "good")
    with pytest.raises(NotFoundError, match=r"formal has 1\.0\.0, 1\.1\.0, best -> 1\.1\.0"):
        store.resolve("formal@good")
    assert [(event.action, event.version, event.alias) for event in store.log("formal")] == [
        ("publish", "1.0.0", ""),
        ("tag", "1.0.0", "good"),
        ("publish", "1.1.0", ""),
        ("tag", "1.1.0", "good"),
        ("tag", "1.1.0", "best"),
        ("untag", "1.1.0", "good"),
    ]


def test_a_removed_version_is_gone_for_good(store, source):
    store.publish(source, aliases=("good",))
    with pytest.raises(UsageError, match="which version"):
        store.remove("formal")
    digest = store.resolve("formal").version_digest
    removed = store.remove("formal@good")
    assert (removed.version, removed.version_digest) == ("1.0.0", digest)
    assert store.names() == ()
    with pytest.raises(ConflictError, match="was removed"):
        store.publish(source)
    assert str(store.next_version("formal")) == "1.0.1"
    store.publish(source, version="1.0.1")
    with pytest.raises(NotFoundError, match="was removed"):
        store.resolve("formal@1.0.0")
    with pytest.raises(NotFoundError, match="no alias good"):
        store.resolve("formal@good")


def test_a_damaged_version_can_be_removed(store, source):
    entry = store.publish(source)
    (entry.path / "direction.json").unlink()
    with pytest.raises(DirectionError, match="is no artifact"):
        store.resolve("formal")
    store.remove("formal@1.0.0")
    assert store.list() == ()


def test_an_artifact_that_is_not_whole_is_not_published(store, source):
    (source / "adapter_config.json").unlink()
    with pytest.raises(DirectionError, match=r"adapter_config\.json: missing"):
        store.publish(source)
    assert store.names() == ()


def test_an_artifact_without_its_card_gets_one(store, source):
    card, meta = (source / "README.md").read_bytes(), (source / "meta.yaml").read_bytes()
    (source / "README.md").unlink()
    (source / "meta.yaml").unlink()
    entry = store.publish(source)
    assert (entry.path / "README.md").read_bytes() == card
    assert (entry.path / "meta.yaml").read_bytes() == meta


def test_gc_frees_what_nothing_uses_and_first_only_says_so(store, source, tmp_path):
    store.publish(source)
    store.publish(make_artifact(tmp_path / "other", seed=2), version="1.1.0")
    assert store.gc(min_age_s=0).freed_bytes == 0
    store.remove("formal@1.1.0")
    leftover = store.paths.temporary / "publish-killed"
    leftover.mkdir()
    (leftover / "half").write_bytes(b"x" * 100)
    payload_bytes = (source / "adapter_model.safetensors").stat().st_size
    counted = store.gc()
    assert (counted.removed_versions, counted.temporaries) == (1, 0)
    # A minute ahead, so that what was touched just now is old.
    in_future = store.gc(min_age_s=-60)
    assert (in_future.dry_run, in_future.temporaries) == (True, 1)
    assert in_future.freed_bytes >= payload_bytes + 100
    assert leftover.exists()
    done = store.gc(dry_run=False, min_age_s=-60)
    assert (done.blobs, done.freed_bytes) == (in_future.blobs, in_future.freed_bytes)
    assert list(store.paths.temporary.iterdir()) == []
    assert store.verify().problems == ()
    # adapter_config.json was common to both
    assert sum(path.is_file() for path in store.paths.blobs.rglob("*")) == len(list(source.iterdir()))


def test_gc_spares_what_a_running_publish_writes(store, source):
    store.publish(source)
    fresh = store.paths.temporary / "publish-running"
    fresh.mkdir()
    os.utime(fresh, (0, 0))  # its own time says nothing: what lies in it was touched just now
    (fresh / "file").write_bytes(b"x")
    assert store.gc(dry_run=False).temporaries == 0
    assert fresh.exists()
    assert time.time() - (fresh / "file").stat().st_mtime < 60


def test_verify_tells_every_problem_of_every_version(store, source, tmp_path):
    bad = store.publish(source)
    store.publish(make_artifact(tmp_path / "other", seed=2), version="1.1.0")
    payload = bad.path / "adapter_model.safetensors"
    data = bytearray(payload.read_bytes())
    payload.chmod(0o644)
    data[-1] ^= 1
    payload.write_bytes(data)
    (bad.path / "adapter_config.json").unlink()
    report = store.verify()
    assert report.versions == ("formal@1.0.0", "formal@1.1.0")
    assert len(report.problems) == 2
    assert all(problem.startswith("formal@1.0.0: ") for problem in report.problems)
    with pytest.raises(VerificationError) as caught:
        report.raise_if_bad()
    assert caught.value.details == report.problems
    assert store.verify("formal@1.1.0").problems == ()


def test_verify_finds_a_manifest_that_was_replaced_whole(store, source, tmp_path):
    entry = store.publish(source)
    other = make_artifact(tmp_path / "other", description="Another.")
    (entry.path / "direction.json").unlink()
    (entry.path / "direction.json").write_bytes((other / "direction.json").read_bytes())
    (problem,) = store.verify().problems
    assert "was published" in problem


def test_a_source_that_rotted_is_not_published(store, source):
    payload = source / "adapter_model.safetensors"
    data = bytearray(payload.read_bytes())
    data[-1] ^= 1
    payload.write_bytes(data)
    with pytest.raises(VerificationError, match="not what the manifest says"):
        store.publish(source)
    assert store.names() == ()
    assert files_in(store.root) == []


def files_in(folder):
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.mark.parametrize(
    ("step", "number"),
    [("blobs.copy_synced", 1), ("blobs.copy_synced", 3), ("blobs.sync_folder", 2), ("store.sync_folder", 1)],
)
def test_a_full_disk_leaves_nothing_and_names_the_next_step(store, source, monkeypatch, step, number):
    place, _, name = step.partition(".")
    module = import_module(f"wsmerge.registry.{place}")
    whole = getattr(module, name)
    calls = count(1)

    def full(*arguments):
        if next(calls) == number:
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(*arguments)

    monkeypatch.setattr(module, name, full)
    with pytest.raises(OutputError, match="No space left") as caught:
        store.publish(source)
    assert "wsmerge gc --delete" in str(caught.value)
    if step == "store.sync_folder":  # after the rename: the version is there
        assert len(store.list()) == 1
        assert store.verify().problems == ()
    else:
        assert files_in(store.root) == []
    monkeypatch.undo()
    store.publish(source)
    assert store.gc(min_age_s=-60).blobs == 0


def test_a_conflict_leaves_nothing_new_and_takes_nothing_old(store, source):
    kept = store.publish(source, version="0.9.0")
    store.publish(source)
    store.remove("formal@1.0.0")
    store.gc(dry_run=False, min_age_s=-60)
    before = set(files_in(store.paths.blobs))
    with pytest.raises(ConflictError, match="was removed"):
        store.publish(source)
    assert set(files_in(store.paths.blobs)) == before
    assert store.resolve("formal") == kept
    assert store.gc(min_age_s=-60).blobs == 0


def test_a_blob_that_rotted_is_not_spread(store, source):
    entry = store.publish(source)
    payload = entry.path / "adapter_model.safetensors"
    payload.chmod(0o644)
    payload.write_bytes(b"rot")
    store.publish(source, version="1.1.0")
    assert [problem.partition(":")[0] for problem in store.verify().problems] == ["formal@1.0.0"]


def test_a_line_that_was_torn_off_never_happened(store, source):
    store.publish(source, aliases=("good",))
    log = store.paths.log("formal")
    whole = log.read_bytes()
    log.write_bytes(whole + b'{"time":"2026')
    assert str(store.resolve("formal@good").version) == "1.0.0"
    store.untag("formal", "good")
    assert log.read_bytes().startswith(whole)
    assert [event.action for event in store.log("formal")] == ["publish", "tag", "untag"]


@pytest.mark.parametrize("line", [b"x\n", b"[]\n", b'{"time":"t"}\n', b'{"time":"t","action":"x","version":"1"}\n'])
def test_a_damaged_log_is_told_with_its_line(store, source, line):
    store.publish(source)
    with store.paths.log("formal").open("ab") as file:
        file.write(line)
    with pytest.raises(StoreError) as caught:
        store.resolve("formal")
    assert str(caught.value.where).endswith("log.jsonl:2")
    assert len(store.verify().problems) == 1


def test_near_names_are_suggested(store, source):
    store.publish(source)
    store.publish(source, name="acme/sycophancy")
    with pytest.raises(NotFoundError, match="did you mean formal"):
        store.resolve("fromal@1.0.0")
    with pytest.raises(NotFoundError, match="did you mean acme/sycophancy"):
        store.resolve("sycophancy")
    with pytest.raises(NotFoundError, match=r"formal has 1\.0\.0"):
        store.resolve("formal@sha256:000000000000")


def test_what_is_no_reference_of_the_store_is_refused(store):
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        open_reference("hub:acme/formal", store)
    with pytest.raises(UsageError, match="is on the Hub"):
        store.resolve("hub:acme/formal")
    with pytest.raises(UsageError, match="is a path"):
        store.resolve("./formal")


def test_bad_names_are_refused_before_anything_is_written(store, source):
    for arguments in ({"name": "No"}, {"version": "1"}, {"aliases": ("1.0.0",)}):
        with pytest.raises(BadReferenceError):
            store.publish(source, **arguments)
    assert not store.paths.root.exists()


def test_search_looks_at_all_metadata(store, tmp_path):
    data = (DatasetRecord(source="acme/letters"),)
    store.publish(make_artifact(tmp_path / "a", description="Writes like a lawyer.", datasets=data))
    store.publish(make_artifact(tmp_path / "b", "brief"))

    def found(*arguments, **filters):
        return [entry.name for entry in store.search(*arguments, **filters)]

    assert found() == ["brief", "formal"]
    assert found("LAWYER letters") == ["formal"]
    assert found("lawyer brief") == []
    assert found(dataset="letters") == found(name="form") == ["formal"]
    assert found(base="acme/", kind="contrastive") == ["brief", "formal"]
    assert found(kind="task_vector") == []


def test_diff_compares_fields_tensors_and_angles(store, tmp_path):
    names = sorted(SHAPES)
    left = random_direction(SHAPES)
    first, second, third = (left.deltas[name] for name in names[:3])
    deltas = {
        names[0]: first,
        names[1]: second.scaled(-2.0),
        names[2]: DenseDelta(third.dense().astype(np.float32)),
        "model.norm.weight": DenseDelta(np.ones(3, np.float32)),
    }
    with write_direction(tmp_path / "a", left, about()) as direction:
        store.publish(direction)
    more = about(version="1.1.0", description="Stronger.")
    with write_direction(tmp_path / "b", MemoryDirection(deltas, left.base), more) as direction:
        store.publish(direction)
    found = store.diff("formal@1.0.0", "formal@1.1.0")
    assert [(change.field, change.left, change.right) for change in found.fields] == [
        ("description", "", "Stronger."),
        ("version", "1.0.0", "1.1.0"),
    ]
    assert (found.added, found.removed, found.unchanged) == (("model.norm.weight",), (names[3],), 1)
    scaled, as_dense = found.changed
    assert (scaled.name, as_dense.name) == (names[1], names[2])
    assert scaled.cosine == pytest.approx(-1, abs=1e-12)
    assert scaled.norm_ratio == pytest.approx(2)
    assert as_dense.cosine == pytest.approx(1, abs=1e-7)
    assert as_dense.norm_ratio == pytest.approx(1)
    assert store.diff("formal", "formal").same_tensors
    assert direction.manifest.created == CREATED


def test_diff_of_a_zero_delta_has_no_angle(store, tmp_path):
    shapes = {"model.norm.weight": (4,)}
    base = random_direction(shapes).base
    for version, value in (("1.0.0", 0.0), ("1.1.0", 1.0)):
        deltas = {"model.norm.weight": DenseDelta(np.full(4, value, np.float32))}
        with write_direction(tmp_path / version, MemoryDirection(deltas, base), about(version=version)) as direction:
            store.publish(direction)
    (change,) = store.diff("formal@1.0.0", "formal@1.1.0").changed
    assert math.isnan(change.cosine)
    assert math.isnan(change.norm_ratio)


def damage(store, reference: str, file: str, data: bytes) -> None:
    path = store.resolve(reference).path / file
    path.chmod(0o644)
    path.unlink()
    path.write_bytes(data)


@pytest.mark.parametrize("under", ["", "below"])
def test_a_store_that_is_a_file_is_told_with_a_next_step(tmp_path, source, under):
    file = tmp_path / "file"
    file.write_text("")
    store = Store(file / under)
    for refused in (
        store.names,
        store.known_names,
        store.list,
        store.survey,
        store.verify,
        store.gc,
        lambda: store.survey("formal"),
        lambda: store.versions("formal"),
        lambda: store.log("formal"),
        lambda: store.next_version("formal"),
        lambda: store.resolve("formal"),
        lambda: store.remove("formal@1.0.0"),
        lambda: store.publish(source),
        lambda: store.scratch().__enter__(),
    ):
        with pytest.raises(StoreError, match="is a file, and a store is a folder") as caught:
            refused()
        assert caught.value.where == str(file)
        assert "WSMERGE_HOME" in str(caught.value.hint)


@pytest.mark.parametrize("part", ["directions", "directions/formal/log.jsonl", "directions/formal/versions"])
def test_what_may_not_be_read_is_told_with_a_next_step(store, source, monkeypatch, part):
    store.publish(source)
    refused = store.paths.root / part

    def refuse(method):
        def checked(self):
            if self == refused:
                raise PermissionError(13, "Permission denied", str(self))
            return method(self)

        return checked

    monkeypatch.setattr(Path, "iterdir", refuse(Path.iterdir))
    monkeypatch.setattr("wsmerge.registry.history.read_whole", refuse(read_whole))
    with pytest.raises(StoreError, match="cannot be read: Permission denied") as caught:
        store.list()
    assert caught.value.where == str(refused)
    assert "WSMERGE_HOME" in str(caught.value.hint)


def test_every_method_refuses_a_bad_name_before_a_path_is_made(store, source):
    for name in ("a" * 300, "../outside", "A B", ""):
        for method in (
            store.versions,
            store.version_numbers,
            store.survey,
            store.log,
            store.next_version,
            lambda name: store.version_of(StoreReference(name)),
            lambda name: store.resolve(StoreReference(name)),
            lambda name: store.verify(StoreReference(name)),
            lambda name: store.tag(name, "good", "1.0.0"),
            lambda name: store.untag(name, "good"),
            lambda name: store.publish(source, name=name),
        ):
            with pytest.raises(BadReferenceError, match="is no name") as caught:
                method(name)
            assert caught.value.hint
    assert not store.paths.root.exists()


def test_one_damaged_item_does_not_hide_the_others(store, source):
    for name, version in (("a", "1.0.0"), ("a", "1.1.0"), ("b", "1.0.0"), ("c", "1.0.0")):
        store.publish(source, name=name, version=version)
    digest = store.resolve("a@1.1.0").version_digest
    damage(store, "a@1.0.0", "direction.json", b"{")
    with store.paths.log("b").open("ab") as file:
        file.write(b"garbage\n")
    (store.paths.directions / ".DS_Store").write_text("")
    (store.paths.directions / "No Name").mkdir()
    survey = store.survey()
    assert [entry.label for entry in survey.entries] == ["a@1.1.0", "c@1.0.0"]
    manifest, log = map(str, survey.broken)
    assert manifest.startswith("a@1.0.0 cannot be read: ")
    assert manifest.endswith("; next: wsmerge verify a@1.0.0")
    assert log.startswith("b cannot be read: ")
    assert "log.jsonl:2" in log
    assert "\n" not in manifest + log
    assert [entry.label for entry in store.survey("a").entries] == ["a@1.1.0"]
    assert store.names() == ("a", "b", "c")
    assert store.resolve(f"a@sha256:{digest}").label == "a@1.1.0"
    assert store.publish(source, name="a", version="1.2.0", aliases=("good",)).label == "a@1.2.0"
    assert store.publish(source, name="d").label == "d@1.0.0"
    assert store.gc().removed_versions == 0
    with pytest.raises(NotFoundError, match="did you mean"):
        store.resolve("dd")


def test_verify_tells_a_damaged_manifest_without_its_next_step(store, source):
    store.publish(source)
    damage(store, "formal@1.0.0", "direction.json", b"{")
    for report in (store.verify(), store.verify("formal@1.0.0")):
        (problem,) = report.problems
        assert problem.startswith("formal@1.0.0: ")
        assert "is not valid JSON" in problem
        assert "next:" not in problem


def test_verify_advises_to_remove_only_what_is_damaged_itself(store, source):
    store.publish(source)
    with store.paths.log("formal").open("ab") as file:
        file.write(b"garbage\n")
    report = store.verify()
    (problem,) = report.problems
    assert "next:" not in problem
    with pytest.raises(VerificationError) as caught:
        report.raise_if_bad()
    assert "remove the version" not in str(caught.value.hint)
    assert "log" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("adapter_model.safetensors", lambda data: data[:-4]),
        ("direction.json", lambda data: data[:-1]),
        ("direction.json", lambda data: data.replace(b'"kind":"contrastive"', b'"kind":"nope"')),
    ],
)
def test_a_damaged_folder_is_verified_as_a_damaged_version_is(store, source, file, change):
    damaged = source / file
    damaged.write_bytes(change(damaged.read_bytes()))
    report = verify_reference(str(source), store)
    assert report.problems
    assert "next:" not in "".join(report.problems)
    with pytest.raises(VerificationError) as caught:
        report.raise_if_bad()
    assert "remove the version" not in str(caught.value.hint)
    with pytest.raises(DirectionError, match="is no artifact"):
        verify_reference(str(source / "nowhere"), store)


def test_a_kind_that_is_none_is_a_usage_error(store, source):
    store.publish(source)
    with pytest.raises(UsageError, match="no kind 'nope'") as caught:
        store.search(kind="nope")
    assert "task_vector" in str(caught.value.hint)


def test_a_damaged_log_has_a_next_step(store, source):
    store.publish(source)
    with store.paths.log("formal").open("ab") as file:
        file.write(b"garbage\n")
    with pytest.raises(StoreError, match="is no line of a log") as caught:
        store.resolve("formal")
    assert caught.value.hint


@pytest.mark.parametrize(
    "name", ["README.md", "meta.yaml", "adapter_config.json", "adapter_model.safetensors", "direction.json"]
)
def test_links_out_of_an_artifact_are_refused_and_never_copied(store, source, tmp_path, name):
    private = (source / name).rename(tmp_path / "private")
    (source / name).symlink_to(private)
    with pytest.raises(WsmergeError, match="link out of its folder"):
        store.publish(source)
    assert not store.list()
    assert not [path for path in store.root.rglob("*") if path.is_file() and "locks" not in path.parts]


@pytest.mark.parametrize("name", ["README.md", "adapter_config.json", "adapter_model.safetensors", "direction.json"])
def test_a_fifo_in_an_artifact_is_refused_and_not_waited_for(store, source, name):
    (source / name).unlink()
    os.mkfifo(source / name)
    with pytest.raises(WsmergeError, match="FIFO"):
        store.publish(source)


def test_a_folder_that_the_log_does_not_name_is_no_version(store, source):
    store.publish(source)
    planted = store.paths.version("formal", "9.0.0")
    shutil.copytree(store.paths.version("formal", "1.0.0"), planted)
    manifest = open_direction_folder(planted).manifest.replaced(version="9.0.0")
    (planted / "direction.json").chmod(0o644)
    (planted / "direction.json").write_bytes(manifest.canonical_bytes())
    assert str(store.resolve("formal").version) == "1.0.0"
    assert [entry.label for entry in store.list()] == ["formal@1.0.0"]
    assert str(store.next_version("formal")) == "1.0.1"
    with pytest.raises(NotFoundError):
        store.open("formal@9.0.0")
    (problem,) = store.verify().problems
    assert problem.startswith("formal@9.0.0: lies in the store, and the log does not say that it was published")
    # Who publishes that version has what is published there, and not what lay there.
    entry = store.publish(source, version="9.0.0")
    assert store.resolve("formal@9.0.0").version_digest == entry.version_digest
    assert store.verify().problems == ()
    assert store.gc(min_age_s=0).removed_versions == 1


def test_what_a_kill_left_of_a_first_publish_is_in_nobodys_way(store, source):
    store.paths.versions("formal").mkdir(parents=True)
    assert store.names() == ()
    assert str(store.publish(source).version) == "1.0.0"


def test_a_line_that_a_killed_publish_logged_stands_for_nothing(store, source):
    append_event(store.paths.log("formal"), Event.now("publish", "1.0.0", "0" * 64))
    assert (store.names(), store.verify().problems) == ((), ())
    entry = store.publish(source)
    assert store.verify().problems == ()
    assert store.history("formal").published == {"1.0.0": entry.version_digest}


@pytest.mark.parametrize(
    "line",
    [
        b'{"action":"tag","time":"t","version":"1.0.0","alias":["x"]}',
        b'{"action":"remove","time":"t","version":[1]}',
        b'{"action":"remove","time":"t","version":"first"}',
        b'{"action":"publish","time":"t","version":{}}',
        b'{"action":[],"time":"t","version":"1.0.0"}',
        b"[" * 100_000 + b"]" * 100_000,
        b"[]",
        b"\xff",
    ],
)
def test_a_line_that_is_no_event_is_told(store, source, line):
    store.publish(source)
    with store.paths.log("formal").open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(StoreError, match=r"log.jsonl:2"):
        store.resolve("formal")
    assert store.names() == ("formal",)


def test_a_version_that_was_changed_past_the_store_is_refused(store, source, tmp_path):
    store.publish(source)
    other = make_artifact(tmp_path / "other", seed=5)
    folder = store.paths.version("formal", "1.0.0")
    shutil.rmtree(folder)
    shutil.copytree(other, folder)
    for use in (store.resolve, store.open):
        with pytest.raises(VerificationError, match="was published"):
            use("formal@1.0.0")
    assert [str(one.error) for one in store.survey().broken]
