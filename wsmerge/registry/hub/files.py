"""The files of an artifact that is a commit on the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wsmerge.core.hub.commit import RepoCommit
from wsmerge.core.ranges import MemoryFile, RangeFile
from wsmerge.errors import HubError
from wsmerge.registry.payloads.zarr_layout import METADATA_FILE, ZARR_FOLDER

__all__ = ["CommitFiles"]

_MOST_WHOLE_BYTES: Final = 200_000_000


@dataclass(frozen=True, slots=True)
class CommitFiles:
    """Files of a commit as `ArtifactFiles`.

    Files of tensors are read by range over HTTP, and their arrays are compared with the manifest as they come. All others,
    the manifest among them, are fetched whole and compared with the object id that the commit has for them.

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
            HubError: the commit has no such file, or one that is too large for what it should be.
        """
        entry = self.commit.files.get(name)
        if entry is None or _holds_tensors(name):
            return self.commit.open(name, ahead=self.ahead)
        label = f"{self.label}/{name}"
        if entry.size > _MOST_WHOLE_BYTES:
            raise HubError(
                f"has {entry.size} bytes, and a file beside the tensors has at most {_MOST_WHOLE_BYTES}",
                where=label,
                hint="tell the owner of the repository",
            )
        return MemoryFile(label, entry.size, lambda: self.commit.read(name))


def _holds_tensors(name: str) -> bool:
    return name.endswith(".safetensors") or (
        name.startswith(f"{ZARR_FOLDER}/") and not name.endswith(f"/{METADATA_FILE}")
    )
