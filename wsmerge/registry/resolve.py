"""From the text of a reference to the direction it means, opened or verified."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from wsmerge.core.hub.connection import Hub
from wsmerge.core.opening import expanded
from wsmerge.errors import VerificationError
from wsmerge.registry.catalogue import Catalogue, store_reference
from wsmerge.registry.direction import Direction, open_direction_folder, verify_direction
from wsmerge.registry.entries import error_lines
from wsmerge.registry.references import HubReference, PathReference, parse_reference
from wsmerge.registry.verification import VerificationReport, verify_folder, verify_version

__all__ = ["open_reference", "reference_text", "verify_reference"]

_ASK_OWNER: Final = "try again; if it stays, tell the owner of the repository"


def reference_text(reference: str | Path) -> str:
    """The text of a reference; a `Path` is one to a folder."""
    return str(expanded(reference).absolute()) if isinstance(reference, Path) else reference


def open_reference(text: str, store: Catalogue) -> Direction:
    """Open the direction that `text` means: a folder, a version of `store`, or what lies on the Hub. Close it after use.

    Of a direction on the Hub manifest and headers are read, and each array when it is needed, from the commit that the
    reference means now. `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` say which Hub, as whom, and whether at all.

    Raises:
        BadReferenceError: `text` does not parse.
        NotFoundError: the store does not have it, or the repository no such version.
        DirectionError: it cannot be opened.
        HubError: it is on the Hub, which does not give it, is not reached or may not be asked.
    """
    reference = parse_reference(text)
    if isinstance(reference, PathReference):
        return open_direction_folder(reference.path)
    if isinstance(reference, HubReference):
        from wsmerge.registry.hub.remote import open_remote  # noqa: PLC0415 - what is local needs none of it

        return open_remote(Hub(), reference)
    return store.open(reference)


def verify_reference(text: str, store: Catalogue) -> VerificationReport:
    """Hash the direction that `text` means: a folder, a version of `store`, or what lies on the Hub, which is read whole.

    Raises:
        WsmergeError: as `open_reference`, where there is nothing to hash.
    """
    reference = parse_reference(text)
    if isinstance(reference, PathReference):
        return verify_folder(reference.path)
    if isinstance(reference, HubReference):
        return _verify_remote(text, store)
    wanted = store_reference(text)
    return verify_version(store, wanted.name, store.version_of(wanted))


def _verify_remote(text: str, store: Catalogue) -> VerificationReport:
    with open_reference(text, store) as direction:
        try:
            found = verify_direction(direction)
        except VerificationError as error:  # of the first array that is not what it should be
            found = tuple(error_lines(error))
        return VerificationReport((direction.label,), tuple(f"{direction.label}: {line}" for line in found), _ASK_OWNER)
