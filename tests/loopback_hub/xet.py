"""The store behind Xet: a folder that hf_xet itself reads and writes, through the address `local://FOLDER`.

hf_xet cuts files into chunks, keeps the chunks in `xet/xorbs/xorbs`, and writes down in `xet/xorbs/shards/*.mdb` how
a file is put together. A shard is a header of 48 bytes, then entries of 48 bytes: for each file its hash, flags and
number of segments; the segments; as many verification entries (flag 31); its sha256 (flag 30). A hash of ones ends it.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import hf_xet  # type: ignore[import-untyped]  # it ships no types

from tests.loopback_hub.large_files import Pointer

__all__ = ["LIFETIME_S", "TOKEN", "XetStore", "read_shard"]

ENTRY = 48
VERIFIED, WITH_DIGEST = 1 << 31, 1 << 30
LIFETIME_S = 3600
# The store checks no token, but wants one.
TOKEN = "local"  # noqa: S105 - it opens nothing


class XetStore:
    """hf_xet's local store of chunks.

    Args:
        folder: where it lies; made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._read: set[Path] = set()
        self._files: dict[str, tuple[str, int]] = {}

    @property
    def address(self) -> str:
        """What clients are told to connect to."""
        return f"local://{self.folder}"

    def hash_of(self, digest: str) -> str | None:
        """The Xet hash of the file with this sha256, if it is stored."""
        found = self._find(digest)
        return found[0] if found else None

    def size_of(self, digest: str) -> int | None:
        """The size in bytes of the file with this sha256, if it is stored."""
        found = self._find(digest)
        return found[1] if found else None

    def stored_bytes(self) -> int:
        """The bytes of all chunks, as they are kept (deduplicated and compressed)."""
        return sum(path.stat().st_size for path in self._chunks.glob("*") if path.suffix != ".tagset")

    def store(self, content: bytes) -> Pointer:
        """Store a file."""
        session = hf_xet.XetSession()
        expiry = int(time.time()) + LIFETIME_S
        with session.new_upload_commit(
            endpoint=self.address,
            token=TOKEN,
            token_expiry_unix_secs=expiry,
        ) as commit:
            handle = commit.start_upload_bytes(content, sha256=hf_xet.COMPUTE_SHA256)
        return Pointer(handle.result().xet_info.sha256, len(content))

    def pieces(self, digest: str) -> Iterator[bytes]:
        """The content of the file with this sha256."""
        found = self._find(digest)
        if found is None:
            raise KeyError(digest)
        expiry = int(time.time()) + LIFETIME_S
        with hf_xet.XetSession().new_download_stream_group(
            endpoint=self.address,
            token=TOKEN,
            token_expiry_unix_secs=expiry,
        ) as group:
            yield from group.download_stream(hf_xet.XetFileInfo(*found))

    @property
    def _chunks(self) -> Path:
        return self.folder / "xet" / "xorbs" / "xorbs"

    def _find(self, digest: str) -> tuple[str, int] | None:
        with self._lock:
            if digest not in self._files:
                for path in set((self.folder / "xet" / "xorbs" / "shards").glob("*.mdb")) - self._read:
                    self._files |= read_shard(path.read_bytes())
                    self._read.add(path)
            return self._files.get(digest)


def read_shard(content: bytes) -> dict[str, tuple[str, int]]:
    """The files of a shard: sha256 -> (Xet hash, size in bytes)."""
    files: dict[str, tuple[str, int]] = {}
    at = ENTRY
    while content[at : at + 32] != b"\xff" * 32:
        flags, segments = struct.unpack_from("<II", content, at + 32)
        name, start = _hash(content, at), at + ENTRY
        size = sum(struct.unpack_from("<I", content, start + ENTRY * index + 36)[0] for index in range(segments))
        at = start + ENTRY * segments * (2 if flags & VERIFIED else 1)
        if flags & WITH_DIGEST:
            files[_hash(content, at)] = (name, size)
            at += ENTRY
    return files


def _hash(content: bytes, at: int) -> str:
    # A hash is written as four little-endian numbers and shown as four hexadecimal ones.
    return "".join(f"{part:016x}" for part in struct.unpack_from("<4Q", content, at))
