"""Trees, single paths, and the list of commits."""

from __future__ import annotations

from typing import Any

from dulwich.objects import Commit

from tests.loopback_hub.changes import File
from tests.loopback_hub.models import moment
from tests.loopback_hub.repositories import Repository
from tests.loopback_hub.routing import Route
from tests.loopback_hub.wire import Answer, Call, Refusal

__all__ = ["ROUTES"]

EXPANDED_PAGE = 50
COMMITS_PAGE = 50


def _tree(call: Call) -> Answer:
    repository = call.repository("read")
    commit = call.commit(repository)
    folder = call.arguments.get("path", "").strip("/")
    rows = _rows(call, repository, commit)
    inside = {path: row for path, row in rows.items() if not folder or path.startswith(folder + "/")}
    if folder and not inside:
        raise Refusal(404, f'{folder} does not exist on "{commit}"', code="EntryNotFound")
    if not call.flag("recursive"):
        depth = folder.count("/") + 1 if folder else 0
        inside = {path: row for path, row in inside.items() if path.count("/") == depth}
    expand = call.flag("expand")
    page, headers = call.page(list(inside.values()), size=EXPANDED_PAGE if expand else call.site.page_size)
    return Answer.json(_expanded(repository, commit, page) if expand else page, headers=headers)


def _paths(call: Call) -> Answer:
    repository = call.repository("read")
    commit, asked = call.commit(repository), call.form()
    rows = _rows(call, repository, commit)
    found = [rows[path] for path in asked.get("paths", []) if path in rows]
    expand = asked.get("expand", ["false"])[0].lower() in {"true", "1"}
    return Answer.json(_expanded(repository, commit, found) if expand else found)


def _commits(call: Call) -> Answer:
    repository = call.repository("see")
    commits = list(repository.history(call.commit(repository)))
    page, headers = call.page(commits, size=COMMITS_PAGE)
    return Answer.json([_commit_row(commit) for commit in page], headers=headers)


def _commit_row(commit: Commit) -> dict[str, Any]:
    title, _, message = commit.message.decode().partition("\n")
    user = commit.author.decode().partition(" <")[0]
    date = moment(commit.commit_time)
    head = {"id": commit.id.decode(), "title": title, "message": message.strip(), "date": date}
    return head | {"authors": [{"user": user, "avatar": ""}]}


def _rows(call: Call, repository: Repository, commit: str) -> dict[str, dict[str, Any]]:
    folders = repository.folders(commit).items()
    rows = {path: {"type": "directory", "oid": oid, "size": 0, "path": path} for path, oid in folders}
    rows |= {path: _file_row(call, file) for path, file in repository.files(commit).items()}
    return dict(sorted(rows.items()))


def _file_row(call: Call, file: File) -> dict[str, Any]:
    row: dict[str, Any] = {"type": "file", "oid": file.oid, "size": file.size, "path": file.path}
    if file.pointer:
        row["lfs"] = {"oid": file.pointer.digest, "size": file.size, "pointerSize": len(file.pointer.encode())}
        if call.site.xet and (xet_hash := call.site.xet.hash_of(file.pointer.digest)):
            row["xetHash"] = xet_hash
    return row


def _expanded(repository: Repository, commit: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each row with the newest commit at which its object became what it is."""
    wanted = {row["path"]: row["oid"] for row in rows}
    last: dict[str, Commit] = {}
    for passed in repository.history(commit):
        oid = passed.id.decode()
        objects = {path: file.oid for path, file in repository.files(oid).items()} | repository.folders(oid)
        same = [path for path, held in wanted.items() if objects.get(path) == held]
        last |= dict.fromkeys(same, passed)
        wanted = {path: wanted[path] for path in same}
    return [row | {"lastCommit": _last_commit(last[row["path"]])} for row in rows]


def _last_commit(commit: Commit) -> dict[str, str]:
    row = _commit_row(commit)
    return {"id": row["id"], "title": row["title"], "date": row["date"]}


ROUTES = (
    Route("GET", "/api/models/{repo}/tree/{revision}", _tree),
    Route("GET", "/api/models/{repo}/tree/{revision}/{path...}", _tree),
    Route("POST", "/api/models/{repo}/paths-info/{revision}", _paths),
    Route("GET", "/api/models/{repo}/commits/{revision}", _commits),
)
