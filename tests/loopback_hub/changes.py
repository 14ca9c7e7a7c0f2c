"""The files of a tree, and a tree that is being changed on its way to a commit."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol

from tests.loopback_hub.large_files import Pointer

__all__ = ["Change", "File", "is_large_by_name"]


@dataclass(frozen=True)
class File:
    """A file of a tree: `oid` is its git object's, `size` that of the content, which may lie outside as a large file."""

    path: str
    oid: str
    size: int
    pointer: Pointer | None

    @property
    def etag(self) -> str:
        """What names the content: the sha256 of a large file, else the git object."""
        return self.pointer.digest if self.pointer else self.oid


class Blobs(Protocol):
    """Where the content of files is kept."""

    def write_blob(self, content: bytes) -> str:
        """Store content; returns its id."""

    def content(self, file: File) -> bytes:
        """The content of a file."""


class Change:
    """A tree that is being changed; `files` is what the commit will hold."""

    def __init__(self, blobs: Blobs, files: dict[str, File]) -> None:
        self._blobs = blobs
        self.files = dict(files)
        self.commit = ""

    def add(self, path: str, content: bytes) -> None:
        """Add or replace a file that lies in git itself."""
        oid = self._blobs.write_blob(content)
        self.files[path] = File(path, oid, len(content), None)

    def point(self, path: str, pointer: Pointer) -> None:
        """Add or replace a large file; its pattern joins `.gitattributes` if none there covers it."""
        self.files[path] = File(path, self._blobs.write_blob(pointer.encode()), pointer.size, pointer)
        if not self.is_large(path):
            attributes = self.files.get(".gitattributes")
            text = self._blobs.content(attributes).decode() if attributes else ""
            self.add(".gitattributes", f"{text}{path} filter=lfs diff=lfs merge=lfs -text\n".encode())

    def is_large(self, path: str) -> bool:
        """Whether `.gitattributes` makes a large file of what lies at `path`."""
        attributes = self.files.get(".gitattributes")
        return attributes is not None and is_large_by_name(path, self._blobs.content(attributes).decode())

    def remove(self, path: str) -> bool:
        """Remove a file; whether it was there."""
        return self.files.pop(path, None) is not None

    def remove_folder(self, path: str) -> bool:
        """Remove all files under a folder; whether there were any."""
        inside = [name for name in self.files if name.startswith(path.strip("/") + "/")]
        for name in inside:
            del self.files[name]
        return bool(inside)


def is_large_by_name(path: str, attributes: str) -> bool:
    """Whether the text of a `.gitattributes` makes a large file of what lies at `path`."""
    patterns = [line.split()[0] for line in attributes.splitlines() if "filter=lfs" in line.split()]
    return any(fnmatchcase(path if "/" in pattern else path.rpartition("/")[2], pattern) for pattern in patterns)
