"""Where a new direction goes: a folder or a store, and under which version."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from wsmerge.core.tensors import DeltaSource
from wsmerge.errors import ConflictError, OutputError
from wsmerge.registry import About, Direction, Entry, Registry, Version, open_registry, write_direction
from wsmerge.registry.references import check_name

__all__ = ["checked_version", "place", "target_of"]

_STAMPS: Final = ("version", "created", "tool")


def target_of(to: Path | str | Registry | None, default: Registry | None) -> tuple[Path | None, Registry | None]:
    """Where a new direction goes: a folder, or a store."""
    return (Path(to), None) if isinstance(to, Path | str) else (None, to or default or open_registry())


def checked_version(name: str, wanted: str | None, folder: Path | None, store: Registry | None) -> str:
    """The version to write, once name, version and place are known to be free: before any work is done."""
    check_name(name)
    version = str(Version.parse(wanted)) if wanted is not None else None
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError("exists already, and is no empty folder", where=str(folder), hint="choose another folder")
    if store is None:
        return version or "1.0.0"
    free = store.next_version(name)
    if version is not None and (
        version in store.history(name).removed or Version.parse(version) in store.version_numbers(name)
    ):
        raise ConflictError(
            f"{name}@{version} is taken: versions never change, and their names are never used again",
            hint=f"leave --version out, or give {free}",
        )
    return version or str(free)


def place(source: DeltaSource, about: About, folder: Path | None, store: Registry | None, *, chosen: bool) -> Direction:
    """Write `source` into `folder`, or publish it to `store`.

    Where nobody chose the version (`chosen` is false), what the store has already is not published again.
    """
    if folder is not None:
        return write_direction(folder, source, about)
    if store is None:
        raise ValueError("neither a folder nor a store")
    with store.scratch() as scratch:
        with write_direction(scratch / "direction", source, about) as written:
            known = None if chosen else _same_direction(store, written)
            entry = known or _publish_next(store, written, chosen=chosen)
        return store.open(entry.label)


def _publish_next(store: Registry, written: Direction, *, chosen: bool) -> Entry:
    """Publish under the manifest's version; where nobody chose it and another process was first, under the next one."""
    version = written.manifest.version
    while True:
        try:
            return store.publish(written, version=version)
        except ConflictError:
            if chosen:
                raise
            version = str(store.next_version(written.manifest.name))


def _same_direction(store: Registry, written: Direction) -> Entry | None:
    """The newest version that says all that `written` does, but for version and time."""
    name = written.manifest.name
    entries = store.versions(name) if name in store.names() else ()
    return next((entry for entry in reversed(entries) if entry.manifest.says_same(written.manifest, but=_STAMPS)), None)
