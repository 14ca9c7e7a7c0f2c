"""Directions on the Hugging Face Hub: pushed, pulled and found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from wsmerge.core.hub.connection import Hub
from wsmerge.registry import Direction, Registry, open_reference, open_registry
from wsmerge.registry.hub import partial
from wsmerge.registry.hub.collecting import collect as into_collection
from wsmerge.registry.hub.naming import parse_hub_reference
from wsmerge.registry.hub.pull import Pulled, pinned_reference
from wsmerge.registry.hub.pull import pull as pull_direction
from wsmerge.registry.hub.push import Pushed, PushOptions
from wsmerge.registry.hub.push import push as push_direction
from wsmerge.registry.hub.search import FOUND_AT_MOST, Found
from wsmerge.registry.hub.search import search_hub as search
from wsmerge.registry.resolve import reference_text
from wsmerge.registry.search import Wanted

__all__ = ["PushOptions", "pull", "pull_part", "push", "search_hub"]


def push(
    direction: Direction | Path | str,
    repo: str,
    *,
    options: PushOptions | None = None,
    collect: bool = False,
    store: Registry | None = None,
    hub: Hub | None = None,
) -> Pushed:
    """Push a version to a repository on the Hub: one commit, and the tag that makes it a version (`v1.2.0`).

    Pushing it again changes nothing, and goes on where a push was cut.

    Args:
        direction: an opened direction, a reference to one, or the folder of one.
        repo: `owner/name`; made where it is missing.
        options: whether it is private, aliases, message, evaluations.
        collect: put the repository into your collection for its base, which is made where it is missing.
        store: where a reference is looked up.
        hub: the connection; `HF_ENDPOINT` and `HF_TOKEN` (or the stored login) if None.

    Raises:
        ConflictError: the version is there with another digest, or another writer was first.
        VerificationError: tensors that are not what the manifest says.
        HubError: the Hub is not reached, or refuses.
        UsageError: evaluations of another version.
    """
    connection, options = hub or Hub(), options or PushOptions()
    with ExitStack() as stack:
        if not isinstance(direction, Direction):
            direction = stack.enter_context(open_reference(reference_text(direction), store or open_registry()))
        pushed = push_direction(connection, direction, repo, options)
        base = direction.manifest.base.model
    if not collect:
        return pushed
    slug = into_collection(connection, repo, base, private=options.private)
    return replace(pushed, collection=f"{connection.endpoint}/collections/{slug}")


def pull(
    reference: str,
    *,
    name: str | None = None,
    store: Registry | None = None,
    hub: Hub | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Pulled:
    """Bring a direction from the Hub into the store, as `owner/repo@VERSION`, whole or not at all.

    What is in the store already is not fetched again, and a version whose tag was moved on the Hub is refused.

    Args:
        reference: `owner/repo`, or with `@` and a version, another tag, a branch or a commit. Alone: the highest release.
        name: in the store, instead of `owner/repo`.
        store: where it goes.
        hub: the connection; `HF_ENDPOINT` and `HF_TOKEN` (or the stored login) if None.
        progress: called with bytes done and bytes in all.

    Raises:
        ConflictError: the store has this version with another digest.
        VerificationError: bytes that are not what they should be.
        HubError: it is not there, or the Hub is not reached.
    """
    return pull_direction(hub or Hub(), reference, store or open_registry(), name=name, progress=progress)


def pull_part(
    reference: str,
    *,
    layers: str | None = None,
    modules: Sequence[str] = (),
    name: str | None = None,
    store: Registry | None = None,
    hub: Hub | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> partial.PulledPart:
    """Bring some layers or modules of a direction on the Hub into the store, as a direction of their own.

    Only their bytes are read.

    Args:
        reference: as of `pull`.
        layers: `8-15`, or `0,3,8-15`; all if None.
        modules: parts of tensor names, such as `mlp`; all if there are none.
        name: in the store; made of the repository, the layers and the modules if None.
        store: where it goes.
        hub: as of `pull`.
        progress: called with bytes done and bytes in all.

    Raises:
        UsageError: no tensor is in these layers and modules.
        VerificationError: bytes that are not what the manifest says.
        HubError: it is not there, or the Hub is not reached.
    """
    connection = hub or Hub()
    return partial.pull_part(
        connection,
        pinned_reference(connection, parse_hub_reference(reference)),
        store or open_registry(),
        layers=layers,
        modules=modules,
        name=name,
        progress=progress,
    )


def search_hub(
    query: str = "",
    *,
    base: str | None = None,
    behaviour: str | None = None,
    kind: str | None = None,
    dataset: str | None = None,
    limit: int = FOUND_AT_MOST,
    hub: Hub | None = None,
) -> tuple[Found, ...]:
    """Repositories on the Hub that hold a direction, by what their cards say. `Registry.search` does the same for the store.

    Args:
        query: words that all occur on the card.
        base: part of the base's name; the whole one is looked up by the Hub itself.
        behaviour: part of the direction's name or description.
        kind: contrastive, task_vector, composed or bias_only.
        dataset: part of a dataset's id.
        limit: how many at most, in the Hub's order.
        hub: the connection; `HF_ENDPOINT` and `HF_TOKEN` (or the stored login) if None.

    Raises:
        UsageError: there is no such kind, or `limit` is not positive.
        HubError: the Hub is not reached, or not to be asked.
    """
    wanted = Wanted(query=query, base=base, behaviour=behaviour, kind=kind, dataset=dataset)
    return search(hub or Hub(), wanted, limit=limit)
