"""What a Hub holds: users, repositories, the store of Xet, collections."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.loopback_hub.changes import File
from tests.loopback_hub.large_files import Pointer
from tests.loopback_hub.repositories import Repository
from tests.loopback_hub.xet import XetStore

__all__ = ["Site"]

# The parts of the Hub's first commit: what is kept as LFS files.
LARGE_PATTERNS = (
    *("*.7z", "*.arrow", "*.bin", "*.ckpt", "*.gguf", "*.gz", "*.h5", "*.msgpack", "*.npy", "*.npz", "*.onnx"),
    *("*.parquet", "*.pb", "*.pickle", "*.pkl", "*.pt", "*.pth", "*.safetensors", "*.tar", "*.zip", "*.zst"),
)


class Site:
    """The state behind the routes.

    Args:
        folder: where the repositories lie, each as a bare git repository `models/OWNER/NAME`.
        tokens: token -> user name.
        xet: whether large files go through Xet; its store is then a folder.
    """

    def __init__(self, folder: Path, tokens: Mapping[str, str], *, xet: bool) -> None:
        self.folder, self.tokens = folder, dict(tokens)
        # The servers' URLs: of the Hub, and of the place of large files, which lies elsewhere.
        self.endpoint = self.storage = ""
        self.xet = XetStore(folder / "xet") if xet else None
        self.repositories: dict[str, Repository] = {}
        self.collections: dict[str, dict[str, Any]] = {}
        self.lock = threading.RLock()
        # Tests may ask for pages this small, so that few entries need several.
        self.page_size = 1000
        self.part_size: int | None = None
        self._secret = secrets.token_bytes(16)

    def create(self, name: str, *, private: bool = False, gated: bool = False) -> Repository:
        """Make a repository with the Hub's first commit; KeyError if there is one."""
        with self.lock:
            if name in self.repositories:
                raise KeyError(name)
            path = self.folder / "models" / name
            repository = Repository(name, path, private=private, gated=gated)
            lines = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LARGE_PATTERNS)
            with repository.change("main", message="initial commit", author=repository.owner) as change:
                change.add(".gitattributes", lines.encode())
            self.repositories[name] = repository
        return repository

    def delete(self, name: str) -> None:
        """Forget a repository and remove its files."""
        with self.lock:
            self.repositories.pop(name).delete()

    def move(self, old: str, new: str) -> None:
        """Rename a repository."""
        with self.lock:
            repository = self.repositories.pop(old)
            repository.move(new, self.folder / "models" / new)
            self.repositories[new] = repository

    def may_see(self, user: str | None, repository: Repository) -> bool:
        """Whether `user` may know that the repository is there."""
        return not repository.private or user == repository.owner

    def may_read(self, user: str | None, repository: Repository) -> bool:
        """Whether `user` may read its files."""
        return not repository.gated or (user is not None and user in {repository.owner, *repository.granted})

    def may_write(self, user: str, owner: str) -> bool:
        """Whether `user` may write under the name `owner`."""
        return user == owner

    def store_large(self, repository: Repository, content: bytes) -> Pointer:
        """Store a large file of a repository, through Xet where that is on."""
        if self.xet is not None:
            return self.xet.store(content)
        return repository.large.write([content])

    def read(self, repository: Repository, file: File) -> bytes:
        """The content of a file."""
        if file.pointer is None:
            return repository.content(file)
        return self.large_path(repository, file.pointer.digest).read_bytes()

    def large_path(self, repository: Repository, digest: str) -> Path:
        """Where the bytes of a large file lie; out of Xet they are written out first."""
        if self.xet is not None and repository.large.size(digest) is None:
            repository.large.write(self.xet.pieces(digest), digest)
        return repository.large.path(digest)

    def signature(self, name: str, digest: str) -> str:
        """What a URL of a large file carries instead of a token."""
        return hmac.new(self._secret, f"{name}:{digest}".encode(), hashlib.sha256).hexdigest()[:32]

    def close(self) -> None:
        """Close the repositories."""
        for repository in self.repositories.values():
            repository.close()
