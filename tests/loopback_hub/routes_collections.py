"""Collections: named lists of models."""

from __future__ import annotations

import re
import secrets
import time
from typing import Any

from tests.loopback_hub.models import moment
from tests.loopback_hub.routing import Route
from tests.loopback_hub.wire import Answer, Call, Refusal

__all__ = ["ROUTES"]

# A list shows the first items only.
LISTED_ITEMS = 4
CHANGEABLE = ("title", "description", "private", "theme", "position")


def _create(call: Call) -> Answer:
    asked = call.json()
    owner = asked.get("namespace") or call.user or ""
    call.require_owner(owner)
    with call.site.lock:
        for slug, found in call.site.collections.items():
            if (found["owner"], found["title"]) == (owner, asked["title"]):
                raise Refusal(409, "A collection of this title is there already", content={"slug": slug})
        words = re.sub(r"[^a-z0-9]+", "-", asked["title"].lower()).strip("-")
        collection = {
            "slug": f"{owner}/{words}-{secrets.token_hex(12)}",
            "title": asked["title"],
            "description": asked.get("description"),
            "owner": owner,
            "items": [],
            "position": len(call.site.collections),
            "private": bool(asked.get("private")),
            "theme": "orange",
            "upvotes": 0,
        }
        call.site.collections[collection["slug"]] = collection
        return _told(collection)


def _list(call: Call) -> Answer:
    owners, items = call.query("owner"), [item.removeprefix("models/") for item in call.query("item")]
    with call.site.lock:
        found = [
            collection
            for collection in call.site.collections.values()
            if (not owners or collection["owner"] in owners)
            and set(items) <= {item["id"] for item in collection["items"]}
            and (not collection["private"] or collection["owner"] == call.user)
        ]
    page, headers = call.page(found, size=call.site.page_size)
    rows = [_dated(collection) | {"items": collection["items"][:LISTED_ITEMS]} for collection in page]
    return Answer.json([{key: row[key] for key in row if key != "position"} for row in rows], headers=headers)


def _get(call: Call) -> Answer:
    return _told(_collection(call))


def _change(call: Call) -> Answer:
    collection, asked = _own(call), call.json()
    collection |= {key: asked[key] for key in CHANGEABLE if key in asked}
    return Answer.json({"data": _dated(collection)})


def _delete(call: Call) -> Answer:
    del call.site.collections[_own(call)["slug"]]
    return Answer.json({})


def _add(call: Call) -> Answer:
    collection, asked = _own(call), call.json()
    item = asked["item"]
    with call.site.lock:
        if any(held["id"] == item["id"] and held["type"] == item["type"] for held in collection["items"]):
            raise Refusal(409, "The item is in the collection already")
        if item["type"] == "model" and item["id"] not in call.site.repositories:
            raise Refusal(404, "Repository not found", code="RepoNotFound")
        row: dict[str, Any] = {"_id": secrets.token_hex(12), "position": len(collection["items"]), **item}
        collection["items"].append(row | ({"note": {"text": asked["note"]}} if asked.get("note") else {}))
    return _told(collection)


def _remove(call: Call) -> Answer:
    collection, wanted = _own(call), call.arguments["item"]
    left = [item for item in collection["items"] if item["_id"] != wanted]
    if len(left) == len(collection["items"]):
        raise Refusal(404, "The item is not in the collection")
    collection["items"] = left
    return Answer.json({})


def _collection(call: Call) -> dict[str, Any]:
    slug = f"{call.arguments['owner']}/{call.arguments['slug']}"
    found = call.site.collections.get(slug)
    if found is None or (found["private"] and found["owner"] != call.user):
        raise Refusal(404, f"Collection not found: {slug}")
    return found


def _own(call: Call) -> dict[str, Any]:
    collection = _collection(call)
    call.require_owner(collection["owner"])
    return collection


def _told(collection: dict[str, Any]) -> Answer:
    return Answer.json(_dated(collection))


def _dated(collection: dict[str, Any]) -> dict[str, Any]:
    return collection | {"lastUpdated": moment(time.time())}


ROUTES = (
    Route("GET", "/api/collections", _list),
    Route("POST", "/api/collections", _create),
    Route("GET", "/api/collections/{owner}/{slug}", _get),
    Route("PATCH", "/api/collections/{owner}/{slug}", _change),
    Route("DELETE", "/api/collections/{owner}/{slug}", _delete),
    Route("POST", "/api/collections/{owner}/{slug}/items", _add),
    Route("DELETE", "/api/collections/{owner}/{slug}/items/{item}", _remove),
)
