"""What nothing in a store uses any more, and deleting it."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wsmerge.registry.paths import REMOVED_PREFIX, StorePaths

__all__ = ["GarbageReport", "collect_garbage"]


@dataclass(frozen=True, slots=True)
class GarbageReport:
    """What `gc` found, or deleted.

    Attributes:
        dry_run: whether it only looked.
        removed_versions: folders of removed versions.
        temporaries: leftovers of processes that were killed.
        blobs: blobs that no version uses.
        freed_bytes: bytes on the disk that deleting all of this frees.
    """

    dry_run: bool
    removed_versions: int
    temporaries: int
    blobs: int
    freed_bytes: int


def collect_garbage(paths: StorePaths, removed: Sequence[Path], *, dry_run: bool, min_age_s: float) -> GarbageReport:
    """Find garbage and, unless `dry_run`, delete it.

    Args:
        paths: of the store.
        removed: folders of versions that the log calls removed and a crash left in place.
        dry_run: only count.
        min_age_s: temporary files touched more recently are left alone.
    """
    temporary = list(paths.temporary.iterdir()) if paths.temporary.is_dir() else []
    trash = [*removed, *(path for path in temporary if path.name.startswith(REMOVED_PREFIX))]
    oldest_kept = time.time() - min_age_s
    leftovers = [path for path in temporary if path not in trash and _last_touched(path) < oldest_kept]
    links = _Links()
    for path in _files([*trash, *leftovers]):
        links.add(path)
    blobs = [path for path in _files([paths.blobs]) if links.is_last_but_one(path)]
    for path in blobs:
        links.add(path)
    if not dry_run:
        _delete([*trash, *leftovers])
        for blob in blobs:
            # Counted again: a publish may have begun to use it since.
            if _status(blob).st_nlink == 1:
                blob.unlink(missing_ok=True)
    return GarbageReport(dry_run, len(trash), len(leftovers), len(blobs), links.freed_bytes)


class _Links:
    """Names that are to go, counted by the file they name: bytes are free when the last name of a file is gone."""

    def __init__(self) -> None:
        self._going = Counter[int]()
        self._files: dict[int, os.stat_result] = {}

    def add(self, path: Path) -> None:
        status = _status(path)
        self._going[status.st_ino] += 1
        self._files[status.st_ino] = status

    def is_last_but_one(self, path: Path) -> bool:
        """Whether every other name of the file goes."""
        status = _status(path)
        return status.st_nlink == self._going[status.st_ino] + 1

    @property
    def freed_bytes(self) -> int:
        return sum(status.st_size for inode, status in self._files.items() if status.st_nlink == self._going[inode])


_GONE: Final = os.stat_result((0,) * 10)


def _status(path: Path) -> os.stat_result:
    """Of `path`, all zeros where another process has just taken it away."""
    try:
        return path.stat()
    except FileNotFoundError:
        return _GONE


def _files(roots: Iterable[Path]) -> Iterator[Path]:
    for root in roots:
        if root.is_file():
            yield root
        for folder, _, names in os.walk(root):
            yield from (Path(folder, name) for name in names)


def _last_touched(path: Path) -> float:
    """Seconds since the epoch of the newest change to `path` or anything in it."""
    # ctime too: linking a blob into a folder leaves the mtime of its bytes as old as they are.
    statuses = [_status(path), *map(_status, _files([path]))]
    return max(max(status.st_mtime, status.st_ctime) for status in statuses)


def _delete(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
