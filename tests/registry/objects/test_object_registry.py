"""What only a registry on an object store has to get right: uploads that run, garbage, damage and slow clocks."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from itertools import count
from threading import Lock
from typing import Any

import pytest

from wsmerge.errors import ConflictError, NotFoundError, StoreError
from wsmerge.registry import Version, verify_direction
from wsmerge.registry.objects import MemoryObjects, ObjectRefusedError, ObjectRegistry, upload
from wsmerge.registry.testing import DyingObjects, sample_artifact
from wsmerge.registry.testing.faults import CrashError

HOURS = 3600.0


@dataclass
class Meddled:
    """Objects between whose requests something else happens: before the n-th one."""

    objects: Any
    at: int
    meddle: Any
    count: int = 0
    done: bool = False
    _lock: Lock = field(default_factory=Lock)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.objects, name)
        if not callable(found):
            return found

        def request(*arguments: Any, **options: Any) -> Any:
            if self.count == self.at:
                self.done = True
                self.meddle()
            self.count += 1
            return found(*arguments, **options)

        return request


@pytest.fixture
def sources(tmp_path):
    return {
        version: sample_artifact(tmp_path / version, version, seed=seed)
        for version, seed in (("1.0.0", 1), ("1.1.0", 1), ("2.0.0", 2))
    }


def blobs_of(registry: ObjectRegistry, version: str) -> dict[str, str]:
    files = registry.files("formal", Version.parse(version))
    return {name: files.open(name).blob for name in files.names()}


def aged(objects: MemoryObjects, prefix: str = "", by_s: float = 2 * HOURS) -> None:
    """Make what is under `prefix` older."""
    for key, (data, tag, modified) in list(objects._held.items()):
        if key.startswith(prefix):
            objects._held[key] = (data, tag, modified - by_s)


def test_gc_at_any_moment_of_a_publish_takes_nothing_that_it_needs(sources):
    # 1.1.0 shares its payload with 1.0.0, which is removed meanwhile and, as time goes by, long ago; and an old upload of
    # 2.0.0 had crashed.
    for moment in range(100):
        objects = MemoryObjects()
        registry = ObjectRegistry(objects)
        registry.publish(sources["1.0.0"])
        with pytest.raises(CrashError):
            ObjectRegistry(DyingObjects(objects, 10)).publish(sources["2.0.0"])
        aged(objects)

        def meddle(registry: ObjectRegistry = registry, objects: MemoryObjects = objects) -> None:
            aged(objects, "blobs/")
            if registry.names():
                removed = registry.remove("formal@1.0.0")
                log = objects.get("names/formal/log.jsonl").data
                objects.put("names/formal/log.jsonl", log.replace(removed.time.encode(), b"2026-01-01T00:00:00Z"))
            registry.gc(dry_run=False)
            registry.gc(dry_run=False)

        meddled = Meddled(objects, moment, meddle)
        for version in ("1.1.0", "2.0.0"):
            ObjectRegistry(meddled).publish(sources[version])
        assert registry.verify().problems == ()
        assert [str(found) for found in registry.version_numbers("formal")][-2:] == ["1.1.0", "2.0.0"]
        if not meddled.done:
            break
    assert 20 < moment < 99


def test_a_publish_and_a_removal_at_any_moment_of_gc_end_well(sources):
    for moment in range(100):
        objects = MemoryObjects()
        registry = ObjectRegistry(objects)
        registry.publish(sources["1.0.0"])
        aged(objects)

        def meddle(registry: ObjectRegistry = registry) -> None:
            registry.publish(sources["1.1.0"])
            registry.publish(sources["2.0.0"])
            registry.remove("formal@1.0.0")

        meddled = Meddled(objects, moment, meddle)
        ObjectRegistry(meddled).gc(dry_run=False)
        if not meddled.done:
            break
        assert [entry.label for entry in registry.list()] == ["formal@1.1.0", "formal@2.0.0"]
        assert registry.verify().problems == ()
    assert 4 < moment < 99


def test_gc_leaves_what_was_written_lately():
    objects = MemoryObjects()
    objects.put("blobs/ab/cd/ef", b"123")
    registry = ObjectRegistry(objects)
    assert registry.gc(dry_run=False).blobs == 0
    aged(objects)
    assert registry.gc().freed_bytes == 3
    assert registry.gc(dry_run=False).blobs == 1
    assert list(objects.list("")) == []


def test_gc_spares_an_upload_that_runs_and_takes_one_that_does_not(sources):
    objects = MemoryObjects()
    registry = ObjectRegistry(objects)
    with pytest.raises(CrashError):
        ObjectRegistry(DyingObjects(objects, 8)).publish(sources["1.0.0"])
    aged(objects, "blobs/")
    assert list(objects.list("blobs/"))
    running = registry.gc(dry_run=False)
    assert (running.blobs, running.temporaries, running.freed_bytes) == (0, 0, 0)
    aged(objects, "uploads/")
    ended = registry.gc(dry_run=False)
    assert (ended.blobs > 0, ended.temporaries) == (True, 1)
    assert list(objects.list("")) == []


def test_versions_share_what_they_have_in_common(sources):
    registry = ObjectRegistry(MemoryObjects())
    for version in ("1.0.0", "1.1.0", "2.0.0"):
        registry.publish(sources[version])
    first, same, other = (blobs_of(registry, version) for version in ("1.0.0", "1.1.0", "2.0.0"))
    assert first["adapter_model.safetensors"] == same["adapter_model.safetensors"]
    assert first["adapter_model.safetensors"] != other["adapter_model.safetensors"]
    assert first["adapter_config.json"] == other["adapter_config.json"]
    assert first["direction.json"] != same["direction.json"]


def test_an_upload_says_again_and_again_that_it_runs(sources, monkeypatch):
    class Slow(MemoryObjects):
        told = 0

        def put(self, key, data, **conditions):
            self.told += key.startswith("uploads/")
            super().put(key, data, **conditions)

        def upload(self, key, chunks, size):
            time.sleep(0.05)
            super().upload(key, chunks, size)

    monkeypatch.setattr(upload, "_BEAT_S", 0.01)
    objects = Slow()
    ObjectRegistry(objects).publish(sources["1.0.0"])
    assert objects.told > 3
    told = objects.told
    time.sleep(0.05)
    assert objects.told == told
    assert list(objects.list("uploads/")) == []


def test_a_publish_that_was_asleep_for_long_is_given_up(sources, monkeypatch):
    monkeypatch.setattr(upload, "_LONGEST_SILENCE_S", -1.0)
    registry = ObjectRegistry(MemoryObjects())
    with pytest.raises(StoreError, match="interrupted"):
        registry.publish(sources["1.0.0"])
    assert registry.names() == ()


def test_a_source_that_changes_while_it_is_published_is_refused(sources, monkeypatch):
    def verify_and_change(direction):
        problems = verify_direction(direction)
        payload = sources["1.0.0"] / "adapter_model.safetensors"
        data = bytearray(payload.read_bytes())
        data[-1] ^= 1
        payload.write_bytes(data)
        return problems

    monkeypatch.setattr("wsmerge.registry.objects.upload.verify_direction", verify_and_change)
    registry = ObjectRegistry(MemoryObjects())
    with pytest.raises(StoreError, match="changed while it was published"):
        registry.publish(sources["1.0.0"])
    assert registry.names() == ()


def blob_keys(objects: MemoryObjects) -> list[str]:
    return [listed.key for listed in objects.list("blobs/")]


@pytest.mark.parametrize("number", [0, 2, 4])
def test_an_upload_that_fails_leaves_no_blobs(sources, monkeypatch, number):
    objects = MemoryObjects()
    sent = count()
    whole = objects.upload

    def full(key: str, chunks: Any, size: int) -> None:
        whole(key, chunks, size)
        if next(sent) == number:
            raise StoreError("the store fails: no room")

    monkeypatch.setattr(objects, "upload", full)
    with pytest.raises(StoreError, match="no room"):
        ObjectRegistry(objects).publish(sources["1.0.0"])
    assert blob_keys(objects) == []
    ObjectRegistry(objects).publish(sources["1.0.0"])
    assert ObjectRegistry(objects).verify().problems == ()


@pytest.mark.parametrize("refused", [True, False])
def test_blobs_stay_only_where_the_version_may_be_there(sources, monkeypatch, refused):
    """The store refuses the write that makes it, or gives no answer to it."""
    objects = MemoryObjects()
    whole = objects.put

    def put(key: str, data: bytes, **conditions: Any) -> None:
        if "/versions/" not in key:
            whole(key, data, **conditions)
            return
        if refused:
            raise ObjectRefusedError("the store refuses")
        whole(key, data, **conditions)
        raise StoreError("the store fails: no answer")

    monkeypatch.setattr(objects, "put", put)
    with pytest.raises(StoreError):
        ObjectRegistry(objects).publish(sources["1.0.0"])
    monkeypatch.undo()
    assert (blob_keys(objects) == []) == refused
    ObjectRegistry(objects).publish(sources["1.0.0"])
    assert ObjectRegistry(objects).verify().problems == ()


@pytest.mark.parametrize("same", [True, False])
def test_whoever_comes_second_leaves_no_blobs(sources, tmp_path, monkeypatch, same):
    objects = MemoryObjects()
    mine = sample_artifact(tmp_path / "mine") if same else sample_artifact(tmp_path / "mine", seed=3)
    whole = objects.put

    def late(key: str, data: bytes, **conditions: Any) -> None:
        if "/versions/" in key:
            monkeypatch.undo()
            ObjectRegistry(objects).publish(sources["1.0.0"])
        whole(key, data, **conditions)

    monkeypatch.setattr(objects, "put", late)
    with contextlib.nullcontext() if same else pytest.raises(ConflictError):
        ObjectRegistry(objects).publish(mine)
    used = set(blobs_of(ObjectRegistry(objects), "1.0.0").values())
    assert set(blob_keys(objects)) == used
    assert ObjectRegistry(objects).verify().problems == ()


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"{", "is no version"),
        (b"[]", "is no version"),
        (b'{"schema":"wsmerge.stored-version/1","version_digest":"a","files":{"x":{}}}', "is no version"),
        (b'{"schema":"wsmerge.stored-version/2"}', "is of format"),
    ],
)
def test_a_damaged_version_stops_gc_and_nothing_else(sources, data, told):
    objects = MemoryObjects()
    registry = ObjectRegistry(objects)
    registry.publish(sources["1.0.0"])
    registry.publish(sources["2.0.0"])
    objects.put("names/formal/versions/1.0.0.json", data)
    before = {listed.key for listed in objects.list("")}
    with pytest.raises(StoreError, match=told) as caught:
        registry.gc(dry_run=False, min_age_s=-60)
    assert str(caught.value.where).endswith("names/formal/versions/1.0.0.json")
    assert {listed.key for listed in objects.list("")} == before
    assert [broken.label for broken in registry.survey().broken] == ["formal@1.0.0"]
    assert str(registry.resolve("formal").version) == "2.0.0"
    registry.remove("formal@1.0.0")
    assert registry.gc(dry_run=False, min_age_s=-60).removed_versions == 1
    assert registry.verify().problems == ()


def test_a_blob_that_is_gone_is_told_with_its_file(sources):
    objects = MemoryObjects()
    registry = ObjectRegistry(objects)
    registry.publish(sources["1.0.0"])
    objects.delete([blobs_of(registry, "1.0.0")["adapter_model.safetensors"]])
    with pytest.raises(StoreError, match="its bytes are gone") as caught:
        registry.open("formal")
    assert str(caught.value.where).endswith("formal@1.0.0/adapter_model.safetensors")
    (problem,) = registry.verify().problems
    assert problem.startswith("formal@1.0.0: ")


@pytest.mark.parametrize("line", [b"x\n", b'{"time":"t","action":"x","version":"1"}\n'])
def test_a_damaged_log_is_told_with_its_line(sources, line):
    objects = MemoryObjects()
    registry = ObjectRegistry(objects)
    registry.publish(sources["1.0.0"])
    objects.put("names/formal/log.jsonl", objects.get("names/formal/log.jsonl").data + line)
    with pytest.raises(StoreError) as caught:
        registry.tag("formal", "good", "1.0.0")
    assert str(caught.value.where).endswith("names/formal/log.jsonl:2")
    assert [broken.label for broken in registry.survey().broken] == ["formal"]
    assert registry.gc(dry_run=False, min_age_s=-60).freed_bytes == 0


def test_what_others_put_there_is_no_version(sources):
    objects = MemoryObjects()
    registry = ObjectRegistry(objects)
    registry.publish(sources["1.0.0"])
    for key in ("names/formal/versions/notes.txt", "names/No Name/log.jsonl", "names/formal/1.0.0.json", "other"):
        objects.put(key, b"x")
    assert [entry.label for entry in registry.list()] == ["formal@1.0.0"]
    assert registry.known_names() == ("formal",)
    assert registry.gc(dry_run=False, min_age_s=-60).freed_bytes == 0


def test_a_place_on_no_disk_is_told(sources):
    registry = ObjectRegistry(MemoryObjects("memory://here"))
    entry = registry.publish(sources["1.0.0"])
    assert entry.place == "memory://here/formal@1.0.0"
    with pytest.raises(StoreError, match="no disk"):
        _ = entry.path
    with pytest.raises(NotFoundError):
        registry.files("formal", registry.next_version("formal"))
