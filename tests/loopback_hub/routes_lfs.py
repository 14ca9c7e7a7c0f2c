"""Large files on their way in (git-lfs batch API, transfers `basic` and `multipart`) and out."""

from __future__ import annotations

import hashlib
import math
import shutil
from typing import Any

from tests.loopback_hub.large_files import WrongContentError
from tests.loopback_hub.ranges import file_answer
from tests.loopback_hub.repositories import Repository
from tests.loopback_hub.routing import Route
from tests.loopback_hub.wire import Answer, Call, Refusal

__all__ = ["ROUTES", "STORAGE_ROUTES", "download_url"]


def download_url(call: Call, repository: Repository, digest: str) -> str:
    """Where the bytes of a large file are; the URL needs no token."""
    return f"{call.site.storage}/large-files/{_signature(call, repository, digest)}"


def _signature(call: Call, repository: Repository, digest: str) -> str:
    return f"{repository.name}/{digest}/{call.site.signature(repository.name, digest)}"


def _signed(call: Call) -> tuple[Repository, str]:
    name, digest = f"{call.arguments['owner']}/{call.arguments['name']}", call.arguments["digest"]
    if call.arguments["signature"] != call.site.signature(name, digest):
        raise Refusal(403, "The signature does not match")
    return call.site.repositories[name], digest


def _batch(call: Call) -> Answer:
    asked = call.json()
    upload = asked.get("operation") != "download"
    repository = call.repository("write" if upload else "read")
    answer = _upload_actions if upload else _download_actions
    objects = [answer(call, repository, wanted, asked.get("transfers") or ["basic"]) for wanted in asked["objects"]]
    transfer = "multipart" if any("chunk_size" in str(found) for found in objects) else "basic"
    media = {"Content-Type": "application/vnd.git-lfs+json"}
    return Answer.json({"transfer": transfer, "objects": objects, "hash_algo": "sha256"}, headers=media)


def _upload_actions(call: Call, repository: Repository, wanted: dict[str, Any], transfers: list[str]) -> dict[str, Any]:
    digest, size = wanted["oid"], wanted["size"]
    if repository.large.size(digest) is not None:
        return {"oid": digest, "size": size}
    signature = _signature(call, repository, digest)
    href = f"{call.site.storage}/lfs-upload/{signature}"
    upload: dict[str, Any] = {"href": href}
    part = call.site.part_size
    if part and size > part and "multipart" in transfers:
        parts = {str(number): f"{href}/parts/{number}" for number in range(1, math.ceil(size / part) + 1)}
        upload["header"] = {"chunk_size": str(part), **parts}
    verify = {"href": f"{call.site.endpoint}/lfs-verify/{signature}"}
    return {"oid": digest, "size": size, "authenticated": True, "actions": {"upload": upload, "verify": verify}}


def _download_actions(
    call: Call, repository: Repository, wanted: dict[str, Any], _transfers: list[str]
) -> dict[str, Any]:
    digest = wanted["oid"]
    if repository.large.size(digest) is None:
        return {"oid": digest, "size": wanted["size"], "error": {"code": 404, "message": "Object does not exist"}}
    return {**wanted, "actions": {"download": {"href": download_url(call, repository, digest)}}}


def _put(call: Call) -> Answer:
    repository, digest = _signed(call)
    try:
        repository.large.write(call.body.pieces(), digest)
    except WrongContentError as error:
        raise Refusal(400, str(error)) from None
    return Answer(headers={"ETag": f'"{digest}"'})


def _put_part(call: Call) -> Answer:
    repository, digest = _signed(call)
    parts = repository.large.folder / f"parts-{digest}"
    parts.mkdir(parents=True, exist_ok=True)
    content = call.body.read()
    (parts / f"{int(call.arguments['number']):06d}").write_bytes(content)
    return Answer(headers={"ETag": f'"{hashlib.sha256(content).hexdigest()}"'})


def _complete(call: Call) -> Answer:
    repository, digest = _signed(call)
    folder, asked = repository.large.folder / f"parts-{digest}", call.json()
    paths = [folder / f"{part['partNumber']:06d}" for part in asked["parts"]]
    for path, part in zip(paths, asked["parts"], strict=True):
        if not path.exists() or part["etag"].strip('"') != hashlib.sha256(path.read_bytes()).hexdigest():
            raise Refusal(400, f"Part {part['partNumber']} is not what was sent")
    try:
        repository.large.write((path.read_bytes() for path in paths), digest)
    except WrongContentError as error:
        raise Refusal(400, str(error)) from None
    shutil.rmtree(folder)
    return Answer.json({})


def _verify(call: Call) -> Answer:
    repository, digest = _signed(call)
    asked = call.json()
    if asked["oid"] != digest or repository.large.size(digest) != asked["size"]:
        raise Refusal(404, "The object is not there, or not of this size")
    return Answer.json({})


def _get(call: Call) -> Answer:
    repository, digest = _signed(call)
    return file_answer(call, call.site.large_path(repository, digest), etag=digest)


_SIGNED = "{repo}/{digest}/{signature}"
ROUTES = (
    Route("POST", "/{repo}.git/info/lfs/objects/batch", _batch),
    Route("POST", f"/lfs-verify/{_SIGNED}", _verify),
)
# These lie on another server: a client must not send its token there.
STORAGE_ROUTES = (
    Route("PUT", f"/lfs-upload/{_SIGNED}", _put),
    Route("PUT", f"/lfs-upload/{_SIGNED}/parts/{{number}}", _put_part),
    Route("POST", f"/lfs-upload/{_SIGNED}", _complete),
    Route("GET", f"/large-files/{_SIGNED}", _get),
)
