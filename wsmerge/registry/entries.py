"""What a registry tells about its versions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wsmerge.errors import StoreError, WsmergeError
from wsmerge.registry.manifest import Manifest
from wsmerge.registry.versions import Version

__all__ = ["Broken", "Entry", "Survey", "error_lines"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One version in a registry.

    Attributes:
        name: under which it is stored: the manifest's, or `owner/name` of what was pulled.
        place: where its files lie, as messages name it: a path or an address.
        folder: its artifact folder, read-only; None where the files lie on no disk of this machine.
        aliases: that point to it, `latest` among them where it is the one that the bare name means.
    """

    name: str
    version: Version
    place: str
    folder: Path | None
    manifest: Manifest
    version_digest: str
    content_digest: str
    aliases: tuple[str, ...]

    @property
    def label(self) -> str:
        """`name@version`, a reference that always means this version."""
        return f"{self.name}@{self.version}"

    @property
    def path(self) -> Path:
        """The artifact folder.

        Raises:
            StoreError: the files lie on no disk of this machine.
        """
        if self.folder is None:
            raise StoreError("lies on no disk of this machine", where=self.place, hint=f"open it: {self.label}")
        return self.folder


@dataclass(frozen=True, slots=True)
class Broken:
    """A version, or the whole of a name, that cannot be read.

    Attributes:
        label: `name@version`, or the name where its log is damaged.
        error: why.
    """

    label: str
    error: WsmergeError

    def __str__(self) -> str:
        command = f"wsmerge verify {self.label}" if "@" in self.label else self.error.hint or "wsmerge verify"
        return f"{self.label} cannot be read: {'; '.join(error_lines(self.error))}; next: {command}"


@dataclass(frozen=True, slots=True)
class Survey:
    """What can be read of a registry, and what cannot."""

    entries: tuple[Entry, ...]
    broken: tuple[Broken, ...]


def error_lines(error: WsmergeError) -> tuple[str, ...]:
    """What went wrong, a line a problem and without the next step, to stand in another message."""
    head = f"{error.where}: {error.message}" if error.where else error.message
    return tuple(f"{head}: {detail}" for detail in error.details) or (head,)
