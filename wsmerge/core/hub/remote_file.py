"""One file on the Hub as a `RangeFile`: read by byte range, ahead or exactly."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final

from wsmerge.core.closing import Closing
from wsmerge.core.hub.connection import Hub
from wsmerge.core.hub.transfer import Target, Traffic, Transfer
from wsmerge.core.hub.windows import WINDOW_BYTES, Stretch, Windows
from wsmerge.errors import HubError

__all__ = ["RemoteFile", "Target", "Traffic", "cells", "coalesced"]

_GAP_BYTES: Final = 16 << 10
_SMALL_BYTES: Final = WINDOW_BYTES // 2


class RemoteFile(Closing):
    """A file of a commit on the Hub, read by range over HTTP; nothing is asked until it is read. Threads may share it.

    Args:
        hub: the connection.
        target: the file.
        traffic: where requests and bytes are counted.
        windows: where stretches of it are kept.
        ahead: whether what follows is fetched and kept too; else exactly what is read, until `expect` says more.

    Attributes:
        label: how messages name it.
        size: its length in bytes.
        etag: what the Hub says that its content is.
    """

    def __init__(self, hub: Hub, target: Target, traffic: Traffic, windows: Windows, *, ahead: bool = True) -> None:
        self.label = target.label
        self.size = target.size
        self.etag = target.etag
        self._transfer = Transfer(hub, target, traffic)
        self._windows = windows
        self._ahead = ahead
        self._expected: list[tuple[int, int]] | None = None
        self._cells: list[int] = []
        self._narrow_cells: list[int] = []
        self._closed = False

    def expect(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Say which ranges `(first byte, byte behind the last)` will be read, and that nothing else will be.

        Neighbours are fetched together, and nothing beside them.
        """
        self._expected = coalesced(ranges)
        self._ahead = True

    def divide(self, starts: Iterable[int]) -> None:
        """Say where parts begin that will be read whole, in any order, each by several threads: tensors.

        Small neighbours are fetched together, unless it shows that they are not read together.
        """
        bounds = sorted({0, *starts, self.size})
        self._cells = cells(bounds, join=True)
        self._narrow_cells = cells(bounds, join=False)

    def read_into(self, start: int, out: memoryview) -> None:
        """Fill `out` with the bytes from byte `start` on.

        Raises:
            HubError: the file ends before `out` is full, or cannot be read.
        """
        if self._closed:
            raise HubError("is closed", where=self.label)
        if start < 0 or start + len(out) > self.size:
            raise HubError(f"has {self.size} bytes, and {start} to {start + len(out)} were asked for", where=self.label)
        if not len(out):
            return
        if self._ahead:
            self._windows.read_into(self, self._transfer.fetch, start, out, self._stretch)
        else:
            self._transfer.fetch(start, out)

    def close(self) -> None:
        """Forget what is in memory; reading afterwards is an error."""
        self._closed = True
        self._windows.drop(self)

    def _stretch(self, start: int, count: int) -> Stretch:
        """What to fetch together when `count` bytes from byte `start` on are asked for."""
        if self._expected is not None:
            place = bisect_right(self._expected, (start, self.size)) - 1
            end = self._expected[place][1] if place >= 0 else 0
            return Stretch(start, min(max(end, start + count), start + WINDOW_BYTES), whole=True)
        if not self._cells:
            return Stretch(start, self.size)
        bounds = self._narrow_cells if self._windows.is_wasteful(self) else self._cells
        place = bisect_right(bounds, start) - 1
        return Stretch(bounds[place], bounds[place + 1], whole=True)


def coalesced(ranges: Iterable[tuple[int, int]], gap_bytes: int = _GAP_BYTES) -> list[tuple[int, int]]:
    """`ranges` in order, those that overlap or lie at most `gap_bytes` apart as one."""
    runs: list[tuple[int, int]] = []
    for begin, end in sorted(ranges):
        if runs and begin - runs[-1][1] <= gap_bytes:
            runs[-1] = runs[-1][0], max(runs[-1][1], end)
        else:
            runs.append((begin, end))
    return runs


def cells(bounds: Sequence[int], *, join: bool) -> list[int]:
    """Bounds of what is fetched together: `WINDOW_BYTES` at most.

    Args:
        bounds: of the parts of a file, in order: its first byte, where parts begin, and its size.
        join: whether small parts are joined with their neighbours.
    """
    found = [bounds[0]]
    for begin, end in pairwise(bounds):
        fits = join and begin != found[-1] and end - found[-1] <= WINDOW_BYTES and begin - found[-1] < _SMALL_BYTES
        if begin != found[-1] and not fits:
            found.append(begin)
        found += range(found[-1] + WINDOW_BYTES, end, WINDOW_BYTES)
    found.append(bounds[-1])
    return found
