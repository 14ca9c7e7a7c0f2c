"""What stores of zarr and obstore raise where they cannot be reached, refuse or are damaged, as errors of wsmerge."""

from __future__ import annotations

import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from wsmerge.errors import OutputError, TensorFileError

__all__ = ["obstore_message", "store_reading", "store_writing"]

_READ_AGAIN: Final = "check that the store is there and may be read, and try again; or copy it again from its source"
_WRITE_AGAIN: Final = "check that the store is there, has room and may be written, and try again"


@contextmanager
def store_reading(where: str) -> Iterator[None]:
    """Read from a zarr store in here.

    Raises:
        TensorFileError: it cannot be reached, refuses, or is damaged; about `where`.
    """
    try:
        yield
    except _failures() as error:
        raise TensorFileError(f"cannot be read: {_message(error)}", where=where, hint=_READ_AGAIN) from error


@contextmanager
def store_writing(where: str) -> Iterator[None]:
    """Write into a zarr store in here.

    Raises:
        OutputError: it cannot be reached, refuses, or has no room; about `where`.
    """
    try:
        yield
    except _failures() as error:
        raise OutputError(f"cannot be written: {_message(error)}", where=where, hint=_WRITE_AGAIN) from error


def obstore_message(error: Exception) -> str:
    """What obstore says, in one line, without the dump of its insides that follows."""
    return " ".join(str(error).partition("\n\nDebug source")[0].split())


def _failures() -> tuple[type[Exception], ...]:
    """Errors of the system (fsspec's are such), of zip files, and of obstore where somebody has imported it."""
    obstore = sys.modules.get("obstore.exceptions")
    known = (OSError, zipfile.BadZipFile, zlib.error)
    return (*known, obstore.BaseError) if obstore else known


def _message(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or obstore_message(error) or type(error).__name__
