"""Finding versions by their metadata."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, get_args

from wsmerge.errors import UsageError
from wsmerge.registry.catalogue import Entry
from wsmerge.registry.records import Kind

__all__ = ["search_entries"]

_KINDS: Final[tuple[str, ...]] = get_args(Kind)


def search_entries(
    entries: Iterable[Entry],
    query: str = "",
    *,
    base: str | None = None,
    kind: str | None = None,
    name: str | None = None,
    dataset: str | None = None,
) -> tuple[Entry, ...]:
    """Those of `entries` that match everything given; upper and lower case are one.

    Args:
        entries: where to look.
        query: words, each of which occurs in name, description, kind, base, aliases, poles or datasets.
        base: part of the base's name.
        kind: the kind, whole.
        name: part of the name.
        dataset: part of the id or path of a dataset.

    Raises:
        UsageError: there is no such kind.
    """
    if kind is not None and kind.casefold() not in _KINDS:
        raise UsageError(f"there is no kind {kind!r}", hint=f"the kinds are {', '.join(_KINDS)}")
    words = query.casefold().split()
    return tuple(
        entry
        for entry in entries
        if all(word in _text(entry) for word in words)
        and _has(base, entry.manifest.base.model)
        and (kind is None or kind.casefold() == entry.manifest.kind)
        and _has(name, entry.name)
        and (dataset is None or any(_has(dataset, data.source) for data in entry.manifest.datasets))
    )


def _has(part: str | None, text: str) -> bool:
    return part is None or part.casefold() in text.casefold()


def _text(entry: Entry) -> str:
    manifest = entry.manifest
    parts = [entry.name, manifest.name, manifest.description, manifest.kind, manifest.base.model, *entry.aliases]
    parts += [pole.source for pole in manifest.poles]
    parts += [data.source for data in manifest.datasets]
    return "\n".join(parts).casefold()
