"""The output folder: filled beside its place, and put there whole by one rename.

    OUT.partial/     while the merge runs; after a kill, what the next run resumes from
    OUT.replaced/    the old checkpoint, between the two renames that replace it
    OUT/             appears when every file is written and synced

A merge that fails or is interrupted removes OUT.partial; only a killed one leaves it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from wsmerge.core.files import sync_folder
from wsmerge.engine.journal import JOURNAL_FILE, is_resumable
from wsmerge.engine.placing import partial_of, place_of, replaced_of
from wsmerge.engine.plan import MergePlan
from wsmerge.engine.sink import output_failure
from wsmerge.errors import OutputError

__all__ = ["OutputFolder"]


class OutputFolder:
    """OUT.partial as a context manager: `folder` is open for writing, `finish` puts it in its place.

    `check_output` comes before it. Leaving without `finish` removes OUT.partial, and every parent that had to be made;
    `keep_partial` keeps it for a later run.
    """

    def __init__(self, out: Path, plan: MergePlan, *, overwrite: bool, keep_partial: bool = False) -> None:
        self._out = place_of(out)
        self.folder = partial_of(self._out)
        self._plan = plan
        self._overwrite = overwrite
        self._keep_partial = keep_partial
        self._made: list[Path] = []
        self._lock_fd: int | None = None
        self._finished = False

    def __enter__(self) -> Self:
        try:
            self._made = _make_parents(self._out.parent)
            self._lock_fd = self._lock()
            if not is_resumable(self.folder, self._plan):
                _empty(self.folder)
        except OSError as error:
            self._clean_up(keep=False)
            raise output_failure(error, self._out.parent) from error
        except BaseException:  # Ctrl-C
            self._clean_up(keep=False)
            raise
        return self

    def finish(self) -> None:
        """Put the folder in its place; its files are synced already."""
        (self.folder / JOURNAL_FILE).unlink(missing_ok=True)
        sync_folder(self.folder)
        replaced = replaced_of(self._out)
        had_old = self._overwrite and self._out.exists()
        try:
            if had_old:
                self._out.rename(replaced)
            self.folder.rename(self._out)
        except OSError as error:
            if had_old and not self._out.exists():
                replaced.rename(self._out)
            raise output_failure(error, self._out) from error
        self._finished = True
        sync_folder(self._out.parent)
        if had_old:
            # The new checkpoint stands; what cannot be deleted of the old one is only room.
            shutil.rmtree(replaced, ignore_errors=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._clean_up(keep=self._keep_partial)

    def _lock(self) -> int:
        """Make and lock the folder itself: the lock goes with it when it is renamed, and ends with the process."""
        while True:
            self.folder.mkdir(exist_ok=True)
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
            if _is_at(fd, self.folder):
                return fd
            os.close(fd)  # the other merge finished in between, and what was locked is its output

    def _clean_up(self, *, keep: bool) -> None:
        keep = keep or self._finished
        if self._lock_fd is not None:
            if not keep:
                shutil.rmtree(self.folder, ignore_errors=True)  # already on the way out with the error that matters
            os.close(self._lock_fd)
            self._lock_fd = None
        if not keep:
            for parent in reversed(self._made):
                if not any(parent.iterdir()):
                    parent.rmdir()


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


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
