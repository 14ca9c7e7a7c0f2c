"""Branches and tags."""

from __future__ import annotations

from tests.loopback_hub.routing import Route
from tests.loopback_hub.wire import Answer, Call, Refusal

__all__ = ["ROUTES"]


def _refs(call: Call) -> Answer:
    repository = call.repository("see")

    def rows(kind: str) -> list[dict[str, str]]:
        names = repository.refs(kind)
        return [
            {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": call.commit(repository, f"refs/{kind}/{name}")}
            for name in names
        ]

    with repository.lock:
        answer = {"branches": rows("heads"), "converts": [], "tags": rows("tags")}
    return Answer.json(answer | ({"pullRequests": []} if call.flag("include_prs") else {}))


def _create_tag(call: Call) -> Answer:
    repository, asked = call.repository("write"), call.json()
    with repository.lock:
        commit = call.commit(repository)
        if asked["tag"] in repository.refs("tags"):
            raise Refusal(409, f"Tag reference exists already: {asked['tag']}")
        repository.set_ref("tags", asked["tag"], commit, message=asked.get("message"), author=call.user or "")
    return Answer.json({})


def _delete_tag(call: Call) -> Answer:
    return _remove(call, "tags", call.arguments["revision"])


def _create_branch(call: Call) -> Answer:
    repository, asked = call.repository("write"), call.json()
    with repository.lock:
        commit = call.commit(repository, asked.get("startingPoint") or "main")
        if call.arguments["branch"] in repository.refs("heads"):
            raise Refusal(409, f"Reference exists already: {call.arguments['branch']}")
        repository.set_ref("heads", call.arguments["branch"], commit)
    return Answer.json({})


def _delete_branch(call: Call) -> Answer:
    if call.arguments["branch"] == "main":
        raise Refusal(403, "The main branch cannot be removed")
    return _remove(call, "heads", call.arguments["branch"])


def _remove(call: Call, kind: str, name: str) -> Answer:
    repository = call.repository("write")
    with repository.lock:
        if name not in repository.refs(kind):
            raise Refusal(404, f"Reference does not exist: {name}", code="RevisionNotFound")
        repository.remove_ref(kind, name)
    return Answer.json({})


def _squash(call: Call) -> Answer:
    repository = call.repository("write")
    if call.arguments["branch"] not in repository.refs("heads"):
        raise Refusal(404, f"Reference does not exist: {call.arguments['branch']}", code="RevisionNotFound")
    repository.squash(call.arguments["branch"], call.json()["message"])
    return Answer.json({})


ROUTES = (
    Route("GET", "/api/models/{repo}/refs", _refs),
    Route("POST", "/api/models/{repo}/tag/{revision}", _create_tag),
    Route("DELETE", "/api/models/{repo}/tag/{revision}", _delete_tag),
    Route("POST", "/api/models/{repo}/branch/{branch}", _create_branch),
    Route("DELETE", "/api/models/{repo}/branch/{branch}", _delete_branch),
    Route("POST", "/api/models/{repo}/super-squash/{branch}", _squash),
)
