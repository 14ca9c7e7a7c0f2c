"""Large files by sha256, and the pointers that stand for them in git (git-lfs, specification v1)."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["LargeFiles", "Pointer", "WrongContentError"]

_POINTER = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\noid sha256:(?P<digest>[0-9a-f]{64})\nsize (?P<size>\d+)\n"
)


class WrongContentError(Exception):
    """The content is not that of its digest."""


@dataclass(frozen=True)
class Pointer:
    """What git holds in place of a large file."""

    digest: str
    size: int

    def encode(self) -> bytes:
        """The pointer file."""
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.digest}\nsize {self.size}\n".encode()

    @classmethod
    def parse(cls, content: bytes) -> Pointer | None:
        """The pointer in a file, if it is one."""
        found = _POINTER.fullmatch(content) if len(content) < 200 else None
        return cls(found["digest"].decode(), int(found["size"])) if found else None


class LargeFiles:
    """A folder of files named by their sha256."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, digest: str) -> Path:
        """Where a file lies, or would."""
        return self.folder / digest[:2] / digest[2:4] / digest

    def size(self, digest: str) -> int | None:
        """The size of a file in bytes; None: not there."""
        path = self.path(digest)
        return path.stat().st_size if path.exists() else None

    def write(self, pieces: Iterable[bytes], digest: str | None = None) -> Pointer:
        """Store a file; it appears only when it is complete and, where `digest` is given, is what that says."""
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f"incoming-{uuid.uuid4().hex}"
        hashed, size = hashlib.sha256(), 0
        try:
            with temporary.open("wb") as file:
                for piece in pieces:
                    hashed.update(piece)
                    size += file.write(piece)
            if digest not in {None, hashed.hexdigest()}:
                raise WrongContentError(f"{digest} expected, {hashed.hexdigest()} received")
            target = self.path(hashed.hexdigest())
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.rename(target)
        finally:
            temporary.unlink(missing_ok=True)
        return Pointer(hashed.hexdigest(), size)
