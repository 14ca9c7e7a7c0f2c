"""A model as the Hub describes it."""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from tests.loopback_hub.cards import card_data, card_tags
from tests.loopback_hub.changes import File
from tests.loopback_hub.repositories import Repository

__all__ = ["describe", "moment"]


def moment(seconds: float) -> str:
    """A time as the Hub writes it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def describe(repository: Repository, commit: str, *, blobs: bool = False) -> dict[str, Any]:
    """All that the Hub tells of a model at a commit, under the names of its API."""
    files = repository.files(commit)
    readme = files.get("README.md")
    card = card_data(repository.content(readme).decode(errors="replace")) if readme else {}
    changed = moment(repository.commit_object(commit).commit_time)
    return {
        "_id": sha256(repository.name.encode()).hexdigest()[:24],
        "id": repository.name,
        "modelId": repository.name,
        "author": repository.owner,
        "sha": commit,
        "lastModified": changed,
        "createdAt": moment(repository.created),
        "private": repository.private,
        "gated": "manual" if repository.gated else False,
        "disabled": False,
        "downloads": repository.downloads,
        "downloadsAllTime": repository.downloads,
        "likes": 0,
        "trendingScore": 0,
        "tags": card_tags(card, files),
        "library_name": card.get("library_name"),
        "pipeline_tag": card.get("pipeline_tag"),
        "cardData": card or None,
        "usedStorage": sum(file.size for file in files.values()),
        "siblings": [_sibling(file, blobs=blobs) for file in files.values()],
        "spaces": [],
    }


def _sibling(file: File, *, blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": file.path}
    row: dict[str, Any] = {"rfilename": file.path, "size": file.size, "blobId": file.oid}
    if file.pointer:
        row["lfs"] = {"sha256": file.pointer.digest, "size": file.size, "pointerSize": len(file.pointer.encode())}
    return row
