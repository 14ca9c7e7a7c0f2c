"""A request as the routes see it, and the answers they give."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.message import Message
from io import BufferedIOBase
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import parse_qs

from tests.loopback_hub.repositories import NoSuchRevisionError, Repository
from tests.loopback_hub.site import Site

__all__ = ["Answer", "Body", "Call", "Refusal", "Request", "Slice"]

Access = Literal["see", "read", "write"]
PIECE = 1 << 16
_Value = TypeVar("_Value")


@dataclass
class Request:
    """One line of the log: what was asked, and the body bytes that went each way (before any fault cut them off)."""

    method: str
    path: str
    query: str
    range: str | None = None
    status: int | None = None
    bytes_sent: int = 0
    bytes_received: int = 0
    user: str | None = None
    fault: str | None = None


@dataclass(frozen=True)
class Slice:
    """Bytes `start` up to `stop` of a file: a body that is not held in memory."""

    path: Path
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass
class Answer:
    """A status, headers and a body."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | Slice = b""

    @classmethod
    def json(cls, value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
        """An answer of one JSON document."""
        return cls(status, {"Content-Type": "application/json", **(headers or {})}, json.dumps(value).encode())


class Refusal(Exception):  # noqa: N818 - it is an answer, not a failure of the server
    """A request that is answered with an error.

    Args:
        status: the HTTP status.
        message: what the client shows.
        code: the Hub's X-Error-Code, where there is one.
        headers: further headers.
        content: further keys of the body.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        content: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.headers, self.content = dict(headers or {}), dict(content or {})

    def answer(self) -> Answer:
        """The error as the Hub words it."""
        headers = {"X-Error-Message": self.message} | ({"X-Error-Code": self.code} if self.code else {})
        content = {"error": self.message, **self.content}
        return Answer.json(content, status=self.status, headers={**headers, **self.headers})


class Body:
    """The body of a request, read once: with a Content-Length, in chunks, or none."""

    def __init__(self, stream: BufferedIOBase, headers: Message, record: Request) -> None:
        self._stream, self._record = stream, record
        self._chunked = "chunked" in (headers.get("Transfer-Encoding") or "").lower()
        self._left = 0 if self._chunked else int(headers.get("Content-Length") or 0)

    def read(self) -> bytes:
        """All that is left."""
        return b"".join(self.pieces())

    def pieces(self) -> Iterator[bytes]:
        """What is left, in pieces."""
        while self._chunked and (size := int(self._stream.readline().split(b";")[0], 16)):
            yield self._count(self._stream.read(size))
            self._stream.readline()
        if self._chunked:
            self._chunked = False
            self._stream.readline()
        while self._left:
            piece = self._stream.read(min(PIECE, self._left))
            if not piece:
                raise ConnectionResetError("the client left before its body was complete")
            self._left -= len(piece)
            yield self._count(piece)

    def _count(self, piece: bytes) -> bytes:
        self._record.bytes_received += len(piece)
        return piece


@dataclass
class Call:
    """A request on its way through the routes."""

    site: Site
    record: Request
    headers: Message
    body: Body
    user: str | None = None
    stale: bool = False
    arguments: dict[str, str] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """The HTTP method."""
        return self.record.method

    def query(self, name: str) -> list[str]:
        """The values of a query parameter, which may also be written `name[]`."""
        values = parse_qs(self.record.query, keep_blank_values=True)
        return values.get(name, []) + values.get(f"{name}[]", [])

    def flag(self, name: str) -> bool:
        """Whether a query parameter says yes."""
        return any(value.lower() in {"1", "true"} for value in self.query(name))

    def number(self, name: str, default: int) -> int:
        """A query parameter that is a number."""
        values = self.query(name)
        return int(values[0]) if values else default

    def json(self) -> Any:
        """The body as JSON; none counts as an empty object."""
        return json.loads(self.body.read() or b"{}")

    def form(self) -> dict[str, list[str]]:
        """The body as a form, or as JSON where it says so."""
        raw = self.body.read().decode()
        if "json" in (self.headers.get("Content-Type") or ""):
            return {key: value if isinstance(value, list) else [str(value)] for key, value in json.loads(raw).items()}
        return parse_qs(raw)

    def repository(self, access: Access) -> Repository:
        """The repository of the path, if the user may `see` that it is there, `read` its files, or `write`."""
        name = f"{self.arguments['owner']}/{self.arguments['name']}"
        repository = self.site.repositories.get(name)
        if repository is None or not self.site.may_see(self.user, repository):
            status = 401 if self.user is None else 404
            raise Refusal(status, "Repository not found", code="RepoNotFound")
        if access == "read" and not self.site.may_read(self.user, repository):
            message = f"Access to model {name} is restricted. You must have access to it and be authenticated."
            raise Refusal(401 if self.user is None else 403, message, code="GatedRepo")
        if access == "write":
            self.require_owner(repository.owner)
        return repository

    def require_owner(self, owner: str) -> None:
        """Refuse who may not write under the name `owner`."""
        if self.user is None:
            raise Refusal(401, "Invalid username or password.")
        if not self.site.may_write(self.user, owner):
            raise Refusal(403, f'You don\'t have the rights to write under the namespace "{owner}"')

    def commit(self, repository: Repository, revision: str | None = None) -> str:
        """The commit of a revision (by default that of the path, else main), one behind when the head is stale."""
        name = revision or self.arguments.get("revision") or "main"
        try:
            found = repository.resolve(name)
        except NoSuchRevisionError:
            raise Refusal(404, f"Invalid rev id: {name}", code="RevisionNotFound") from None
        parents = repository.parents(found)
        branch = "main" if name == "HEAD" else name.removeprefix("refs/heads/")
        return parents[0] if self.stale and repository.is_branch(branch) and parents else found

    def page(self, items: list[_Value], *, size: int) -> tuple[list[_Value], dict[str, str]]:
        """The items of the page that is asked for, and the header that names the next page."""
        limit = max(1, min(self.number("limit", size), size))
        start = self.number("cursor", 0)
        if start + limit >= len(items):
            return items[start:], {}
        kept = "&".join(part for part in self.record.query.split("&") if part and not part.startswith("cursor="))
        target = f"{self.site.endpoint}{self.record.path}?{kept + '&' if kept else ''}cursor={start + limit}"
        return items[start : start + limit], {"Link": f'<{target}>; rel="next"'}
