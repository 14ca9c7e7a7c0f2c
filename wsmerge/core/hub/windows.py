"""A few stretches of remote files in memory, so that small reads beside each other do not cost a request each."""

from __future__ import annotations

import mmap
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import Final

__all__ = ["KEPT_BYTES", "WINDOW_BYTES", "Stretch", "Windows"]

WINDOW_BYTES: Final = 16 << 20
"""Bytes of the longest stretch, which is fetched by one request."""

KEPT_BYTES: Final = 4 * WINDOW_BYTES
"""Bytes that are kept of one repository's files, unless it is said otherwise."""

_FIRST_BYTES: Final = 64 << 10
_GROWTH: Final = 8
_MOST_WINDOWS: Final = 128
_REMEMBERED_ENDS: Final = 32

Fetch = Callable[[int, memoryview], None]


@dataclass(frozen=True, slots=True)
class Stretch:
    """What to fetch together.

    Attributes:
        begin: its first byte.
        end: the byte behind its last one, or before which it has to end.
        whole: whether all of it is fetched; else as much as reading in order suggests.
    """

    begin: int
    end: int
    whole: bool = False


@dataclass(eq=False, slots=True)
class _Window:
    """Bytes `begin` to `end` of one file, there once `ready` is set unless `failed`.

    Its pages go back to the system with it, which those of a `bytearray` of this size need not. `judged` says that it was
    asked for as a whole, so that leaving it unread is a waste.
    """

    owner: object
    begin: int
    end: int
    data: mmap.mmap
    ready: Event = field(default_factory=Event)
    failed: bool = False
    used_bytes: int = 0
    judged: bool = False


class Windows:
    """Stretches of several files, the ones used last; threads share them.

    Unless a file says what to fetch together, a stretch is as long as what is asked for, and where reading goes on behind
    it the next is eight times as long: reading in order costs few requests, reading here and there fetches little in vain.
    What is asked for at once and is longer than the longest stretch goes past the windows.

    Attributes:
        kept_bytes: what all stretches together take at most.
    """

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self.kept_bytes = kept_bytes
        self._held_bytes = 0
        self._lock = Lock()
        self._windows: OrderedDict[_Window, None] = OrderedDict()
        self._ends: OrderedDict[tuple[object, int], int] = OrderedDict()
        self._wasteful: set[object] = set()

    def read_into(
        self, owner: object, fetch: Fetch, start: int, out: memoryview, stretch_at: Callable[[int, int], Stretch]
    ) -> None:
        """Fill `out` from byte `start` of a file on.

        Args:
            owner: which file.
            fetch: fills a buffer from a byte of the file on.
            start: the first byte.
            out: what to fill.
            stretch_at: what to fetch together when a byte and so many behind it are asked for.
        """
        filled = 0
        while filled < len(out):
            at, missing = start + filled, len(out) - filled
            window, is_mine = self._claim(owner, at, missing, stretch_at(at, missing))
            if window is None:
                fetch(at, out[filled:])
                return
            if is_mine:
                self._fill(window, fetch)
            else:
                window.ready.wait()
            if not window.failed:
                part = memoryview(window.data)[at - window.begin : at - window.begin + missing]
                out[filled : filled + len(part)] = part
                window.used_bytes += len(part)
                filled += len(part)

    def is_wasteful(self, owner: object) -> bool:
        """Whether a stretch of this file was given up of which less than half had been read."""
        return owner in self._wasteful

    def drop(self, owner: object) -> None:
        """Forget the stretches of one file."""
        with self._lock:
            for window in [window for window in self._windows if window.owner is owner]:
                self._forget(window)
            self._wasteful.discard(owner)

    def _claim(self, owner: object, at: int, missing: int, stretch: Stretch) -> tuple[_Window | None, bool]:
        """The stretch that has byte `at`, and whether it is for the caller to fill; None where it should fetch by itself."""
        with self._lock:
            for window in reversed(self._windows):
                if window.owner is owner and window.begin <= at < window.end:
                    self._windows.move_to_end(window)
                    return window, False
            before = self._ends.pop((owner, at), 0)
            if missing >= WINDOW_BYTES:
                self._remember(owner, at + missing, WINDOW_BYTES)
                return None, False
            if not stretch.whole:
                stretch = _suggested(at, missing, stretch, before)
            begin, end = self._free_part(owner, at, stretch)
            window = _Window(owner, begin, end, mmap.mmap(-1, end - begin), judged=stretch.whole)
            self._windows[window] = None
            self._held_bytes += end - begin
            self._remember(owner, end, end - begin)
            self._make_room()
            return window, True

    def _free_part(self, owner: object, at: int, stretch: Stretch) -> tuple[int, int]:
        """The part of `stretch` around byte `at` that no other stretch has."""
        others = [window for window in self._windows if window.owner is owner]
        begin = max([stretch.begin, *(window.end for window in others if window.end <= at)])
        end = min([stretch.end, *(window.begin for window in others if window.begin > at)])
        return begin, end

    def _make_room(self) -> None:
        while len(self._windows) > 1 and (self._held_bytes > self.kept_bytes or len(self._windows) > _MOST_WINDOWS):
            oldest = next(iter(self._windows))
            if oldest.judged and oldest.ready.is_set() and 2 * oldest.used_bytes < oldest.end - oldest.begin:
                self._wasteful.add(oldest.owner)
            self._forget(oldest)

    def _forget(self, window: _Window) -> None:
        del self._windows[window]
        self._held_bytes -= window.end - window.begin

    def _remember(self, owner: object, end: int, length: int) -> None:
        self._ends[owner, end] = length
        while len(self._ends) > _REMEMBERED_ENDS:
            self._ends.popitem(last=False)

    def _fill(self, window: _Window, fetch: Fetch) -> None:
        try:
            fetch(window.begin, memoryview(window.data))
        except BaseException:
            window.failed = True
            with self._lock:
                if window in self._windows:
                    self._forget(window)
            raise
        finally:
            window.ready.set()


def _suggested(at: int, missing: int, stretch: Stretch, before: int) -> Stretch:
    """What to fetch where the last stretch, if reading goes on behind it, had `before` bytes."""
    length = min(max(missing, _FIRST_BYTES, before * _GROWTH), WINDOW_BYTES)
    return Stretch(at, min(at + length, max(stretch.end, at + missing)))
