"""What the checks of a registry stand on: how it is made, and what it can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from wsmerge.core.ranges import read_range
from wsmerge.registry.catalogue import Entry
from wsmerge.registry.files import ArtifactFiles
from wsmerge.registry.registry import Registry
from wsmerge.registry.testing.samples import sample_artifact

__all__ = ["Harness", "contents"]


class Harness(ABC):
    """A registry under test.

    Attributes:
        name: under which the checks publish. The manifests say `formal`; a registry whose names have an owner takes
            `owner/formal`.
        supports_aliases: whether aliases move, and are dropped.
        supports_remove: whether a version can be removed.
        supports_gc: whether it collects its own garbage.
        supports_renaming: whether a direction can be published under another name and version than its manifest's.
        supports_log: whether it keeps a log of what happened to a name.
    """

    name: ClassVar[str] = "formal"
    supports_aliases: ClassVar[bool] = True
    supports_remove: ClassVar[bool] = True
    supports_gc: ClassVar[bool] = True
    supports_renaming: ClassVar[bool] = True
    supports_log: ClassVar[bool] = True

    @abstractmethod
    def make(self, folder: Path) -> Registry:
        """A new and empty registry; `folder` does not exist, and is for its use."""

    @abstractmethod
    def again(self, registry: Registry) -> Registry:
        """Another opening of the same registry, as another process makes it."""

    def damage(self, registry: Registry, entry: Entry, file: str) -> None:
        """Change the last byte of one file of a version, behind the registry's back."""
        pytest.skip(f"{type(registry).__name__}: no way to damage {file} of {entry.label}")

    @pytest.fixture
    def registry(self, tmp_path: Path) -> Registry:
        """The registry of one check."""
        return self.make(tmp_path / "registry")

    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        """An artifact: version 1.0.0 of `formal`."""
        return sample_artifact(tmp_path / "source")

    def publish(self, registry: Registry, source: Path, aliases: Sequence[str] = ()) -> Entry:
        """Publish `source` as the version that its manifest says."""
        return registry.publish(source, name=self.name, aliases=aliases)

    def publish_all(self, registry: Registry, folder: Path, versions: Sequence[str]) -> list[Entry]:
        """Publish a direction of its own under each of `versions`."""
        return [
            self.publish(registry, sample_artifact(folder / version, version, seed=number))
            for number, version in enumerate(versions, 1)
        ]

    def need(self, *, of: bool, what: str) -> None:
        """Skip the check where the registry does not do `what`."""
        if not of:
            pytest.skip(f"this registry does not support {what}")


def contents(files: ArtifactFiles) -> dict[str, bytes]:
    """The bytes of every file."""
    held = {}
    for name in sorted(files.names()):
        file = files.open(name)
        try:
            held[name] = read_range(file, 0, file.size)
        finally:
            file.close()
    return held
