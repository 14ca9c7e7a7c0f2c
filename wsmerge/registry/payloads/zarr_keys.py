"""The keys and values of any zarr store, for callers that are no coroutines.

This module imports zarr, so it is itself imported only where a zarr payload is read or written.
"""

from __future__ import annotations

from typing import Final

from zarr.abc.store import RangeByteRequest, Store
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import StorePath

from wsmerge.errors import TensorFileError
from wsmerge.registry.payloads.zarr_stores import ChunkStore
from wsmerge.registry.store_failures import store_reading

__all__ = ["StoredFile", "clear", "get_bytes", "joined", "list_keys", "put_bytes"]

_COPY_AGAIN: Final = "copy the artifact again from its source"


class StoredFile:
    """The value of a key of a zarr store as a file that is read by range.

    Raises:
        TensorFileError: there is no such key, or the store cannot be read.
    """

    def __init__(self, store: Store, key: str, label: str) -> None:
        self.label = f"{label}: {key}"
        self._store, self._key = store, key
        with store_reading(self.label):
            try:
                self.size = sync(store.getsize(key))
            except FileNotFoundError as error:
                raise TensorFileError("is missing", where=self.label, hint=_COPY_AGAIN) from error

    def read_into(self, start: int, out: memoryview) -> None:
        """Fill `out` with the bytes from byte `start` on.

        Raises:
            TensorFileError: the value cannot be read, or ends before `out` is full.
        """
        if not len(out):
            return
        chunks = ChunkStore(self._store, self.label)
        part = RangeByteRequest(start, start + len(out))
        found = sync(chunks.get(self._key, default_buffer_prototype(), part)).to_bytes()
        if len(found) != len(out):
            raise TensorFileError(f"ends at byte {start + len(found)}", where=self.label, hint=_COPY_AGAIN)
        out[:] = found

    def close(self) -> None:
        """Nothing is held open."""


def joined(path: str, name: str) -> str:
    """The key of `name` in folder `path` of a store, which may be its root, ``."""
    return f"{path}/{name}" if path else name


def get_bytes(store: Store, key: str) -> bytes | None:
    """The value of `key`, None where there is none. A store that is not open yet is opened.

    Raises:
        TensorFileError: the store cannot be read.
    """

    async def get() -> Buffer | None:
        await StorePath.open(store, "")
        return await store.get(key, default_buffer_prototype())

    with store_reading(f"{store}: {key}"):
        found = sync(get())
    return None if found is None else found.to_bytes()


def put_bytes(store: Store, key: str, data: bytes) -> None:
    """Set the value of `key`."""
    sync(store.set(key, default_buffer_prototype().buffer.from_bytes(data)))


def clear(store: Store, path: str) -> None:
    """Delete all keys in folder `path`, where the store can."""
    if store.supports_deletes:
        sync(store.delete_dir(path))


def list_keys(store: Store, path: str) -> list[str]:
    """Every key in folder `path` and below it, sorted, as seen from there.

    Raises:
        TensorFileError: the store cannot be read.
    """
    prefix = f"{path}/" if path else ""

    async def collect() -> list[str]:
        return sorted([key.removeprefix(prefix) async for key in store.list_prefix(prefix)])

    with store_reading(f"{store}: {path}"):
        return sync(collect())
