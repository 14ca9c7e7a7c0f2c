"""Files that are read by byte range: on a disk here, and by the same protocol wherever else a file can lie."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

from wsmerge.core.closing import Closing
from wsmerge.core.opening import MAX_WHOLE_BYTES, open_regular
from wsmerge.errors import TensorFileError

__all__ = ["ExpectingFile", "LocalFile", "MemoryFile", "RangeFile", "read_all", "read_range"]

_CLOSED: Final = -1


class RangeFile(Protocol):
    """One file whose bytes can be read from any place. Threads may share it."""

    @property
    def label(self) -> str:
        """How messages name the file: its path or address."""

    @property
    def size(self) -> int:
        """Its length in bytes."""

    def read_into(self, start: int, out: memoryview) -> None:
        """Fill `out` with the bytes from byte `start` on.

        Raises:
            WsmergeError: the file cannot be read, or ends before `out` is full.
        """

    def close(self) -> None:
        """Let go of what is held open; reading afterwards is an error."""


@runtime_checkable
class ExpectingFile(Protocol):
    """A file that reads better when it knows what will be read."""

    def expect(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Say which ranges `(first byte, byte behind the last)` will be read, and that nothing else will be."""


class LocalFile(Closing):
    """A file on a disk, read by position.

    Args:
        path: the file.
        within: a folder above it that links must not leave; see `open_regular`.

    Raises:
        TensorFileError: it cannot be opened, or is no regular file.
    """

    def __init__(self, path: Path, *, within: Path | None = None) -> None:
        self.path = path
        try:
            self._fd = open_regular(path, within=within)
        except OSError as error:
            raise TensorFileError(f"cannot be opened: {error.strerror}", where=str(path)) from error
        self.size = os.fstat(self._fd).st_size

    @property
    def label(self) -> str:
        """The path."""
        return str(self.path)

    def read_into(self, start: int, out: memoryview) -> None:
        """Fill `out` with the bytes from byte `start` on.

        Raises:
            TensorFileError: the disk fails, or the file was shortened meanwhile.
        """
        filled = 0
        while filled < len(out):
            try:
                count = os.preadv(self._fd, [out[filled:]], start + filled)
            except OSError as error:
                raise TensorFileError(f"cannot be read: {error.strerror}", where=str(self.path)) from error
            if count == 0:
                raise TensorFileError("ended while it was read: it was shortened meanwhile", where=str(self.path))
            filled += count

    def fileno(self) -> int:
        """The file's descriptor; of a closed one none that can be read."""
        return self._fd

    def close(self) -> None:
        """Close the file; reading afterwards is an error."""
        if self._fd != _CLOSED:
            os.close(self._fd)
            self._fd = _CLOSED


class MemoryFile:
    """Bytes in memory as a file.

    Args:
        label: how messages name it.
        size: how many bytes there are.
        load: gives them; called when the first of them is read.
    """

    def __init__(self, label: str, size: int, load: Callable[[], bytes]) -> None:
        self.label = label
        self.size = size
        self._load = load
        self._data: bytes | None = None

    def read_into(self, start: int, out: memoryview) -> None:
        """Fill `out` with the bytes from byte `start` on.

        Raises:
            TensorFileError: there are not so many.
        """
        if self._data is None:
            self._data = self._load()
        if start + len(out) > len(self._data):
            raise TensorFileError(f"ends at byte {len(self._data)}", where=self.label)
        out[:] = self._data[start : start + len(out)]

    def close(self) -> None:
        """Nothing is held open."""


def read_range(file: RangeFile, start: int, count: int) -> bytes:
    """`count` bytes of `file` from byte `start` on."""
    data = bytearray(count)
    file.read_into(start, memoryview(data))
    return bytes(data)


def read_all(file: RangeFile, limit: int = MAX_WHOLE_BYTES) -> bytes:
    """All bytes of `file`, which is closed then.

    Raises:
        TensorFileError: it has more than `limit`, or cannot be read.
    """
    try:
        if file.size > limit:
            raise TensorFileError(
                f"has {file.size:,} bytes, more than the {limit:,} that such a file has at most", where=file.label
            )
        return read_range(file, 0, file.size)
    finally:
        file.close()
