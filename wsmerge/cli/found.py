"""What `wsmerge search` finds in the local store and on the Hub, as one table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from wsmerge.cli.output import Output
from wsmerge.cli.registry_views import entry_json
from wsmerge.errors import HubError
from wsmerge.registry.catalogue import Entry, Survey
from wsmerge.registry.search import Wanted, search_entries

if TYPE_CHECKING:
    from wsmerge.registry.hub.search import Found
    from wsmerge.registry.registry import Registry

__all__ = ["FoundBoth", "print_found", "search_both"]


@dataclass(frozen=True, slots=True)
class FoundBoth:
    """What was found, and what was looked at.

    Attributes:
        survey: of the local store; empty where it was not searched.
        unasked: why the Hub was not searched; None where it was, or was not to be.
        local: whether the local store was searched.
    """

    survey: Survey
    entries: tuple[Entry, ...]
    repos: tuple[Found, ...]
    unasked: HubError | None
    local: bool


def search_both(store: Registry, wanted: Wanted, *, local: bool, hub: bool, hub_needed: bool) -> FoundBoth:
    """Search the local store, the Hub, or both.

    Args:
        store: the local store.
        wanted: what a direction has to have.
        local: whether the store is searched.
        hub: whether the Hub is.
        hub_needed: whether it is an error if the Hub cannot be asked.

    Raises:
        UsageError: there is no such kind.
        HubError: the Hub was needed and cannot be asked.
    """
    wanted.check()
    survey = store.survey() if local else Survey((), ())
    repos: tuple[Found, ...] = ()
    unasked = None
    if hub:
        from wsmerge.core.hub.connection import Hub
        from wsmerge.registry.hub.search import search_hub

        try:
            repos = search_hub(Hub(), wanted)
        except HubError as error:
            if hub_needed:
                raise
            unasked = error
    return FoundBoth(survey, search_entries(survey.entries, wanted), repos, unasked, local)


def print_found(output: Output, found: FoundBoth, *, empty: str) -> None:
    """The table, or a JSON list whose rows say `where` they are; what was not searched is said beside."""
    local = [{"where": "local"} | entry_json(entry) for entry in found.entries]
    output.data([*local, *({"where": "hub"} | asdict(repo) for repo in found.repos)])
    rows = [*_local_rows(found.entries), *map(_hub_row, found.repos)]
    if rows:
        output.table(("where", "direction", "versions", "behaviour", "kind", "base"), rows)
    elif found.local and not (found.survey.entries or found.survey.broken):
        output.note(empty)
    else:
        count = len(found.survey.entries)
        output.note(f"no match among {count} version{'' if count == 1 else 's'}: wsmerge list shows them")
    if found.unasked is not None:
        output.note(f"the Hub was not searched: {found.unasked.message}")
    elif found.repos:
        from wsmerge.registry.hub.search import FOUND_AT_MOST

        if len(found.repos) >= FOUND_AT_MOST:
            output.note(f"of the Hub the first {len(found.repos)} are shown; more words find fewer")
        output.note("next: wsmerge pull OWNER/REPO")


def _local_rows(entries: tuple[Entry, ...]) -> list[tuple[Any, ...]]:
    """A row a name, since its versions share most of what a row says; the highest version speaks."""
    by_name: dict[str, list[Entry]] = {}
    for entry in entries:
        by_name.setdefault(entry.name, []).append(entry)
    return [
        (
            "local",
            name,
            ", ".join(str(entry.version) for entry in versions),
            versions[-1].manifest.name,
            versions[-1].manifest.kind,
            versions[-1].manifest.base.model,
        )
        for name, versions in by_name.items()
    ]


def _hub_row(found: Found) -> tuple[Any, ...]:
    return "hub", found.repo, ", ".join(found.versions), found.behaviour, found.kind, found.base
