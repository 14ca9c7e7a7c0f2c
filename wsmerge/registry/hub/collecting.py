"""Collections on the Hub: the directions that one user or organisation has for one base."""

from __future__ import annotations

from typing import Final

from wsmerge.core.hub.connection import Hub, telling

__all__ = ["collect", "collection_title"]

_MAX_TITLE: Final = 60
_ABOUT: Final = "Directions in weight space over one base model, made and used with wsmerge."


def collection_title(base: str) -> str:
    """Title of the collection for a base; the Hub allows 60 characters."""
    title = f"wsmerge directions for {base.rpartition('/')[2]}"
    return title if len(title) <= _MAX_TITLE else f"{title[: _MAX_TITLE - 1].rstrip()}…"


def collect(hub: Hub, repo: str, base: str, *, private: bool = False) -> str:
    """Put `repo` into its owner's collection for `base`, which is made where it is missing.

    Args:
        hub: the connection.
        repo: `owner/name`, which is on the Hub.
        base: name of the base.
        private: whether a collection that is made is private.

    Returns:
        The collection's slug: `owner/title-id`.

    Raises:
        HubError: it cannot be made or changed.
    """
    owner = repo.partition("/")[0]
    title = collection_title(base)
    with telling(repo):
        held = (found for found in hub.api.list_collections(owner=owner) if found.title == title)
        collection = next(held, None) or hub.api.create_collection(
            title, namespace=owner, description=_ABOUT, private=private, exists_ok=True
        )
        hub.api.add_collection_item(collection.slug, repo, "model", exists_ok=True)
        return str(collection.slug)
