"""The HTTP server: HTTP/1.1 with connections that stay open, one thread a connection, and faults on demand."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.loopback_hub.faults import Fault, Faults
from tests.loopback_hub.routing import Router
from tests.loopback_hub.site import Site
from tests.loopback_hub.wire import PIECE, Answer, Body, Call, Refusal, Request, Slice

__all__ = ["Server", "Traffic"]

# Clients ask this once a process and not again, which would make a log depend on the order of tests.
UNLOGGED = "/api/agent-harnesses"
# A stop is noticed after this many seconds.
POLL_S = 0.02


class Traffic:
    """What all servers of a Hub share: the faults to come, and what was asked and went wrong."""

    def __init__(self) -> None:
        self.faults = Faults()
        self.log: list[Request] = []
        self.failures: list[Exception] = []
        self.connections = 0
        self.lock = threading.Lock()

    def record(self, request: Request) -> None:
        """Add a line to the log."""
        with self.lock:
            self.log.append(request)


class Server(ThreadingHTTPServer):
    """Serves routes on 127.0.0.1, at a port that the system chooses.

    Args:
        site: what the routes work on.
        router: the routes.
        traffic: shared with the other servers of the Hub.
        storage: this is the place of large files, which refuses requests that carry a token, as such places do.
    """

    daemon_threads = False
    request_queue_size = 64

    def __init__(self, site: Site, router: Router, traffic: Traffic, *, storage: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.site, self.router, self.traffic, self.storage = site, router, traffic, storage
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, args=(POLL_S,), name="loopback-hub")

    @property
    def endpoint(self) -> str:
        """The URL of the server."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def start(self) -> None:
        """Serve, in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """Close every connection and wait until no thread is left."""
        self.shutdown()
        self._thread.join()
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._connections.add(request)
        with self.traffic.lock:
            self.traffic.connections += 1
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.discard(request)
        super().shutdown_request(request)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def handle(self) -> None:
        # A client may leave whenever it likes.
        with contextlib.suppress(ConnectionError):
            super().handle()

    def finish(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name that http.server gives it
        """Say nothing: `Traffic.log` is the log."""

    def __getattr__(self, name: str) -> Callable[[], None]:
        # http.server looks for one method an HTTP method.
        if name.startswith("do_"):
            return self._serve
        raise AttributeError(name)

    def _serve(self) -> None:
        split = urlsplit(self.path)
        record = Request(self.command, unquote(split.path), split.query, self.headers.get("Range"))
        fault = None
        if record.path != UNLOGGED:
            self.server.traffic.record(record)
            fault = self.server.traffic.faults.take(record.method, record.path)
        record.fault = fault.kind if fault else None
        call = Call(self.server.site, record, self.headers, Body(self.rfile, self.headers, record))
        answer = self._answer(call, split.path, fault)
        call.body.read()
        if answer is None:
            self.close_connection = True
        else:
            self._send(answer, record, fault)

    def _answer(self, call: Call, path: str, fault: Fault | None) -> Answer | None:
        kind = fault.kind if fault else None
        if kind == "drop_before":
            return None
        if fault is not None and kind == "status":
            return Refusal(fault.status, "A fault on purpose", headers={"Retry-After": "0"}).answer()
        call.stale = kind == "stale_head"
        try:
            answer = _route(self.server, call, path)
        except Refusal as refusal:
            answer = refusal.answer()
        except ConnectionError:
            raise
        except Exception as error:  # noqa: BLE001 - a mistake in a route is told to the test, when the server stops
            self.server.traffic.failures.append(error)
            answer = Answer.json({"error": repr(error)}, status=500)
        return None if kind == "lost_response" else answer

    def _send(self, answer: Answer, record: Request, fault: Fault | None) -> None:
        record.status = answer.status
        length = len(answer.body)
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(length), **answer.headers}.items():
            self.send_header(name, value)
        if record.method == "HEAD":
            self.end_headers()
            return
        # One write for the headers and a short body: two would wait for each other.
        self._headers_buffer: list[bytes]
        self._headers_buffer.append(b"\r\n")
        pending = b"".join(self._headers_buffer)
        self._headers_buffer = []
        for piece in _damaged(_pieces(answer.body), fault):
            record.bytes_sent += len(piece)
            self.wfile.write(pending + piece)
            pending = b""
        if pending:
            self.wfile.write(pending)
        if record.bytes_sent < length:
            self.close_connection = True


def _route(server: Server, call: Call, path: str) -> Answer:
    authorization = call.headers.get("Authorization") or ""
    if server.storage and authorization:
        raise Refusal(400, "Only one way to authenticate is allowed: the URL is signed")
    if token := authorization.removeprefix("Bearer "):
        call.user = call.record.user = call.site.tokens.get(token)
        if call.user is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
    found = server.router.find(call.method, path)
    if found is None:
        raise Refusal(404, f"Not found: {call.method} {path}")
    handler, call.arguments = found
    return handler(call)


def _pieces(body: bytes | Slice) -> Iterator[bytes]:
    if isinstance(body, bytes):
        yield body
        return
    with body.path.open("rb") as file:
        file.seek(body.start)
        left = len(body)
        while left:
            piece = file.read(min(PIECE, left))
            left -= len(piece)
            yield piece


def _damaged(pieces: Iterator[bytes], fault: Fault | None) -> Iterator[bytes]:
    position = 0
    for piece in pieces:
        start, position = position, position + len(piece)
        if fault is None or fault.kind not in {"cut", "wrong_byte"} or not start <= fault.after_bytes < position:
            yield piece
            continue
        at = fault.after_bytes - start
        if fault.kind == "cut":
            yield piece[:at]
            return
        yield piece[:at] + bytes([piece[at] ^ 0xFF]) + piece[at + 1 :]
