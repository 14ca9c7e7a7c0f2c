"""Repositories: created, removed, renamed, and their settings."""

from __future__ import annotations

from typing import Any

from tests.loopback_hub.routing import Route
from tests.loopback_hub.wire import Answer, Call, Refusal

__all__ = ["ROUTES"]


def _create(call: Call) -> Answer:
    asked = call.json()
    owner = asked.get("organization") or call.user or ""
    call.require_owner(owner)
    name = f"{owner}/{asked['name']}"
    private = asked.get("visibility") == "private" or bool(asked.get("private"))
    content = {"url": f"{call.site.endpoint}/{name}", "name": name, "id": name}
    try:
        call.site.create(name, private=private)
    except KeyError:
        raise Refusal(409, "You already created this model repo", content=content) from None
    return Answer.json(content)


def _delete(call: Call) -> Answer:
    asked = call.json()
    call.arguments = {"owner": asked.get("organization") or call.user or "", "name": asked["name"]}
    call.site.delete(call.repository("write").name)
    return Answer.json({})


def _move(call: Call) -> Answer:
    asked = call.json()
    call.arguments = dict(zip(("owner", "name"), asked["fromRepo"].split("/"), strict=True))
    repository = call.repository("write")
    call.require_owner(asked["toRepo"].partition("/")[0])
    if asked["toRepo"] in call.site.repositories:
        raise Refusal(409, f"{asked['toRepo']} is there already")
    call.site.move(repository.name, asked["toRepo"])
    return Answer.json({})


def _settings(call: Call) -> Answer:
    repository, asked = call.repository("write"), call.json()
    changed: dict[str, Any] = {}
    if "visibility" in asked or "private" in asked:
        repository.private = asked.get("visibility") == "private" or bool(asked.get("private"))
        changed["private"] = repository.private
    if "gated" in asked:
        repository.gated = bool(asked["gated"])
        changed["gated"] = asked["gated"]
    return Answer.json(changed)


def _check(call: Call) -> Answer:
    call.repository("read")
    return Answer.json({})


def _check_write(call: Call) -> Answer:
    call.repository("write")
    return Answer.json({})


ROUTES = (
    Route("POST", "/api/repos/create", _create),
    Route("DELETE", "/api/repos/delete", _delete),
    Route("POST", "/api/repos/move", _move),
    Route("PUT", "/api/models/{repo}/settings", _settings),
    Route("GET", "/api/models/{repo}/auth-check", _check),
    Route("GET", "/api/models/{repo}/auth-check/write", _check_write),
)
