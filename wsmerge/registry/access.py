"""What the system refuses while a store is read, told as one error with a next step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wsmerge.errors import StoreError

__all__ = ["refuse_file_root", "store_reading"]

_ELSEWHERE = "give another folder with --store or WSMERGE_HOME"


@contextmanager
def store_reading(path: Path) -> Iterator[None]:
    """Read `path` of a store in here. What is not there stays a `FileNotFoundError`, which the reader knows to take.

    Raises:
        StoreError: a file where a folder should be, no permission, or a broken disk; with the path.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except NotADirectoryError as error:
        raise _no_folder(_first_file(path)) from error
    except OSError as error:
        raise StoreError(
            f"the store cannot be read: {error.strerror or error}",
            where=str(error.filename or path),
            hint=f"make it readable, or {_ELSEWHERE}",
        ) from error


def refuse_file_root(root: Path) -> None:
    """Refuse a store whose folder, or a folder above it, is a file.

    Raises:
        StoreError: it is.
    """
    with store_reading(root):
        file = _first_file(root)
        if file.exists() and not file.is_dir():
            raise _no_folder(file)


def _no_folder(file: Path) -> StoreError:
    return StoreError("is a file, and a store is a folder", where=str(file), hint=_ELSEWHERE)


def _first_file(path: Path) -> Path:
    """The first of `path` and the folders above it, from the top, that is there and no folder; `path` if there is none."""
    above = (*reversed(path.parents), path)
    return next((part for part in above if part.exists() and not part.is_dir()), path)
