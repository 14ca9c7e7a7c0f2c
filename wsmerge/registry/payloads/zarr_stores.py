"""Stores that a zarr payload is read through: an artifact's files, and any store whose chunks must be there.

This module imports zarr, so it is itself imported only where a zarr payload is read or written.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Final

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from wsmerge.core.opening import MAX_WHOLE_BYTES
from wsmerge.core.ranges import RangeFile, read_range
from wsmerge.errors import TensorFileError
from wsmerge.registry.files import ArtifactFiles
from wsmerge.registry.payloads.zarr_layout import METADATA_FILE
from wsmerge.registry.store_failures import store_reading

__all__ = ["ChunkStore", "FilesStore"]

_MAX_INDEX_BYTES: Final = 1 << 16
_MOST_OPEN: Final = 32
_MOST_AT_ONCE: Final = 1 << 30
_COPY_AGAIN: Final = "copy the artifact again from its source"


class _ReadOnlyStore(Store):
    """What a store that is only read has to say to that."""

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self) -> None:
        super().__init__(read_only=True)
        self._is_open = True

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """The contents of several keys or parts of them."""
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def set(self, key: str, value: Buffer) -> None:  # noqa: ARG002 - zarr's signature
        """Refused: the store is only read."""
        raise ValueError(f"{key} cannot be written: the store is read-only")

    async def delete(self, key: str) -> None:
        """Refused: the store is only read."""
        raise ValueError(f"{key} cannot be deleted: the store is read-only")

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Every key that begins with `prefix`."""
        async for key in self.list():
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """The names of what lies directly in the folder `prefix`."""
        start = f"{prefix.rstrip('/')}/" if prefix else ""
        seen = set()
        async for key in self.list_prefix(start):
            name = key.removeprefix(start).partition("/")[0]
            if name not in seen:
                seen.add(name)
                yield name


class FilesStore(_ReadOnlyStore):
    """The files of an artifact as a zarr store. Keys are the names of files; parts of them are read by range."""

    def __init__(self, files: ArtifactFiles) -> None:
        super().__init__()
        self.files = files
        self._names = files.names()
        self._opened = _OpenedFiles(files)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FilesStore) and other.files is self.files

    def __hash__(self) -> int:
        return hash(id(self.files))

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """The contents of file `key`, or a part of them; None where there is no such file."""
        if key not in self._names:
            return None
        return prototype.buffer.from_bytes(await asyncio.to_thread(self._read, key, byte_range))

    async def exists(self, key: str) -> bool:
        """Whether there is a file `key`."""
        return key in self._names

    async def list(self) -> AsyncIterator[str]:
        """The name of every file."""
        for name in sorted(self._names):
            yield name

    def close(self) -> None:
        """Close the files; what is read afterwards is opened again."""
        self._opened.close()
        super().close()

    def _read(self, key: str, part: ByteRequest | None) -> bytes:
        with self._opened.using(key) as file:
            start, stop = _bounds(part, file.size)
            most = MAX_WHOLE_BYTES if key.endswith(METADATA_FILE) else _MOST_AT_ONCE
            if stop - start > most:
                raise TensorFileError(
                    f"has {stop - start:,} bytes that would be read at once, and {most:,} is the most",
                    where=file.label,
                )
            return read_range(file, start, stop - start)


class _OpenedFiles:
    """The files that were read last, kept open: a file far away is found once, not with every chunk. Threads share it."""

    def __init__(self, files: ArtifactFiles) -> None:
        self._files = files
        self._idle: dict[str, RangeFile] = {}
        self._lock = Lock()

    @contextmanager
    def using(self, name: str) -> Iterator[RangeFile]:
        """File `name`, nobody else's while the block runs."""
        with self._lock:
            file = self._idle.pop(name, None)
        file = file or self._files.open(name)
        try:
            yield file
        finally:
            with self._lock:
                replaced = self._idle.pop(name, None)
                self._idle[name] = file
                surplus = list(self._idle)[:-_MOST_OPEN]
                closing = [self._idle.pop(key) for key in surplus] + ([replaced] if replaced else [])
            for other in closing:
                other.close()

    def close(self) -> None:
        """Close what is open and not being read."""
        with self._lock:
            closing, self._idle = list(self._idle.values()), {}
        for file in closing:
            file.close()


class ChunkStore(_ReadOnlyStore):
    """Any store as the chunks of a payload are read from it: what is missing is an error, never zeros.

    The index at the end of a shard is kept: zarr asks for it again with every chunk.
    """

    def __init__(self, store: Store, label: str) -> None:
        super().__init__()
        self.store = store
        self.label = label
        self._indices: dict[tuple[str, int], bytes] = {}
        self._lock = Lock()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ChunkStore) and other.store == self.store

    def __hash__(self) -> int:
        return hash((ChunkStore, id(self.store)))

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer:
        """The value of `key`, or a part of it.

        Raises:
            TensorFileError: there is none, or it cannot be read.
        """
        place = (key, byte_range.suffix) if isinstance(byte_range, SuffixByteRequest) else None
        with self._lock:
            known = self._indices.get(place) if place else None
        if known is not None:
            return prototype.buffer.from_bytes(known)
        found = await self._get(key, prototype, byte_range)
        if place and len(found) <= _MAX_INDEX_BYTES:
            with self._lock:
                self._indices[place] = found.to_bytes()
        return found

    async def exists(self, key: str) -> bool:
        """Whether the store has `key`."""
        return await self.store.exists(key)

    async def list(self) -> AsyncIterator[str]:
        """Every key of the store."""
        async for key in self.store.list():
            yield key

    async def _get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None) -> Buffer:
        where = f"{self.label}: {key}"
        with store_reading(where):
            found = await self.store.get(key, prototype, byte_range)
        if found is None:
            raise TensorFileError("is missing", where=where, hint=_COPY_AGAIN)
        return found


def _bounds(part: ByteRequest | None, size: int) -> tuple[int, int]:
    """The first byte of a part, and the one after its last; a part ends where the file does."""
    match part:
        case RangeByteRequest(start, end):
            return min(start, size), min(max(start, end), size)
        case OffsetByteRequest(offset):
            return min(offset, size), size
        case SuffixByteRequest(suffix):
            return max(0, size - suffix), size
        case _:
            return 0, size
