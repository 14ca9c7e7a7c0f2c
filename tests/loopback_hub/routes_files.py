"""The bytes of files: `resolve` gives the content (of a large file by a redirect), `raw` what git holds."""

from __future__ import annotations

from tests.loopback_hub.cards import counts_as_download
from tests.loopback_hub.changes import File
from tests.loopback_hub.models import describe
from tests.loopback_hub.ranges import bytes_answer
from tests.loopback_hub.repositories import Repository
from tests.loopback_hub.routes_lfs import download_url
from tests.loopback_hub.routing import Route
from tests.loopback_hub.wire import Answer, Call, Refusal

__all__ = ["ROUTES"]


def _resolve(call: Call) -> Answer:
    repository, commit, file = _find(call)
    if counts_as_download(file.path, describe(repository, commit)["library_name"]):
        with repository.lock:
            repository.downloads += 1
    headers = {"X-Repo-Commit": commit, "Content-Disposition": f'inline; filename="{file.path.rpartition("/")[2]}"'}
    if file.pointer is None:
        return bytes_answer(call, repository.content(file), etag=file.oid, headers=headers)
    target = download_url(call, repository, file.pointer.digest)
    headers |= {"Location": target, "X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{file.pointer.digest}"'}
    if call.site.xet and (xet_hash := call.site.xet.hash_of(file.pointer.digest)):
        token = f"{call.site.endpoint}/api/models/{repository.name}/xet-read-token/{commit}"
        headers |= {"X-Xet-Hash": xet_hash, "Link": f'<{token}>; rel="xet-auth"'}
    return Answer(302, headers, f"Found. Redirecting to {target}".encode())


def _raw(call: Call) -> Answer:
    repository, commit, file = _find(call)
    headers = {"X-Repo-Commit": commit, "Content-Type": "text/plain; charset=utf-8"}
    return bytes_answer(call, repository.content(file), etag=file.oid, headers=headers)


def _find(call: Call) -> tuple[Repository, str, File]:
    repository = call.repository("read")
    commit = call.commit(repository)
    file = repository.files(commit).get(call.arguments["path"])
    if file is None:
        raise Refusal(404, "Entry not found", code="EntryNotFound", headers={"X-Repo-Commit": commit})
    return repository, commit, file


ROUTES = (
    Route("GET", "/{repo}/resolve/{revision}/{path...}", _resolve),
    Route("GET", "/{repo}/raw/{revision}/{path...}", _raw),
)
