"""Files that survive a crash: written beside their place, synced, and renamed into it.

A rename is atomic, but only after fsync of the file and of the folder that holds it is it sure to outlast a power cut.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import hashlib
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from wsmerge.core.ranges import RangeFile
from wsmerge.errors import OutputError, WsmergeError

__all__ = [
    "copy_synced",
    "create_synced",
    "exchange",
    "file_sha256",
    "make_folder",
    "refuse_lfs_pointer",
    "refuse_lfs_pointers",
    "replace_synced",
    "staged_folder",
    "sync_folder",
    "temporary_folder",
]

_CHUNK_BYTES: Final = 1 << 20
_NUMBER_DIGITS: Final = 32
_OLD_S: Final = 3600
_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2
_NO_EXCHANGE: Final = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP})
_LFS_POINTER: Final = b"version https://git-lfs.github.com/spec/"
_LFS_POINTER_BYTES: Final = 1024  # the format's own limit
_LFS_MESSAGE: Final = "Git LFS pointer in place of the file: the repository was cloned without its large files"
_LFS_HINT: Final = "run `git lfs pull` in the clone, or download the file itself"


def refuse_lfs_pointer(start: bytes, where: str, kind: type[WsmergeError]) -> None:
    """Raise `kind` if a file that begins with `start` is what Git leaves where a large file was not fetched."""
    if start.startswith(_LFS_POINTER):
        raise kind(f"is a {_LFS_MESSAGE}", where=where, hint=_LFS_HINT)


def refuse_lfs_pointers(paths: Iterable[Path], kind: type[WsmergeError]) -> None:
    """Raise `kind` if files among `paths` are such pointers, with all their names; what is not there is passed over."""
    found = []
    for path in paths:
        if path.is_file() and path.stat().st_size <= _LFS_POINTER_BYTES:
            with path.open("rb") as file:
                if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
                    found.append(path)
    if found:
        names = ", ".join(path.name for path in found)
        raise kind(f"holds a {_LFS_MESSAGE} ({names})", where=str(found[0].parent), hint=_LFS_HINT)


def sync_folder(path: Path) -> None:
    """Wait until the entries of folder `path` are on the disk: files made, renamed and removed in it."""
    _sync(path)


def create_synced(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Write a new file and sync it; its folder is the caller's to sync."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_synced(path: Path, data: bytes) -> None:
    """Write a file in place of the one at `path`, if any: a crash leaves the old bytes or the new ones."""
    _sweep(path.parent, f".{path.name}.")
    staged = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        create_synced(staged, data)
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)
    sync_folder(path.parent)


def copy_synced(source: RangeFile, target: Path) -> str:
    """Copy the bytes of `source` to the new file `target`, sync it, and return their SHA-256."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(min(source.size, _CHUNK_BYTES)))
    with target.open("xb") as written:
        for start in range(0, source.size, _CHUNK_BYTES):
            chunk = buffer[: source.size - start]
            source.read_into(start, chunk)
            digest.update(chunk)
            written.write(chunk)
        written.flush()
        os.fsync(written.fileno())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of the bytes of `path`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(path: Path) -> None:
    """Make folder `path` and its missing parents, each entry synced; one that exists is fine."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync_folder(path.parent)


@contextmanager
def temporary_folder(parent: Path, prefix: str, *, mode: int = 0o777) -> Iterator[Path]:
    """An empty folder in `parent` that is gone afterwards, unless it was renamed.

    Those of the same prefix that killed processes left go first. A running process holds a lock on its own.

    Raises:
        OSError: it cannot be made.
    """
    _sweep(parent, prefix)
    folder = parent / f"{prefix}{uuid.uuid4().hex}.partial"
    held = -1
    try:
        while held < 0:
            folder.mkdir(mode, parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # taken for a leftover before it was opened
                held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            if held < 0:
                continue
            with suppress(OSError):  # some file systems of clusters know no locks; nobody sweeps there
                fcntl.flock(held, fcntl.LOCK_EX)
            if not folder.exists():  # or before it was locked
                os.close(held)
                held = -1
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if held >= 0:
            os.close(held)


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target`, which becomes `target` when the body ends without an error.

    Raises:
        OutputError: `target` exists and is no empty folder, or the file system refuses.
    """
    try:
        _check_free(target)
        with temporary_folder(target.parent, f".{target.name}.") as staged:
            yield staged
            for path in staged.rglob("*"):
                _sync(path)
            sync_folder(staged)
            staged.rename(target)
            sync_folder(target.parent)
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror or error}", where=str(target)) from error


def exchange(one: Path, other: Path) -> bool:
    """Let two entries of one file system change their names in one step; False where the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


def _sweep(parent: Path, prefix: str) -> None:
    """Delete what killed processes of this user left under `prefix`; what cannot be deleted is only room."""
    for path in parent.glob(f"{glob.escape(prefix)}{'?' * _NUMBER_DIGITS}.partial"):
        with suppress(OSError):
            status = path.lstat()
            if status.st_uid != os.geteuid():
                continue
            if stat.S_ISDIR(status.st_mode):
                _delete_unless_held(path)
            elif status.st_mtime < time.time() - _OLD_S:  # a file is there for moments
                path.unlink()


def _delete_unless_held(folder: Path) -> None:
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
    finally:
        os.close(held)


def _check_free(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OutputError(
            "exists and is no empty folder", where=str(target), hint="choose another folder, or remove this one"
        )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
