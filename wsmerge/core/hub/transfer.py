"""Byte ranges of one file on the Hub, over HTTP.

    GET OWNER/NAME/resolve/COMMIT/FILE      Range: bytes=FIRST-LAST, with the token
        206                                 the bytes, of a small file
        302 Location: a signed address      of a large one; asked without the token, and again until it is refused

A body that is cut is continued where it stopped. What may pass (no connection, 408, 429, 5xx) is tried again, with
longer and longer waits or after as long as the server asks for.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from threading import Lock
from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin, urlsplit

from wsmerge.core.hub.connection import Hub, telling
from wsmerge.errors import HubError

if TYPE_CHECKING:
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # the client makes its names when asked

__all__ = ["Target", "Traffic", "Transfer"]

_COUNTED: Final = {"x-hf-download-counter": "1"}
"""As the Hub's client sends it with every request of a download."""

_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS: Final = 8
_MAX_SKIPPED_BYTES: Final = 1 << 20
_ETAG_DIGITS: Final = (40, 64)


@dataclass(slots=True)
class Traffic:
    """What was asked for and came; threads may share it.

    Attributes:
        requests: how often something was asked, repetitions and redirects included.
        bytes_read: bytes of all bodies.
    """

    requests: int = 0
    bytes_read: int = 0
    _lock: Lock = field(default_factory=Lock, repr=False)

    def add(self, *, requests: int = 0, bytes_read: int = 0) -> None:
        """Count more."""
        with self._lock:
            self.requests += requests
            self.bytes_read += bytes_read


@dataclass(frozen=True, slots=True)
class Target:
    """Which file.

    Attributes:
        address: where the Hub gives it.
        label: how messages name it.
        size: its length in bytes.
        etag: what the Hub says that its content is: the SHA-256 of a large file, git's blob id of a small one.
    """

    address: str
    label: str
    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class _Signed:
    """An address off the Hub that gives the file for some time, to whoever knows it."""

    address: str


class _PassingFailure(Exception):  # noqa: N818 - it never leaves this module
    """What may succeed when tried again: why, and after how many seconds where the server said so."""

    def __init__(self, reason: str, after_s: float | None = None) -> None:
        super().__init__(reason)
        self.after_s = after_s


class Transfer:
    """Fetches ranges of one file; threads may share it.

    Args:
        hub: the connection.
        target: the file.
        traffic: where requests and bytes are counted.
    """

    def __init__(self, hub: Hub, target: Target, traffic: Traffic) -> None:
        self._hub = hub
        self._target = target
        self._traffic = traffic
        self._signed: _Signed | None = None

    def fetch(self, start: int, out: memoryview) -> None:
        """Fill `out` with the bytes from byte `start` on, which the file has.

        Raises:
            HubError: the Hub refuses, gives other bytes than were asked for, or fails again and again.
        """
        filled = failures = 0
        patience = self._hub.patience
        while filled < len(out):
            before = filled
            try:
                for count in self._receive(start + filled, out[filled:]):
                    filled += count
            except _PassingFailure as error:
                failures = 1 if filled > before else failures + 1
                if failures >= patience.attempts or (error.after_s or 0) > patience.longest_demand_s:
                    raise self._given_up(error, failures) from error
                wait_s = min(patience.first_wait_s * 2 ** (failures - 1), patience.longest_wait_s)
                time.sleep(wait_s if error.after_s is None else error.after_s)

    def _receive(self, start: int, out: memoryview) -> Iterator[int]:
        """One request for all of `out`, following redirects; yields how many bytes have come, as they come."""
        with self._answer(start, len(out)) as answer:
            skipped = self._bytes_before(answer, start, len(out))
            filled = 0
            try:
                for chunk in answer.iter_raw():
                    self._traffic.add(bytes_read=len(chunk))
                    wanted = chunk[min(skipped, len(chunk)) :]
                    skipped -= len(chunk) - len(wanted)
                    wanted = wanted[: len(out) - filled]
                    out[filled : filled + len(wanted)] = wanted
                    filled += len(wanted)
                    yield len(wanted)
                    if len(wanted) < len(chunk) and filled == len(out):
                        return
            except _transport_error() as error:
                if filled < len(out):
                    raise _PassingFailure(f"the connection broke: {str(error) or type(error).__name__}") from error
            # A body that came whole is read to its end, so that its connection can be used again.
            if filled < len(out):
                raise _PassingFailure("the body was cut")

    @contextmanager
    def _answer(self, start: int, count: int) -> Iterator[httpx.Response]:
        """The response that has the bytes; its headers are read, its body is not.

        Where a signed address is refused, it is forgotten: the next attempt asks the Hub for another.
        """
        signed = self._signed
        address = signed.address if signed else self._target.address
        for _ in range(_MAX_REDIRECTS):
            with self._request(address, start, count) as answer:
                status = answer.status_code
                if status in _REDIRECTS and "location" in answer.headers:
                    self._check_etag(answer, address)
                    self._leave(answer)
                    address = urljoin(address, answer.headers["location"])
                    if not self._is_hub(address):
                        self._signed = signed = _Signed(address)
                    continue
                if status in _PASSING:
                    raise _PassingFailure(f"status {status}", _demanded_s(answer.headers))
                if status >= 400 and status != 416 and not self._is_hub(address):
                    if self._signed is signed:
                        self._signed = None
                    raise _PassingFailure(f"the signed address was refused: status {status}", 0.0)
                self._check(answer, address)
                yield answer
                return
        raise HubError(
            f"redirects more than {_MAX_REDIRECTS} times", where=self._target.label, hint="check HF_ENDPOINT"
        )

    @contextmanager
    def _request(self, address: str, start: int, count: int) -> Iterator[httpx.Response]:
        from huggingface_hub import get_session  # noqa: PLC0415 - what is local needs no Hub client

        # No compression: ranges are of the file's own bytes. The token is for the Hub alone.
        headers = {"range": f"bytes={start}-{start + count - 1}", "accept-encoding": "identity"}
        if self._is_hub(address):
            headers |= self._hub.headers | _COUNTED
        self._traffic.add(requests=1)
        with telling(self._target.label):
            client = get_session()
            request = client.build_request("GET", address, headers=headers, timeout=self._hub.patience.timeout_s)
            try:
                answer = client.send(request, stream=True, follow_redirects=False)
            except _transport_error() as error:
                raise _PassingFailure(f"cannot be reached: {str(error) or type(error).__name__}") from error
        try:
            yield answer
        finally:
            answer.close()

    def _leave(self, answer: httpx.Response) -> None:
        """Read what little a redirect says, so that its connection can be used again."""
        if int(answer.headers.get("content-length", _MAX_SKIPPED_BYTES)) < _MAX_SKIPPED_BYTES:
            try:
                self._traffic.add(bytes_read=len(answer.read()))
            except _transport_error() as error:
                raise _PassingFailure(f"the connection broke: {str(error) or type(error).__name__}") from error

    def _is_hub(self, address: str) -> bool:
        return _origin(address) == _origin(self._target.address)

    def _check(self, answer: httpx.Response, address: str) -> None:
        """Raise if the answer is neither the bytes nor the whole file."""
        from huggingface_hub import hf_raise_for_status  # noqa: PLC0415 - as in _request

        if answer.status_code == 416:
            raise self._changed(f"it is shorter than {self._target.size} bytes")
        if answer.status_code >= 400:
            with telling(self._target.label):
                answer.read()
                hf_raise_for_status(answer)
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise self._nonsense(f"answers a range with content-encoding {answer.headers['content-encoding']}")
        if self._is_hub(address):
            self._check_etag(answer, address)

    def _check_etag(self, answer: httpx.Response, address: str) -> None:
        """Raise if the Hub says that the file is another than the commit has."""
        if not self._is_hub(address):
            return
        told = answer.headers.get("x-linked-etag") or (answer.headers.get("etag") if answer.status_code < 300 else None)
        etag = (told or "").removeprefix("W/").strip('"')
        if len(etag) in _ETAG_DIGITS and len(etag) == len(self._target.etag) and etag != self._target.etag:
            raise self._changed(f"its ETag is {etag}, and the commit names {self._target.etag}")

    def _bytes_before(self, answer: httpx.Response, start: int, count: int) -> int:
        """How many bytes of the body come before byte `start` of the file."""
        size = self._target.size
        if answer.status_code == 206:
            told = answer.headers.get("content-range", "").removeprefix("bytes").strip()
            span, _, total = told.partition("/")
            if total not in ("*", str(size)):
                raise self._changed(f"it has {total or 'unknown'} bytes, and the commit names {size}")
            if span != f"{start}-{start + count - 1}":
                raise self._nonsense(f"answers bytes {span or 'unknown'}, not {start}-{start + count - 1}")
            return 0
        if answer.status_code != 200:
            raise self._nonsense(f"answers a range with status {answer.status_code}")
        length = answer.headers.get("content-length")
        if length is not None and length != str(size):
            raise self._changed(f"it has {length} bytes, and the commit names {size}")
        if start > _MAX_SKIPPED_BYTES:
            raise self._nonsense("gives no ranges, only whole files")
        return start

    def _changed(self, how: str) -> HubError:
        return HubError(f"is not the file of the commit: {how}", where=self._target.label, hint="try again later")

    def _nonsense(self, what: str) -> HubError:
        return HubError(what, where=self._target.label, hint="check HF_ENDPOINT; or pull it whole: wsmerge pull")

    def _given_up(self, error: _PassingFailure, failures: int) -> HubError:
        demanded = f", and asks to wait {error.after_s:.0f} s" if error.after_s else ""
        return HubError(
            f"cannot be read, after {failures} attempts: {error}{demanded}",
            where=self._target.label,
            hint="check the network, and try again later",
        )


def _transport_error() -> type[Exception]:
    from huggingface_hub import utils  # noqa: PLC0415 - as in Transfer._request

    kind: type[Exception] = utils.httpx.TransportError  # type: ignore[attr-defined]  # made when asked for
    return kind


def _origin(address: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(address)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _demanded_s(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait that the server asks for: by `Retry-After`, or by the limit it says is used up."""
    from huggingface_hub import utils  # noqa: PLC0415 - as in Transfer._request

    after = headers.get("retry-after", "").strip()
    if after.isdigit():
        return float(after)
    if after:
        try:
            return max(0.0, (parsedate_to_datetime(after) - datetime.now(UTC)).total_seconds())
        except (ValueError, TypeError):  # no date, or one without a time zone
            return None
    limit = utils.parse_ratelimit_headers(headers)  # type: ignore[attr-defined]  # made when asked for
    return float(limit.reset_in_seconds) if limit and limit.remaining == 0 else None
