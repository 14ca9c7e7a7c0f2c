"""Answers that a Hub should not give: understood where they can be, else refused with what they were."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants

from tests.hubs import IMPATIENT
from wsmerge.core.hub.connection import Hub
from wsmerge.core.hub.transfer import Target, Traffic, Transfer
from wsmerge.errors import HubError

CONTENT = np.random.default_rng(5).bytes(300_000)
ETAG = "a" * 64
TOKEN = "hf_test"  # noqa: S105 - of a server that this module makes
Answers = list[tuple[int, dict[str, str], bytes]]


class _QuietServer(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that leave before the end: some answers are meant to be left."""


class Odd:
    """A server that answers one request after the other with what it is told, the last one for ever."""

    def __init__(self) -> None:
        self.answers: Answers = []
        self.asked: list[dict[str, str]] = []
        odd = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                odd.asked.append({name.lower(): value for name, value in self.headers.items()})
                status, headers, body = odd.answers.pop(0) if len(odd.answers) > 1 else odd.answers[0]
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = _QuietServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Odd]]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    made: list[Odd] = []

    def make() -> Odd:
        made.append(Odd())
        return made[-1]

    yield make
    for server in made:
        server.close()


def fetched(server: Odd, start: int = 1000, count: int = 50_000) -> tuple[bytes, Traffic]:
    traffic = Traffic()
    hub = Hub(endpoint=server.address, token=TOKEN, patience=IMPATIENT)
    target = Target(f"{server.address}/acme/it/resolve/main/f", "hub:acme/it/f", len(CONTENT), ETAG)
    out = bytearray(count)
    Transfer(hub, target, traffic).fetch(start, memoryview(out))
    return bytes(out), traffic


def ranged(start: int = 1000, count: int = 50_000, total: str = str(len(CONTENT)), **headers: str) -> Any:
    told = {"Content-Range": f"bytes {start}-{start + count - 1}/{total}"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    return 206, told, CONTENT[start : start + count]


def test_a_whole_file_in_place_of_a_range_is_cut(servers: Callable[[], Odd]) -> None:
    server = servers()
    server.answers = [(200, {}, CONTENT)]
    data, traffic = fetched(server)
    assert data == CONTENT[1000:51_000]
    assert traffic.requests == 1


def test_an_unknown_total_is_taken(servers: Callable[[], Odd]) -> None:
    server = servers()
    server.answers = [ranged(total="*")]
    assert fetched(server)[0] == CONTENT[1000:51_000]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (ranged(start=0), "answers bytes 0-49999, not 1000-50999"),
        (ranged(count=10), "answers bytes 1000-1009"),
        (ranged(total="7"), "it has 7 bytes, and the commit names 300000"),
        ((206, {}, CONTENT[:50_000]), "it has unknown bytes"),
        ((200, {}, CONTENT[:-1]), "it has 299999 bytes"),
        (ranged(ETag='"' + "b" * 64 + '"'), "its ETag is bbbb"),
        (ranged(Content_Encoding="gzip"), "content-encoding gzip"),
        ((204, {}, b""), "answers a range with status 204"),
        ((416, {"Content-Range": "bytes */5"}, b""), "it is shorter than 300000 bytes"),
        ((403, {}, b"{}"), "the token may not do this"),
        ((404, {"X-Error-Code": "EntryNotFound"}, b"{}"), "the commit has no such file"),
        ((404, {"X-Error-Code": "RepoNotFound"}, b"{}"), "no such repository"),
        ((403, {"X-Error-Code": "GatedRepo"}, b"{}"), "only to those who accepted its terms"),
        ((400, {}, b"nonsense"), "the Hub refused"),
        ((302, {"Location": "/acme/it/resolve/main/f"}, b""), "redirects more than"),
        ((503, {"Retry-After": "100"}, b""), "after 1 attempts: status 503, and asks to wait 100 s"),
        ((503, {}, b""), "after 4 attempts: status 503"),
    ],
)
def test_nonsense_is_refused_with_what_it_was(servers: Callable[[], Odd], answer: Any, message: str) -> None:
    server = servers()
    server.answers = [answer]
    with pytest.raises(HubError) as caught:
        fetched(server)
    assert message in str(caught.value)
    assert str(caught.value.where).startswith("hub:acme/it/f")


def test_no_ranges_of_a_file_that_is_too_long_to_skip(servers: Callable[[], Odd]) -> None:
    server = servers()
    server.answers = [(200, {"Content-Length": "5000000"}, b"")]
    hub = Hub(endpoint=server.address, patience=IMPATIENT)
    target = Target(f"{server.address}/f", "it", 5_000_000, ETAG)
    with pytest.raises(HubError, match="gives no ranges, only whole files"):
        Transfer(hub, target, Traffic()).fetch(4_000_000, memoryview(bytearray(10)))


@pytest.mark.parametrize("after", ["0", "Wed, 21 Oct 2015 07:28:00 GMT", "soon"])
def test_the_server_says_when_to_come_again(servers: Callable[[], Odd], after: str) -> None:
    server = servers()
    server.answers = [(429, {"Retry-After": after}, b""), ranged()]
    assert fetched(server)[0] == CONTENT[1000:51_000]


def test_a_used_up_limit_says_when_it_ends(servers: Callable[[], Odd]) -> None:
    server = servers()
    server.answers = [
        (429, {"RateLimit": '"resolvers";r=0;t=900', "RateLimit-Policy": '"f";"resolvers";q=3;w=300'}, b"")
    ]
    with pytest.raises(HubError, match="asks to wait 900 s"):
        fetched(server)


def test_a_strange_host_never_hears_the_token(servers: Callable[[], Odd]) -> None:
    hub, storage = servers(), servers()
    hub.answers = [(302, {"Location": f"{storage.address}/signed", "X-Linked-ETag": f'"{ETAG}"'}, b"found")]
    storage.answers = [ranged(ETag='"another"')]
    assert fetched(hub)[0] == CONTENT[1000:51_000]
    assert hub.asked[0]["authorization"] == f"Bearer {TOKEN}"
    assert "authorization" not in storage.asked[0]
    assert storage.asked[0]["range"] == "bytes=1000-50999"


def test_a_redirect_within_the_hub_keeps_the_token(servers: Callable[[], Odd]) -> None:
    server = servers()
    server.answers = [(307, {"Location": "/acme/renamed/resolve/main/f"}, b""), ranged()]
    assert fetched(server)[0] == CONTENT[1000:51_000]
    assert [asked.get("authorization") for asked in server.asked] == [f"Bearer {TOKEN}"] * 2


def test_another_content_behind_the_redirect_is_refused(servers: Callable[[], Odd]) -> None:
    server = servers()
    server.answers = [(302, {"Location": "http://127.0.0.1:1/", "X-Linked-ETag": "b" * 64}, b"")]
    with pytest.raises(HubError, match="its ETag is bbbb"):
        fetched(server)


def test_no_server_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub = Hub(endpoint="http://127.0.0.1:1", patience=IMPATIENT)
    transfer = Transfer(hub, Target("http://127.0.0.1:1/f", "it", 10, ETAG), Traffic())
    with pytest.raises(HubError, match="after 4 attempts: cannot be reached"):
        transfer.fetch(0, memoryview(bytearray(10)))
