"""One process at a time in a folder that long work goes on in."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from wsmerge.core.files import make_folder
from wsmerge.errors import OutputError

__all__ = ["alone_in", "lock_at_once"]

_NO_LOCKS: Final = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK})
"""What file systems answer that know no locks, as some of clusters do; nobody is kept out there."""


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a folder, made if missing, until the block ends. The lock is on the folder itself and ends with the process.

    Raises:
        OutputError: another process holds it, or it cannot be made.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError("exists and is no folder", where=str(folder), hint="choose another folder")
    try:
        make_folder(folder)
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror}", where=str(folder)) from error
    try:
        try:
            lock_at_once(held)
        except BlockingIOError as error:
            raise OutputError(
                "another process works in this folder", where=str(folder), hint="wait for it, or choose another folder"
            ) from error
        yield
    finally:
        os.close(held)


def lock_at_once(descriptor: int) -> None:
    """Lock an open folder until it is closed, where its file system knows locks.

    Raises:
        BlockingIOError: another process holds it.
        OSError: the system refuses.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
