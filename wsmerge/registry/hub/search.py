"""Finding directions on the Hub: models with the tags `wsmerge` and `direction`, by what their cards say.

The Hub's list gives card and tags of many models at once; the versions of those that match are one request each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, get_args

from wsmerge.core.hub.connection import Hub, status_of, telling
from wsmerge.core.interrupts import Interrupts
from wsmerge.errors import HubError, UsageError
from wsmerge.registry.hub.naming import read_refs
from wsmerge.registry.records import Kind
from wsmerge.registry.search import Wanted

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

__all__ = ["FOUND_AT_MOST", "Found", "search_hub"]

FOUND_AT_MOST: Final = 50
"""Repositories that a search gives, unless it is said otherwise."""

_TAGS: Final = ("wsmerge", "direction")
_KINDS: Final[tuple[str, ...]] = get_args(Kind)
_BASE: Final = "base_model:"
_DATASET: Final = "dataset:"
_THREADS: Final = 4
_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Found:
    """A repository on the Hub that holds a direction.

    Attributes:
        behaviour: the direction's own name.
        versions: that have a tag, lowest first.
        downloads: of the last 30 days, as the Hub counts them.
    """

    repo: str
    behaviour: str
    description: str
    kind: str
    base: str
    versions: tuple[str, ...]
    datasets: tuple[str, ...]
    private: bool
    downloads: int


def search_hub(hub: Hub, wanted: Wanted, *, limit: int = FOUND_AT_MOST) -> tuple[Found, ...]:
    """Directions on the Hub that match `wanted`, at most `limit`, in the Hub's order.

    Args:
        hub: the connection.
        wanted: what they have to have. Their poles are not on their cards, and so not looked at.
        limit: how many at most.

    Raises:
        HubError: the Hub is not reached, or not to be asked.
        UsageError: there is no such kind, or `limit` is not positive.
    """
    wanted.check()
    if limit < 1:
        raise UsageError(f"a limit of {limit} finds nothing", hint="give one of 1 or more")
    hub.refuse_offline("search", hint="unset it; the local store is searched all the same")
    _look_for(hub)
    matching: list[Found] = []
    for tags in _filters(wanted):
        with telling("search"):
            listed = hub.api.list_models(filter=[*_TAGS, *tags], full=True, cardData=True)
            matching = list(islice((found for found in map(_found, listed) if _matches(found, wanted)), limit))
        if matching:
            break
    with Interrupts() as interrupts, ThreadPoolExecutor(_THREADS) as threads:
        complete = tuple(threads.map(lambda found: _with_versions(hub, found), matching))
    interrupts.check()
    return complete


def _look_for(hub: Hub) -> None:
    """Ask the Hub for one line, once: the client's own list waits most of a minute where there is no network."""
    from huggingface_hub import get_session  # noqa: PLC0415 - what is local needs no Hub client

    with telling("search"):
        get_session().get(f"{hub.endpoint}/api/models", params={"limit": 1}, timeout=_TIMEOUT_S)


def _filters(wanted: Wanted) -> Iterator[Sequence[str]]:
    """Tags that the Hub itself picks out. What may be the whole name of a base is first taken for one."""
    kind = [wanted.kind.casefold()] if wanted.kind else []
    if wanted.base and "/" in wanted.base:
        yield [f"{_BASE}{wanted.base}", *kind]
    yield kind


def _found(model: ModelInfo) -> Found:
    tags = model.tags or []
    told = model.card_data.get("direction") if model.card_data else None
    direction: Mapping[str, Any] = told if isinstance(told, dict) else {}
    # `base_model:adapter:NAME` says the relation; the plain one the name.
    bases = [tag.removeprefix(_BASE) for tag in tags if tag.startswith(_BASE) and tag.count(":") == 1]
    return Found(
        repo=model.id,
        behaviour=str(direction.get("name") or model.id.partition("/")[2]),
        description=str(direction.get("about") or ""),
        kind=next((tag for tag in tags if tag in _KINDS), ""),
        base=next(iter(bases), ""),
        versions=(),
        datasets=tuple(tag.removeprefix(_DATASET) for tag in tags if tag.startswith(_DATASET)),
        private=bool(model.private),
        downloads=model.downloads or 0,
    )


def _matches(found: Found, wanted: Wanted) -> bool:
    return wanted.matches(
        words=(found.repo, found.behaviour, found.description, found.kind, found.base, *found.datasets),
        base=found.base,
        kind=found.kind,
        name=(found.repo,),
        behaviour=(found.behaviour, found.description),
        datasets=found.datasets,
    )


def _with_versions(hub: Hub, found: Found) -> Found:
    """`found` with its versions; without, where it is gated or went meanwhile."""
    try:
        versions: Iterable[Any] = read_refs(hub, found.repo).versions
    except HubError as error:
        if status_of(error) not in (401, 403, 404):
            raise
        versions = ()
    return replace(found, versions=tuple(map(str, versions)))
