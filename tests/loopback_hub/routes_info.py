"""What is told of a model, and the list of models."""

from __future__ import annotations

from typing import Any

from tests.loopback_hub.models import describe
from tests.loopback_hub.routing import Route
from tests.loopback_hub.wire import Answer, Call, Refusal

__all__ = ["ROUTES"]

LISTED = ("_id", "id", "modelId", "private", "downloads", "likes", "tags", "library_name", "pipeline_tag", "createdAt")
# What `full` adds to a row of the list.
FULL = ("author", "sha", "lastModified", "gated", "disabled", "siblings")
ALWAYS = ("_id", "id")
SORTS = {"lastModified", "createdAt", "downloads", "likes", "trendingScore"}


def _info(call: Call) -> Answer:
    repository = call.repository("see")
    told = describe(repository, call.commit(repository), blobs=call.flag("blobs"))
    if expand := call.query("expand"):
        told = _only(told, (*ALWAYS, *expand))
    return Answer.json({name: value for name, value in told.items() if value is not None})


def _list(call: Call) -> Answer:
    seen = [found for found in call.site.repositories.values() if call.site.may_see(call.user, found)]
    told = [describe(found, found.resolve("main")) for found in seen]
    told = [model for model in told if _wanted(call, model)]
    sort = (call.query("sort") or ["trendingScore"])[0]
    if sort not in SORTS:
        raise Refusal(400, f"Invalid sort: {sort}")
    told.sort(key=lambda model: (model[sort], model["id"]), reverse=True)
    page, headers = call.page(told, size=call.site.page_size)
    names = (*LISTED, *(FULL if call.flag("full") else ()), *(("cardData",) if call.flag("cardData") else ()))
    names = (*ALWAYS, *expand) if (expand := call.query("expand")) else names
    return Answer.json([_only(model, names) for model in page], headers=headers)


def _wanted(call: Call, model: dict[str, Any]) -> bool:
    tags = {tag.lower() for tag in model["tags"]}
    wanted = [part for value in call.query("filter") for part in value.split(",")] + call.query("pipeline_tag")
    return (
        all(part.lower() in tags for part in wanted)
        and all(owner == model["author"] for owner in call.query("author"))
        and all(text.lower() in model["id"].lower() for text in call.query("search"))
    )


def _only(model: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: model[name] for name in names if model.get(name) is not None}


ROUTES = (
    Route("GET", "/api/models", _list),
    Route("GET", "/api/models/{repo}", _info),
    Route("GET", "/api/models/{repo}/revision/{revision}", _info),
)
