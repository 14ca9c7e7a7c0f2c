"""Ctrl-C and SIGTERM, held back where an exception at any instruction would do harm.

Python raises KeyboardInterrupt between any two instructions of the main thread. If that thread holds a lock that its workers
need (the standard library's pools and events take such locks while they start and wait), the lock is never released: the
workers wait for ever, and so does whoever joins them. A training step, too, must not end half done.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

__all__ = ["Interrupts"]

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_REPLACED: Final = (signal.default_int_handler, signal.SIG_DFL)
"""Handlers that end the work: an ignored signal stays ignored, and a handler of the user's own is left alone."""


class Interrupts:
    """A context manager that notes the first signal; a second one raises KeyboardInterrupt at once.

    In other threads than the main one it notes none, since Python gives them no signals.

    Args:
        on_signal: called once, with the first signal, between two instructions of the main thread: it must take no lock that
            the main thread may hold. `queue.SimpleQueue.put` takes none.

    Attributes:
        seen: whether a signal came.
    """

    def __init__(self, on_signal: Callable[[], None] | None = None) -> None:
        self.seen = False
        self._on_signal = on_signal
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:  # noqa: PYI034 - nothing derives from it
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) in _REPLACED:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in reversed(self._before.items()):  # SIGINT last: with it, Ctrl-C raises again
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal came."""
        if self.seen:
            raise KeyboardInterrupt

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.check()
        self.seen = True
        if self._on_signal is not None:
            self._on_signal()
