"""An S3 server on the loopback: moto's, with one request at a time, and answers that get lost when a test asks for it.

Run as `python -m tests.registry.objects.s3_server`; prints its port, and ends when its standard input does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock, Thread
from typing import Any
from urllib.request import Request, urlopen

FAULTS = "/-/faults"
BUCKET = "directions"


@dataclass
class LosingApp:
    """A WSGI application around another: requests one by one, as moto's conditional writes are no single step.

    Attributes:
        lose: parts of paths; the next PUT whose path has one is carried out and then answered with 500.
        seen: method and path of every request, with the bytes of its body and of its answer.
    """

    app: Any
    lose: list[str] = field(default_factory=list)
    seen: list[tuple[str, str, int, int]] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        with self.lock:
            if path == FAULTS:
                return self._control(environ, start_response)
            answer, body = self._carry_out(environ)
            self.seen.append((method, path, int(environ.get("CONTENT_LENGTH") or 0), len(body)))
            lost = next((part for part in self.lose if method == "PUT" and part in path), None)
            if lost is not None:
                self.lose.remove(lost)
                answer, body = ("500 Internal Server Error", []), b"<Error><Code>InternalError</Code></Error>"
        start_response(*answer)
        return [body]

    def _carry_out(self, environ: dict[str, Any]) -> tuple[tuple[Any, ...], bytes]:
        answer: list[tuple[Any, ...]] = []
        chunks = self.app(environ, lambda *arguments: answer.append(arguments))
        body = b"".join(chunks)
        return answer[0][:2], body

    def _control(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        length = int(environ.get("CONTENT_LENGTH") or 0)
        if length:
            self.lose.extend(json.loads(environ["wsgi.input"].read(length)))
        told = json.dumps(self.seen).encode()
        self.seen.clear()
        start_response("200 OK", [("Content-Length", str(len(told)))])
        return [told]


@dataclass(frozen=True)
class LoopbackS3:
    """The server, as a test talks to it."""

    endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        """What points the real client to it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }

    def lose_answers(self, *parts: str) -> None:
        """Carry out the next PUT whose path has a part, and answer it with 500; one for each part."""
        self._control(json.dumps(parts).encode())

    def requests(self) -> list[tuple[str, str, int, int]]:
        """Method, path, bytes of the body and of the answer of every request since this was asked last."""
        return [(method, path, sent, got) for method, path, sent, got in self._control(b"")]

    def _control(self, body: bytes) -> Any:
        with urlopen(Request(self.endpoint + FAULTS, data=body, method="POST")) as answer:  # noqa: S310 - loopback
            return json.load(answer)


@contextmanager
def running() -> Iterator[LoopbackS3]:
    """A server of its own process with one empty bucket; it ends with the body."""
    command = [sys.executable, "-m", "tests.registry.objects.s3_server"]
    environment = os.environ | {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            server = LoopbackS3(f"http://127.0.0.1:{int(process.stdout.readline())}")
            with urlopen(Request(f"{server.endpoint}/{BUCKET}", method="PUT")):  # noqa: S310 - loopback
                yield server
        finally:
            process.stdin.close()
            process.wait(timeout=20)


def serve() -> None:
    """Serve until standard input ends."""
    import logging  # noqa: PLC0415 - of the server alone, which is a process of its own

    # Optional packages.
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app  # noqa: PLC0415
    from werkzeug.serving import make_server  # noqa: PLC0415

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = LosingApp(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    Thread(target=server.serve_forever, daemon=True).start()
    sys.stdout.write(f"{server.port}\n")
    sys.stdout.flush()
    sys.stdin.read()
    server.shutdown()


if __name__ == "__main__":
    serve()
