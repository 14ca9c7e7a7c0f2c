"""The files of an artifact, wherever they lie: a folder, a commit on the Hub, a prefix of an object store.

Names are relative, with `/` between folders.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from wsmerge.core.ranges import LocalFile, RangeFile

__all__ = ["ArtifactFiles", "FolderFiles"]


class ArtifactFiles(Protocol):
    """Names and contents of files that do not change while they are read. Threads may share it."""

    @property
    def label(self) -> str:
        """How messages name the place: a path or an address."""

    @property
    def folder(self) -> Path | None:
        """The folder on this machine's disks that holds the files; None where they lie elsewhere."""

    def names(self) -> frozenset[str]:
        """All files that there are."""

    def open(self, name: str) -> RangeFile:
        """File `name`, to be read by range; close it after use.

        Raises:
            WsmergeError: it is not there, or cannot be opened.
        """


class FolderFiles:
    """The files of a folder on this machine's disks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def label(self) -> str:
        """The folder's path."""
        return str(self.folder)

    def names(self) -> frozenset[str]:
        """All files in the folder and below it."""
        return frozenset(
            path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if not path.is_dir()
        )

    def open(self, name: str) -> RangeFile:
        """File `name`, to be read by range; close it after use.

        Raises:
            TensorFileError: it cannot be opened, or is a link out of the folder.
        """
        return LocalFile(self.folder / name, within=self.folder)
