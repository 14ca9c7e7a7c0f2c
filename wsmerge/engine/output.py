"""The output folder: filled beside its place, and put there whole by one rename.

    OUT.partial/     while the merge runs; after a kill, what the next run resumes from
    OUT/             appears when every file is written and synced

A merge that fails or is interrupted removes OUT.partial; only a killed one leaves it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from wsmerge.core.files import sync_folder
from wsmerge.engine.journal import JOURNAL_FILE, is_resumable
from wsmerge.engine.plan import MergePlan
from wsmerge.engine.sink import output_failure
from wsmerge.errors import OutputError, UsageError

__all__ = ["REPORT_FILE", "OutputFolder", "check_output"]

REPORT_FILE = "wsmerge.json"


def check_output(out: Path, inputs: Iterable[Path], needed_bytes: int, *, overwrite: bool) -> None:
    """Raise if `out` cannot become the output, before anything is read or written.

    Raises:
        UsageError: `out` is one of the inputs, or one contains the other.
        OutputError: it exists and may not be replaced, its folder cannot be written, or the disk lacks the room.
    """
    place = out.absolute()
    for item in inputs:
        theirs = item.resolve()
        if place.resolve() == theirs or theirs in place.resolve().parents or place.resolve() in theirs.parents:
            raise UsageError(
                f"the output would lie over the input {item}", where=str(out), hint="choose another folder"
            )
    if place.exists():
        _check_replaceable(out, overwrite=overwrite)
    anchor = next(parent for parent in place.parents if parent.exists())
    if not anchor.is_dir():
        raise OutputError("cannot hold the output: it is no folder", where=str(anchor), hint="choose another place")
    if not os.access(anchor, os.W_OK | os.X_OK):
        raise OutputError("cannot be written: permission denied", where=str(anchor), hint="choose another folder")
    partial = _partial(place)
    already = sum(file.stat().st_size for file in partial.iterdir()) if partial.is_dir() else 0
    free = shutil.disk_usage(anchor).free + already
    if free < needed_bytes:
        raise OutputError(
            f"not enough room: {needed_bytes:,} bytes are needed and {free:,} are free",
            where=str(anchor),
            hint="free some room, or write to another disk",
        )


def _check_replaceable(out: Path, *, overwrite: bool) -> None:
    if not overwrite:
        raise OutputError(
            "exists already", where=str(out), hint="choose another folder, or replace it with --overwrite"
        )
    if not out.is_dir() or (any(out.iterdir()) and not (out / REPORT_FILE).is_file()):
        raise OutputError(
            f"holds no {REPORT_FILE}, so wsmerge did not write it and will not delete it",
            where=str(out),
            hint="remove it yourself, or choose another folder",
        )


class OutputFolder:
    """OUT.partial as a context manager: `folder` is open for writing, `finish` puts it in its place.

    Leaving without `finish` removes it, and every parent that had to be made; `keep_partial` keeps it for a later run.
    """

    def __init__(self, out: Path, plan: MergePlan, *, overwrite: bool, keep_partial: bool = False) -> None:
        self._out = out.absolute()
        self.folder = _partial(self._out)
        self._plan = plan
        self._overwrite = overwrite
        self._keep_partial = keep_partial
        self._made: list[Path] = []
        self._lock_fd: int | None = None

    def __enter__(self) -> Self:
        try:
            self._made = _make_parents(self._out.parent)
            self.folder.mkdir(exist_ok=True)
            self._lock_fd = self._lock()
            if not is_resumable(self.folder, self._plan):
                _empty(self.folder)
        except OSError as error:
            self._clean_up(keep=False)
            raise output_failure(error, self._out.parent) from error
        return self

    def finish(self) -> None:
        """Put the folder in its place; its files are synced already."""
        (self.folder / JOURNAL_FILE).unlink(missing_ok=True)
        sync_folder(self.folder)
        replaced = self._out.with_name(f"{self._out.name}.replaced")
        try:
            if self._overwrite and self._out.exists():
                if replaced.exists():
                    shutil.rmtree(replaced)
                self._out.rename(replaced)
            self.folder.rename(self._out)
        except OSError as error:
            if replaced.exists() and not self._out.exists():
                replaced.rename(self._out)
            raise output_failure(error, self._out) from error
        self._made = []
        sync_folder(self._out.parent)
        shutil.rmtree(
            replaced, ignore_errors=True
        )  # the new checkpoint stands; what is left of the old one is only room

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._clean_up(keep=self._keep_partial)

    def _lock(self) -> int:
        """Lock the folder itself: the lock goes with it when it is renamed, and ends with the process."""
        fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(fd)
            raise OutputError(
                "another merge is writing this output",
                where=str(self._out),
                hint="wait for it, or choose another folder",
            ) from error
        return fd

    def _clean_up(self, *, keep: bool) -> None:
        if self._lock_fd is not None:
            if not keep:
                shutil.rmtree(self.folder, ignore_errors=True)  # already on the way out with the error that matters
            os.close(self._lock_fd)
            self._lock_fd = None
        if not keep:
            for parent in reversed(self._made):
                if not any(parent.iterdir()):
                    parent.rmdir()


def _partial(out: Path) -> Path:
    return out.with_name(f"{out.name}.partial")


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _make_parents(folder: Path) -> list[Path]:
    missing = [folder, *folder.parents]
    missing = missing[: next(i for i, parent in enumerate(missing) if parent.exists())]
    for parent in reversed(missing):
        parent.mkdir(exist_ok=True)
    return list(reversed(missing))
