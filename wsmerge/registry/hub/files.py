"""The files of an artifact that is a commit on the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wsmerge.core.hub.commit import RepoCommit
from wsmerge.core.ranges import RangeFile

__all__ = ["CommitFiles"]


@dataclass(frozen=True, slots=True)
class CommitFiles:
    """Files of a commit as `ArtifactFiles`: each is read by range over HTTP.

    Attributes:
        commit: the repository at one commit.
        ahead: whether reading in order fetches what follows too, so that it takes few requests; else each read is one
            request for exactly its bytes.
    """

    commit: RepoCommit
    ahead: bool = True

    @property
    def label(self) -> str:
        """The repository and commit."""
        return self.commit.label

    @property
    def folder(self) -> Path | None:
        """None: they lie on no disk of this machine."""
        return None

    def names(self) -> frozenset[str]:
        """All files that there are."""
        return frozenset(self.commit.files)

    def open(self, name: str) -> RangeFile:
        """File `name`, to be read by range; close it after use.

        Raises:
            HubError: the commit has no such file.
        """
        return self.commit.open(name, ahead=self.ahead)
