"""Commits: what becomes of each file is told before (preupload), then all operations are one commit (NDJSON)."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

from tests.loopback_hub.changes import Change, is_large_by_name
from tests.loopback_hub.large_files import Pointer
from tests.loopback_hub.repositories import NoSuchRevisionError, Repository, StaleParentError
from tests.loopback_hub.routing import Route
from tests.loopback_hub.wire import Answer, Call, Refusal

__all__ = ["ROUTES"]

LARGE_BYTES = 10_000_000


def _preupload(call: Call) -> Answer:
    repository = call.repository("write")
    files = repository.files(call.commit(repository))
    attributes = files.get(".gitattributes")
    text = repository.content(attributes).decode() if attributes else ""
    answers = []
    for asked in call.json()["files"]:
        binary = b"\0" in base64.b64decode(asked.get("sample") or "")
        large = is_large_by_name(asked["path"], text) or asked["size"] > LARGE_BYTES or binary
        answer = {"path": asked["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        there = files.get(asked["path"])
        answers.append(answer | ({"oid": there.etag} if there else {}))
    return Answer.json({"files": answers, "commitOid": call.commit(repository)})


def _commit(call: Call) -> Answer:
    repository = call.repository("write")
    lines = [json.loads(line) for line in call.body.read().splitlines() if line.strip()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    message = "\n\n".join(part for part in (header["summary"], header.get("description")) if part)
    try:
        with repository.change(
            call.arguments["revision"], message=message, author=call.user or "", parent=header.get("parentCommit")
        ) as change:
            for line in lines:
                if line["key"] != "header":
                    _operation(line["key"])(call, repository, change, line["value"])
    except NoSuchRevisionError as error:
        raise Refusal(404, f"Invalid rev id: {error}", code="RevisionNotFound") from None
    except StaleParentError as error:
        text = f"The branch is not at {error}: a commit has happened since. Please refresh and try again."
        raise Refusal(412, text) from None
    commit = change.commit
    url = f"{call.site.endpoint}/{repository.name}/commit/{commit}"
    return Answer.json({"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})


_Operation = Callable[[Call, Repository, Change, dict[str, Any]], None]


def _operation(key: str) -> _Operation:
    if key not in _OPERATIONS:
        raise Refusal(400, f"Unknown operation: {key}")
    return _OPERATIONS[key]


def _file(_call: Call, _repository: Repository, change: Change, value: dict[str, Any]) -> None:
    encoded = value.get("encoding") == "base64"
    change.add(value["path"], base64.b64decode(value["content"]) if encoded else value["content"].encode())


def _large_file(call: Call, repository: Repository, change: Change, value: dict[str, Any]) -> None:
    size = repository.large.size(value["oid"])
    if size is None and call.site.xet is not None:
        size = call.site.xet.size_of(value["oid"])
    if size is None:
        raise Refusal(400, f"The LFS object of {value['path']} does not exist: {value['oid']}")
    if value.get("size") not in {None, size}:
        raise Refusal(400, f"{value['path']} has {size} bytes, not {value['size']}")
    change.point(value["path"], Pointer(value["oid"], size))


def _deleted_file(_call: Call, _repository: Repository, change: Change, value: dict[str, Any]) -> None:
    if not change.remove(value["path"]):
        raise Refusal(404, f"A file with this name doesn't exist: {value['path']}", code="EntryNotFound")


def _deleted_folder(_call: Call, _repository: Repository, change: Change, value: dict[str, Any]) -> None:
    if not change.remove_folder(value["path"]):
        raise Refusal(404, f"A folder with this name doesn't exist: {value['path']}", code="EntryNotFound")


_OPERATIONS: dict[str, _Operation] = {
    "file": _file,
    "lfsFile": _large_file,
    "deletedFile": _deleted_file,
    "deletedFolder": _deleted_folder,
}

ROUTES = (
    Route("POST", "/api/models/{repo}/preupload/{revision}", _preupload),
    Route("POST", "/api/models/{repo}/commit/{revision}", _commit),
)
