"""The output's tensor files, written block by block at known offsets.

Where the file system allows it, whole pages go to the disk directly (O_DIRECT): they do not push the inputs out of the
page cache, and several are in flight at once. Everything else takes the plain way.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from wsmerge.core.closing import Closing
from wsmerge.core.tensor_file import PAGE_BYTES
from wsmerge.engine.layout import Block, OutputShard
from wsmerge.errors import OutputError, WsmergeError

__all__ = ["ShardFiles", "output_failure"]

_NO_DIRECT: Final = -1


class ShardFiles(Closing):
    """The open tensor files of an output folder; a context manager. Threads may write different blocks at once."""

    def __init__(self, folder: Path, shards: Sequence[OutputShard]) -> None:
        self._paths = [folder / shard.file for shard in shards]
        self._plain: list[int] = []
        self._direct: list[int] = []
        self._refused: list[int] = []
        try:
            for path, shard in zip(self._paths, shards, strict=True):
                plain = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
                self._plain.append(plain)
                self._direct.append(_open_direct(path))
                os.ftruncate(plain, shard.file_bytes)
        except OSError as error:
            self.close()
            raise output_failure(error, folder) from error

    def write(self, block: Block, data: memoryview) -> None:
        """Write all of `data` (page-aligned memory) at the place of `block`."""
        direct = self._direct[block.shard]
        whole_pages = len(data) % PAGE_BYTES == 0 and block.offset % PAGE_BYTES == 0
        fd = direct if direct != _NO_DIRECT and whole_pages else self._plain[block.shard]
        try:
            _write_all(fd, data, block.offset)
        except OSError as error:
            if fd != direct or error.errno != errno.EINVAL:
                raise output_failure(error, self._paths[block.shard]) from error
            # Some file systems open a file for direct writes and then refuse them.
            self._direct[block.shard] = _NO_DIRECT
            self._refused.append(fd)  # another thread may be using it; closed with the rest
            self.write(block, data)

    def read(self, block: Block) -> bytes:
        """What lies at the place of `block` now."""
        return os.pread(self._plain[block.shard], block.nbytes, block.offset)

    def sync(self) -> None:
        """Return when all files are on the disk."""
        for path, fd in zip(self._paths, self._plain, strict=True):
            try:
                os.fsync(fd)
            except OSError as error:
                raise output_failure(error, path) from error

    def close(self) -> None:
        """Close all files."""
        for fd in {*self._plain, *self._direct, *self._refused} - {_NO_DIRECT}:
            os.close(fd)
        self._plain, self._direct, self._refused = [], [], []


def output_failure(error: OSError, path: Path) -> WsmergeError:
    """The error to raise for an operation on the output that the system refused."""
    hints = {
        errno.ENOSPC: "free some room, or write to another disk",
        errno.EDQUOT: "your quota is used up: free some room, or write to another disk",
        errno.EACCES: "choose a folder that you may write to",
        errno.EPERM: "choose a folder that you may write to",
        errno.EROFS: "choose a folder on a file system that is not read-only",
        errno.EFBIG: "write smaller shards with --max-shard-size, or lift the file-size limit",
    }
    return OutputError(
        f"cannot be written: {error.strerror}",
        where=str(path),
        hint=hints.get(error.errno or 0, "see the system's message"),
    )


def _open_direct(path: Path) -> int:
    flag = getattr(os, "O_DIRECT", 0)  # not every platform has it
    if not flag:
        return _NO_DIRECT
    try:
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | flag)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOTSUP):
            return _NO_DIRECT
        raise


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    written = 0
    while written < len(data):
        # A partial direct write ends on a page, so what is left stays aligned.
        written += os.pwrite(fd, data[written:], offset + written)
