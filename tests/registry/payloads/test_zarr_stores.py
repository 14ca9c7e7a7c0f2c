"""The same direction from and to every kind of zarr store, and into the registry from there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.abc.store import Store as ZarrStore
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore, MemoryStore, ObjectStore, ZipStore

from tests.registry.objects import s3_server
from tests.registry.payloads.zarr_artifacts import DENSE, dense_values, make_pair, small_chunks
from wsmerge.errors import DirectionError, OutputError, TensorFileError, VerificationError
from wsmerge.registry import Direction, Store, open_direction_folder, verify_direction
from wsmerge.registry.files import FolderFiles
from wsmerge.registry.objects import MemoryObjects, ObjectRegistry
from wsmerge.registry.payloads.zarr_keys import get_bytes, put_bytes
from wsmerge.registry.payloads.zarr_stores import FilesStore
from wsmerge.registry.zarr_direction import open_zarr_direction, write_zarr_direction


@contextmanager
def local(folder: Path) -> Iterator[Callable[[], ZarrStore]]:
    yield lambda: LocalStore(folder / "local.zarr")


@contextmanager
def memory(_folder: Path) -> Iterator[Callable[[], ZarrStore]]:
    store = MemoryStore()
    yield lambda: store


@contextmanager
def fsspec(folder: Path) -> Iterator[Callable[[], ZarrStore]]:
    held = pytest.importorskip("fsspec").filesystem("memory", skip_instance_cache=True)
    wrapper = pytest.importorskip("fsspec.implementations.asyn_wrapper").AsyncFileSystemWrapper
    root = f"/{folder.name}"
    yield lambda: FsspecStore(wrapper(held, asynchronous=True), path=root)
    held.rm(root, recursive=True)


@contextmanager
def object_memory(_folder: Path) -> Iterator[Callable[[], ZarrStore]]:
    held = pytest.importorskip("obstore.store").MemoryStore()
    yield lambda: ObjectStore(held)


@contextmanager
def object_local(folder: Path) -> Iterator[Callable[[], ZarrStore]]:
    stores = pytest.importorskip("obstore.store")
    (folder / "objects").mkdir()
    yield lambda: ObjectStore(stores.LocalStore(str(folder / "objects")))


@contextmanager
def s3(folder: Path) -> Iterator[Callable[[], ZarrStore]]:
    stores = pytest.importorskip("obstore.store")
    pytest.importorskip("moto")
    with s3_server.running() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        url = f"s3://{s3_server.BUCKET}/{folder.name}"
        yield lambda: ObjectStore(stores.from_url(url, client_options={"allow_http": True}))


@pytest.fixture
def plain(tmp_path, monkeypatch) -> Iterator[Direction]:
    small_chunks(monkeypatch)
    direction, packed = make_pair(tmp_path)
    packed.close()
    with direction:
        yield direction


@pytest.mark.parametrize("path", ["", "directions/formal"])
@pytest.mark.parametrize("kind", [local, memory, fsspec, object_memory, object_local, s3])
def test_every_store_gives_back_what_was_written(tmp_path, plain, kind, path):
    with kind(tmp_path) as make:
        write_zarr_direction(plain, make(), path)
        with open_zarr_direction(make(), path) as direction:
            assert direction.digest == plain.digest
            assert verify_direction(direction) == ()
            out = np.empty(100, np.float32)
            direction.read_dense(DENSE, 333, out)
            assert out.tobytes() == dense_values().reshape(-1)[333:433].tobytes()
            with pytest.raises(DirectionError, match="on no disk of this machine"):
                _ = direction.path
            check_published(direction, plain, tmp_path / "store")
        with pytest.raises(OutputError, match="is there already"):
            write_zarr_direction(plain, make(), path)


def check_published(direction: Direction, plain: Direction, root: Path) -> None:
    """From the zarr store into the registry, as the same version or as another."""
    store = Store(root)
    assert store.publish(direction).version_digest == plain.digest
    assert str(store.publish(direction, name="casual", version="2.0.0").version) == "2.0.0"
    assert store.verify().problems == ()
    with store.open("casual@2.0.0") as renamed:
        group = zarr.open_group(LocalStore(renamed.path / "direction.zarr"), mode="r")
        told: Any = group.attrs["wsmerge"]
        assert told["manifest"].encode() == renamed.manifest.canonical_bytes()
        assert renamed.manifest.content_digest == plain.manifest.content_digest


def test_a_zip_file(tmp_path, plain):
    path = tmp_path / "formal.zarr.zip"
    with ZipStore(path, mode="w") as store:
        write_zarr_direction(plain, store)
    with ZipStore(path, mode="r") as store, open_zarr_direction(store) as direction:
        assert direction.digest == plain.digest
        assert verify_direction(direction) == ()
        check_published(direction, plain, tmp_path / "store")


def test_a_store_that_changes_bytes_is_found(plain):
    class Rotten(MemoryStore):
        async def set(self, key: str, value: Any, byte_range: Any = None) -> None:
            if key.endswith("scale.delta/c"):
                value = value[:-1]
            await super().set(key, value, byte_range)

    with pytest.raises((TensorFileError, VerificationError), match=r"model\.scale"):
        write_zarr_direction(plain, Rotten())


def test_a_write_that_was_cut_off_is_no_direction_and_can_be_repeated(plain):
    class Full(MemoryStore):
        room = 20

        async def set(self, key: str, value: Any, byte_range: Any = None) -> None:
            self.room -= 1
            if not self.room:
                raise OSError(28, "No space left on device")
            await super().set(key, value, byte_range)

    store = Full()
    with pytest.raises(OutputError, match="No space left on device"):
        write_zarr_direction(plain, store)
    with pytest.raises(TensorFileError, match=r"has no zarr\.json"):
        open_zarr_direction(store)
    write_zarr_direction(plain, store)
    with open_zarr_direction(store) as direction:
        assert verify_direction(direction) == ()


def test_a_group_of_others_is_no_direction():
    store = MemoryStore()
    zarr.create_group(store)
    with pytest.raises(DirectionError, match="hold no manifest"):
        open_zarr_direction(store)


@pytest.mark.usefixtures("plain")
def test_an_artifact_is_a_zarr_store(tmp_path):
    """What zarr may ask of a store, of the files of an artifact."""
    folder = tmp_path / "zarr"
    store = FilesStore(FolderFiles(folder))
    data = (folder / "direction.json").read_bytes()
    prototype = default_buffer_prototype()

    def get(key: str, part: Any = None) -> bytes | None:
        found = sync(store.get(key, prototype, part))
        return None if found is None else found.to_bytes()

    assert get("direction.json") == data
    assert get("nothing.json") is None
    assert get("direction.json", RangeByteRequest(5, 12)) == data[5:12]
    assert get("direction.json", RangeByteRequest(5, 1 << 30)) == data[5:]
    assert get("direction.json", OffsetByteRequest(7)) == data[7:]
    assert get("direction.json", SuffixByteRequest(9)) == data[-9:]
    assert get("direction.json", SuffixByteRequest(1 << 30)) == data
    parts = [("direction.json", RangeByteRequest(0, 3)), ("nothing.json", None)]
    first, second = sync(store.get_partial_values(prototype, parts))
    assert first is not None
    assert (first.to_bytes(), second) == (data[:3], None)
    with pytest.raises(ValueError, match="read-only"):
        sync(store.set("new", prototype.buffer.from_bytes(b"")))
    with pytest.raises(ValueError, match="read-only"):
        sync(store.delete("direction.json"))
    group: Any = zarr.open_group(store, path="direction.zarr", mode="r")
    np.testing.assert_array_equal(group[f"{DENSE}.delta"][:], dense_values())
    assert sorted(zarr.open_group(store, path="direction.zarr", mode="r", use_consolidated=False)) == sorted(
        path.name for path in (folder / "direction.zarr").iterdir() if path.is_dir()
    )


@pytest.mark.usefixtures("plain")
def test_every_file_and_folder_of_a_version_is_synced(tmp_path, monkeypatch):
    synced: set[str] = set()
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.add(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    with open_zarr_direction(LocalStore(tmp_path / "zarr/direction.zarr")) as direction:
        monkeypatch.setattr(os, "fsync", noted)
        entry = Store(tmp_path / "store").publish(direction)
    version = Path(entry.place)
    staged = next(path for path in synced if "/publish-" in path).partition("/publish-")
    root = staged[0] + staged[1] + staged[2].partition("/")[0]
    wanted = {f"{root}/{path.relative_to(version)}" for path in version.rglob("*")}
    assert wanted <= synced
    assert len(wanted) > 30


def test_a_registry_in_an_object_store_holds_it_and_hashes_what_it_reads(tmp_path, plain):
    registry = ObjectRegistry(MemoryObjects())
    with open_zarr_direction(LocalStore(tmp_path / "zarr/direction.zarr")) as packed:
        entry = registry.publish(packed)
        renamed = registry.publish(packed, name="casual")
    assert entry.version_digest == plain.digest
    assert registry.verify().problems == ()
    for label in (entry.label, renamed.label):
        with registry.open(label) as direction:
            assert direction.files.folder is None
            assert direction.payload.verified
            assert "direction.zarr/zarr.json" in direction.files.names()
            assert verify_direction(direction) == ()
            out = np.empty(100, np.float32)
            direction.read_dense(DENSE, 333, out)
            assert out.tobytes() == dense_values().reshape(-1)[333:433].tobytes()


def test_a_store_that_is_lost_is_told_as_such(plain):
    """What obstore raises, through opening, reading, listing and writing."""
    stores = pytest.importorskip("obstore.store")
    pytest.importorskip("moto")
    with s3_server.running() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        options = {"client_options": {"allow_http": True}, "retry_config": {"max_retries": 0}}
        store = ObjectStore(stores.from_url(f"s3://{s3_server.BUCKET}/lost", **options))
        write_zarr_direction(plain, store, "formal")
        direction = open_zarr_direction(store, "formal")
    dense = np.empty(100, np.float32)
    asked: dict[str, Callable[[], object]] = {
        "a chunk": lambda: direction.read_dense(DENSE, 333, dense),
        "the group": lambda: open_zarr_direction(store, "formal"),
        "the list": direction.files.names,
        "a file": lambda: direction.files.open("direction.zarr/zarr.json"),
    }
    for what, ask in asked.items():
        with pytest.raises(TensorFileError, match="cannot be read") as caught:
            ask()
        assert caught.value.where is not None, what
        assert "object_store" in caught.value.where, what
        assert caught.value.hint is not None, what
        assert "Debug source" not in str(caught.value), what
    with pytest.raises(TensorFileError, match="cannot be read"):
        write_zarr_direction(plain, store, "elsewhere")


def test_a_store_that_is_lost_while_it_is_written_is_told(plain):
    stores = pytest.importorskip("obstore.store")
    exceptions = pytest.importorskip("obstore.exceptions")

    class Refusing(ObjectStore[Any]):
        async def set(self, key: str, value: Any) -> None:  # noqa: ARG002 - zarr's signature
            raise exceptions.PermissionDeniedError("not for you\n\nDebug source:\nInner(1)")

    with pytest.raises(OutputError, match="not for you") as caught:
        write_zarr_direction(plain, Refusing(stores.MemoryStore()))
    assert caught.value.hint is not None
    assert "Inner" not in str(caught.value)


def test_a_damaged_zip_file_is_told(tmp_path, plain):
    path = tmp_path / "formal.zarr.zip"
    with ZipStore(path, mode="w") as store:
        write_zarr_direction(plain, store)
        held = store._zf.getinfo(f"{DENSE}.delta/c.0.0")  # where in the file the bytes of a shard lie
    data = bytearray(path.read_bytes())
    data[held.header_offset + 30 + len(held.filename) + held.file_size // 2] ^= 1
    path.write_bytes(data)
    with ZipStore(path, mode="r") as store, open_zarr_direction(store) as direction:
        with pytest.raises(TensorFileError, match="cannot be read") as caught:
            direction.read_dense(DENSE, 0, np.empty(37 * 24, np.float32))
        assert caught.value.hint is not None


def test_arrays_read_in_turns_by_pieces_are_not_mixed_up(plain):
    store = MemoryStore()
    write_zarr_direction(plain, store)
    wanted = {DENSE: dense_values().reshape(-1), "model.norm.weight": np.linspace(-1, 1, 16, dtype=np.float32)}
    with open_zarr_direction(store) as direction:
        out = np.empty(7, np.float32)
        for start in (0, 7):
            for name, values in wanted.items():
                direction.read_dense(name, start, out)
                assert out.tobytes() == values[start : start + 7].tobytes()


def test_a_group_that_lacks_an_array_of_its_manifest_is_refused(plain):
    store = MemoryStore()
    write_zarr_direction(plain, store)
    group = json.loads(get_bytes(store, "zarr.json") or b"")
    del group["consolidated_metadata"]["metadata"]["model.scale.delta"]
    put_bytes(store, "zarr.json", json.dumps(group).encode())
    with pytest.raises(DirectionError, match=r"model\.scale\.delta: missing"):
        open_zarr_direction(store)


def test_what_is_not_its_manifests_is_not_written(tmp_path, plain):
    """Told of the source, and before the group can be opened."""
    group: Any = zarr.open_group(LocalStore(tmp_path / "zarr/direction.zarr"), mode="r+")
    group[f"{DENSE}.delta"][...] = np.float32(1)
    store = MemoryStore()
    with open_direction_folder(tmp_path / "zarr") as changed:
        with pytest.raises(VerificationError, match="the bytes of delta") as caught:
            write_zarr_direction(changed, store)
        assert caught.value.where == changed.label
    assert plain.label == changed.label
    with pytest.raises(TensorFileError, match=r"has no zarr\.json"):
        open_zarr_direction(store)
