"""Order among threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Stopped", "Turnstile"]


class Stopped(Exception):  # noqa: N818 - a signal among workers, not an error
    """Another worker failed, or the run was interrupted."""


class Turnstile:
    """Lets threads through one at a time, in the order of their numbers, which are given out in order too."""

    def __init__(self, first: int) -> None:
        self._next = first
        self._condition = threading.Condition()
        self._stopped = False

    @contextmanager
    def turn(self, number: int) -> Iterator[None]:
        """Wait for `number` to be up, and let the next one through when the block ends."""
        with self._condition:
            self._condition.wait_for(lambda: self._stopped or self._next == number)
            if self._stopped:
                raise Stopped
        yield  # outside the lock: nobody else's number is up
        with self._condition:
            self._next += 1
            self._condition.notify_all()

    def stop(self) -> None:
        """Let nobody through any more."""
        with self._condition:
            self._stopped = True
            self._condition.notify_all()
