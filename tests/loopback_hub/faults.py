"""What goes wrong on purpose: a fault names the requests it meets and what then happens to them.

lost_response  the request is carried out, then the connection is closed without an answer
drop_before    the connection is closed before anything is done
status         `status` is answered and nothing is done (429 says `Retry-After: 0`)
cut            `after_bytes` bytes of the answer's body are sent, then the connection is closed
wrong_byte     the byte at `after_bytes` of the answer's body is flipped
stale_head     branches are seen one commit behind
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from typing import Literal

__all__ = ["Fault", "Faults", "Kind"]

Kind = Literal["lost_response", "drop_before", "status", "cut", "wrong_byte", "stale_head"]


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Args:
        kind: what happens.
        method: the HTTP method it meets; None: any.
        path: a regular expression that is searched in the decoded path, without the query.
        status: the status that is answered (kind "status").
        times: how often it happens; None: always.
        skip: how many matching requests pass before.
        after_bytes: where the body is cut or changed.
    """

    kind: Kind
    method: str | None = None
    path: str = ""
    status: int = 503
    times: int | None = 1
    skip: int = 0
    after_bytes: int = 0

    def matches(self, method: str, path: str) -> bool:
        """Whether a request is one that this fault meets."""
        return (self.method is None or self.method == method) and re.search(self.path, path) is not None


class Faults:
    """The faults of one server, asked at each request; safe under threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending: list[_Pending] = []
        self.fired: list[tuple[Fault, str, str]] = []

    def add(self, fault: Fault) -> None:
        """Let `fault` happen; the fault that was added first is asked first."""
        with self._lock:
            self._pending.append(_Pending(fault, fault.skip, fault.times))

    def clear(self) -> None:
        """Let nothing more go wrong."""
        with self._lock:
            self._pending.clear()

    def take(self, method: str, path: str) -> Fault | None:
        """The fault of this request, which is then used up once; every match counts for `skip`."""
        with self._lock:
            for pending in self._pending:
                if pending.fault.matches(method, path) and pending.due():
                    self.fired.append((pending.fault, method, path))
                    return pending.fault
        return None


@dataclass
class _Pending:
    fault: Fault
    skip: int
    left: int | None

    def due(self) -> bool:
        if self.skip:
            self.skip -= 1
            return False
        if self.left is None:
            return True
        self.left -= 1
        return self.left >= 0
