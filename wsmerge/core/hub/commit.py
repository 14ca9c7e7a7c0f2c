"""A repository on the Hub, pinned to one commit: its files, read whole or by range."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wsmerge.core.hub.connection import Hub, telling
from wsmerge.core.hub.remote_file import RemoteFile, Target, Traffic
from wsmerge.core.hub.windows import Windows
from wsmerge.core.ranges import read_range
from wsmerge.errors import HubError, VerificationError

__all__ = ["RemoteEntry", "RepoCommit", "is_commit"]

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_HASH_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class RemoteEntry:
    """One file of a commit.

    Attributes:
        size: its length in bytes.
        sha256: of its bytes, for a large file (LFS or Xet); None for one that git holds itself.
        blob_id: git's identifier: of its bytes, or for a large file of the pointer to them.
    """

    size: int
    sha256: str | None
    blob_id: str

    def is_content_of(self, path: Path) -> bool:
        """Whether `path` holds what the commit names: by SHA-256 where it is large, else by git's blob id."""
        digest = hashlib.sha256() if self.sha256 else hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
        with path.open("rb") as file:
            while chunk := file.read(_HASH_BYTES):
                digest.update(chunk)
        return digest.hexdigest() == (self.sha256 or self.blob_id)


class RepoCommit:
    """A repository at one commit; resolved once, so that a moved branch or tag changes nothing. Threads may share it.

    Attributes:
        hub: the connection.
        repo: `owner/name`.
        commit: 40 hexadecimal digits.
        revision: what was asked for: a branch, tag or commit; None for the default branch.
        files: every file of the commit.
        traffic: bytes and requests so far.
    """

    def __init__(
        self, hub: Hub, repo: str, commit: str, *, revision: str | None, files: Mapping[str, RemoteEntry]
    ) -> None:
        self.hub = hub
        self.repo = repo
        self.commit = commit
        self.revision = revision
        self.files = files
        self.traffic = Traffic()
        self._windows = Windows(hub.kept_bytes)

    @classmethod
    def resolve(cls, hub: Hub, repo: str, revision: str | None = None) -> RepoCommit:
        """The commit that `revision` (the default branch if None) is now, with its list of files.

        Raises:
            HubError: no such repository or revision, no permission, or the Hub is not reached.
        """
        hub.refuse_offline(f"{repo}@{revision}" if revision else repo, hint="unset it, or use what was pulled already")
        with telling(repo, revision):
            commit = revision if revision and is_commit(revision) else hub.api.model_info(repo, revision=revision).sha
            if commit is None or not is_commit(commit):
                raise HubError(f"the Hub names {commit!r} as its commit", where=repo, hint="check HF_ENDPOINT")
            files = _entries(hub, repo, commit)
        return cls(hub, repo, commit, revision=revision, files=files)

    @property
    def label(self) -> str:
        """`hub:owner/repo@` and the first 12 digits of the commit."""
        return f"hub:{self.repo}@{self.commit[:12]}"

    @property
    def bytes_read(self) -> int:
        """Bytes of all bodies so far."""
        return self.traffic.bytes_read

    @property
    def most_kept_bytes(self) -> int:
        """Bytes of its files that are kept in memory at most, whatever is read."""
        return min(self._windows.kept_bytes, sum(entry.size for entry in self.files.values()))

    def open(self, name: str, *, ahead: bool = True) -> RemoteFile:
        """File `name`, to be read by range; asks nothing yet.

        Args:
            name: the file.
            ahead: whether what follows is fetched and kept too where reading goes on in order; else each read is one
                request for exactly its bytes.

        Raises:
            HubError: the commit has no such file.
        """
        entry = self.files.get(name)
        if entry is None:
            raise HubError(f"the commit has no {name}", where=self.label, hint="name a revision that has it")
        target = Target(self.address(name), f"{self.label}/{name}", entry.size, entry.sha256 or entry.blob_id)
        return RemoteFile(self.hub, target, self.traffic, self._windows, ahead=ahead)

    def read(self, name: str) -> bytes:
        """All bytes of file `name`, checked against what the commit says they are.

        Raises:
            HubError: the commit has no such file, or it cannot be read.
            VerificationError: other bytes than the commit names.
        """
        file = self.open(name, ahead=False)
        try:
            data = read_range(file, 0, file.size)
        finally:
            file.close()
        entry = self.files[name]
        if (entry.sha256 or entry.blob_id) != (sha256_of(data) if entry.sha256 else git_blob_id(data)):
            raise VerificationError(
                "the bytes that came are not those that the commit names",
                where=file.label,
                hint="try again; if it stays, the Hub's copy is damaged",
            )
        return data

    def address(self, name: str) -> str:
        """Where the Hub gives file `name` of this commit."""
        from huggingface_hub import hf_hub_url  # noqa: PLC0415 - what is local needs no Hub client

        return hf_hub_url(self.repo, name, revision=self.commit, endpoint=self.hub.endpoint)

    def __repr__(self) -> str:
        return f"<RepoCommit {self.label} of {len(self.files)} files>"


def is_commit(revision: str) -> bool:
    """Whether `revision` is a commit, rather than a branch or a tag."""
    return _COMMIT.fullmatch(revision) is not None


def sha256_of(data: bytes) -> str:
    """SHA-256 of `data`, as LFS names large files."""
    return hashlib.sha256(data).hexdigest()


def git_blob_id(data: bytes) -> str:
    """What git calls a file of `data`: the SHA-1 of its length and bytes."""
    digest = hashlib.sha1(b"blob %d\0" % len(data), usedforsecurity=False)
    digest.update(data)
    return digest.hexdigest()


def _entries(hub: Hub, repo: str, commit: str) -> dict[str, RemoteEntry]:
    from huggingface_hub.hf_api import RepoFile  # noqa: PLC0415 - what is local needs no Hub client

    tree = hub.api.list_repo_tree(repo, recursive=True, revision=commit)
    return {
        item.path: RemoteEntry(
            item.lfs.size if item.lfs else item.size,
            item.lfs.sha256 if item.lfs else None,
            item.blob_id,
        )
        for item in tree
        if isinstance(item, RepoFile)
    }
