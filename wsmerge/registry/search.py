"""Finding versions by their metadata."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, get_args

from wsmerge.errors import UsageError
from wsmerge.registry.entries import Entry
from wsmerge.registry.records import Kind

__all__ = ["Wanted", "search_entries"]

_KINDS: Final[tuple[str, ...]] = get_args(Kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a direction has to have to be found; upper and lower case are one, and None wants nothing.

    Attributes:
        query: words, each of which occurs in the metadata.
        base: part of the base's name.
        kind: the kind, whole.
        name: part of the name that it is stored under, or of its repository.
        behaviour: part of the direction's own name or of its description.
        dataset: part of the id or path of a dataset.
    """

    query: str = ""
    base: str | None = None
    kind: str | None = None
    name: str | None = None
    behaviour: str | None = None
    dataset: str | None = None

    def check(self) -> None:
        """Refuse what nothing could match.

        Raises:
            UsageError: there is no such kind.
        """
        if self.kind is not None and self.kind.casefold() not in _KINDS:
            raise UsageError(f"there is no kind {self.kind!r}", hint=f"the kinds are {', '.join(_KINDS)}")

    def matches(
        self,
        *,
        words: Iterable[str],
        base: str,
        kind: str,
        name: Iterable[str],
        behaviour: Iterable[str],
        datasets: Iterable[str],
    ) -> bool:
        """Whether a direction with this metadata is wanted; `words` is all text that `query` looks at."""
        text = "\n".join(words).casefold()
        return (
            all(word in text for word in self.query.casefold().split())
            and _has(self.base, (base,))
            and (self.kind is None or self.kind.casefold() == kind)
            and _has(self.name, name)
            and _has(self.behaviour, behaviour)
            and _has(self.dataset, datasets)
        )


def search_entries(entries: Iterable[Entry], wanted: Wanted) -> tuple[Entry, ...]:
    """Those of `entries` that are `wanted`.

    Words are looked for in name, description, kind, base, aliases, poles and datasets.

    Raises:
        UsageError: there is no such kind.
    """
    wanted.check()
    return tuple(entry for entry in entries if _matches(entry, wanted))


def _matches(entry: Entry, wanted: Wanted) -> bool:
    manifest = entry.manifest
    datasets = [data.source for data in manifest.datasets]
    poles = [pole.source for pole in manifest.poles]
    words = [entry.name, manifest.name, manifest.description, manifest.kind, manifest.base.model, *entry.aliases]
    return wanted.matches(
        words=[*words, *poles, *datasets],
        base=manifest.base.model,
        kind=manifest.kind,
        name=(entry.name,),
        behaviour=(manifest.name, manifest.description),
        datasets=datasets,
    )


def _has(part: str | None, texts: Iterable[str]) -> bool:
    return part is None or any(part.casefold() in text.casefold() for text in texts)
