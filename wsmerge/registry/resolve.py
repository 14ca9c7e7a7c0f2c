"""From the text of a reference to the direction it means, opened or verified."""

from __future__ import annotations

from wsmerge.registry.catalogue import Catalogue, no_hub, store_reference
from wsmerge.registry.direction import Direction, open_direction_folder
from wsmerge.registry.references import HubReference, PathReference, parse_reference
from wsmerge.registry.verification import VerificationReport, verify_folder, verify_version

__all__ = ["open_reference", "verify_reference"]


def open_reference(text: str, store: Catalogue) -> Direction:
    """Open the direction that `text` means: a folder, or a version of `store`. Close it after use.

    Raises:
        BadReferenceError: `text` does not parse.
        NotFoundError: the store does not have it.
        DirectionError: it cannot be opened.
        StoreError: it is on the Hub, which this version does not reach.
    """
    reference = parse_reference(text)
    if isinstance(reference, PathReference):
        return open_direction_folder(reference.path)
    if isinstance(reference, HubReference):
        raise no_hub(reference)
    return store.open(reference)


def verify_reference(text: str, store: Catalogue) -> VerificationReport:
    """Hash the direction that `text` means: a folder, or a version of `store`.

    Raises:
        WsmergeError: as `open_reference`, where there is nothing to hash.
    """
    reference = parse_reference(text)
    if isinstance(reference, PathReference):
        return verify_folder(reference.path)
    wanted = store_reference(text)
    return verify_version(store, wanted.name, store.version_of(wanted))
