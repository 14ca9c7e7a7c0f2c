"""A judge on this machine: an endpoint that does as it is told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Endpoint:
    """What an endpoint answers, and what it was asked.

    Attributes:
        delay_s: before a reply.
        drip_s: before each byte of a reply's body.
        cut: bytes of a reply's body that are announced and not sent.
    """

    answer: Callable[[int, dict[str, Any]], tuple[int, object]]
    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    delay_s: float = 0.0
    drip_s: float = 0.0
    cut: int = 0
    more: dict[str, str] = field(default_factory=dict)


def scored(text: str) -> dict[str, Any]:
    """A chat completion."""
    return {"choices": [{"message": {"role": "assistant", "content": text}}]}


@contextmanager
def endpoint(answer: Callable[[int, dict[str, Any]], tuple[int, object]]) -> Iterator[Endpoint]:
    """Serve `answer(number of the request, its body)`, status and JSON, on a port of 127.0.0.1."""
    state = Endpoint(answer)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(state.asked)
                state.asked.append(body)
                state.headers.append({**self.headers, "path": self.path})
            time.sleep(state.delay_s)
            status, value = state.answer(number, body)
            data = json.dumps(value).encode()
            try:
                self.send_response(status)
                for name, text in {**state.more, "Content-Length": str(len(data))}.items():
                    self.send_header(name, text)
                self.end_headers()
                for part in [data[: len(data) - state.cut]] if not state.drip_s else [bytes([one]) for one in data]:
                    time.sleep(state.drip_s)
                    self.wfile.write(part)
            except (BrokenPipeError, ConnectionResetError):
                return  # the client did not wait for it

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
