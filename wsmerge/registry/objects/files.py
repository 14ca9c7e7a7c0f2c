"""The files of a version in an object store, read by range; nothing is copied to a disk."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from wsmerge.errors import StoreError
from wsmerge.registry.objects.interface import ObjectAbsentError, Objects
from wsmerge.registry.objects.layout import StoredVersion

__all__ = ["ObjectFiles"]

_LOST: Final = "the version is damaged: remove it, and publish it again from its source under the next one"


class ObjectFile:
    """One file of a version; a `RangeFile`."""

    def __init__(self, objects: Objects, blob: str, size: int, label: str) -> None:
        self.label = label
        self.size = size
        self._objects = objects
        self.blob = blob

    def read_into(self, start: int, out: memoryview) -> None:
        """Fill `out` with the bytes from byte `start` on.

        Raises:
            StoreError: the store cannot be reached, the blob is gone, or ends before `out` is full.
        """
        try:
            self._objects.read_into(self.blob, start, out)
        except ObjectAbsentError as error:
            raise StoreError(f"its bytes are gone: {error.where}", where=self.label, hint=_LOST) from error

    def close(self) -> None:
        """Nothing is held open."""


class ObjectFiles:
    """The files of one version; an `ArtifactFiles`."""

    folder: Path | None = None

    def __init__(self, objects: Objects, stored: StoredVersion, label: str) -> None:
        self.label = label
        self._objects = objects
        self._stored = stored

    def names(self) -> frozenset[str]:
        """All files of the version."""
        return frozenset(self._stored.files)

    def open(self, name: str) -> ObjectFile:
        """File `name`, to be read by range.

        Raises:
            StoreError: the version has no such file.
        """
        file = self._stored.files.get(name)
        if file is None:
            raise StoreError(f"has no file {name}", where=self.label)
        return ObjectFile(self._objects, file.blob, file.size, f"{self.label}/{name}")
