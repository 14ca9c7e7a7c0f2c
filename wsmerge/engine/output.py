"""The output folder: filled beside its place, and put there whole by one rename.

    OUT.partial/     while the merge runs, closed to other users; after a kill, what the next run resumes from
    OUT/             appears when every file is written and synced

An old OUT and OUT.partial change their names in one step, and the old one is deleted then. Where the system cannot do
that, the old one is OUT.replaced between two renames; after a kill there, the next run puts it back or deletes it.

A merge that fails or is interrupted removes OUT.partial; only a killed one leaves it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from wsmerge.core.alone import lock_at_once
from wsmerge.core.files import exchange, sync_folder
from wsmerge.engine.journal import JOURNAL_FILE, is_resumable
from wsmerge.engine.placing import REPORT_FILE, partial_of, place_of, replaced_of
from wsmerge.engine.plan import MergePlan
from wsmerge.engine.sink import output_failure
from wsmerge.errors import OutputError

__all__ = ["OutputFolder"]

_CLOSED: Final = 0o700


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
        self._held: list[int] = []
        self._finished = False

    def __enter__(self) -> Self:
        try:
            self._made = _make_parents(self._out.parent)
            self._lock_fd = self._lock()
            self._recover()
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
        """Put the folder in its place; its files are synced already.

        Raises:
            OutputError: the system refuses, or something else has taken the folder's name meanwhile.
        """
        try:
            (self.folder / JOURNAL_FILE).unlink(missing_ok=True)
            if self._lock_fd is None or not _is_at(self._lock_fd, self.folder):
                raise OutputError("was moved away while it was written", where=str(self.folder), hint="merge again")
            with suppress(OSError):  # where a file system knows no modes
                os.fchmod(self._lock_fd, _usual_mode(self.folder))
            sync_folder(self.folder)
            old = self._replace() if self._overwrite and self._out.exists() else None
            if old is None:
                self.folder.rename(self._out)
            self._finished = True
            sync_folder(self._out.parent)
        except OSError as error:
            raise output_failure(error, self._out) from error
        if old is not None:
            _discard(old)

    def _replace(self) -> Path:
        """Put the folder in the place of the old output; where that lies now."""
        held = os.open(self._out, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._held.append(held)
        with suppress(OSError):  # so that no other merge takes the old output for its OUT.partial before it is deleted
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if exchange(self.folder, self._out):
            return self.folder
        replaced = replaced_of(self._out)
        try:
            self._out.rename(replaced)
            self.folder.rename(self._out)
        except BaseException:  # Ctrl-C too
            if not self._out.exists():
                replaced.rename(self._out)
            raise
        return replaced

    def _recover(self) -> None:
        """Finish what a merge that was killed between two renames began: its lock is held, so it is gone."""
        replaced = replaced_of(self._out)
        if not os.path.lexists(replaced):
            return
        if self._out.exists() and any(self._out.iterdir()):
            _discard(replaced)
        else:
            replaced.rename(self._out)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._clean_up(keep=self._keep_partial)

    def _lock(self) -> int:
        """Make and lock the folder itself: the lock goes with it when it is renamed, and ends with the process."""
        while True:
            made = _make_closed(self.folder)
            fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
            # A network file system may give a folder another owner than the one who makes it.
            if not made and os.fstat(fd).st_uid != os.geteuid():
                os.close(fd)
                raise OutputError(
                    "is in the way, and belongs to another user: the output is made there",
                    where=str(self.folder),
                    hint="choose another output, best in a folder that others may not write to",
                )
            try:
                lock_at_once(fd)
            except OSError as error:
                os.close(fd)
                if not isinstance(error, BlockingIOError):
                    raise
                raise OutputError(
                    "another merge is writing this output",
                    where=str(self._out),
                    hint="wait for it, or choose another folder",
                ) from error
            if _is_at(fd, self.folder):
                with suppress(OSError):  # where a file system knows no modes
                    os.fchmod(fd, _CLOSED)
                return fd
            os.close(fd)  # the other merge finished in between, and what was locked is its output

    def _clean_up(self, *, keep: bool) -> None:
        keep = keep or self._finished
        if self._lock_fd is not None:
            if not keep and _is_at(
                self._lock_fd, self.folder
            ):  # else it was moved away, and another merge's lies there
                shutil.rmtree(self.folder, ignore_errors=True)  # already on the way out with the error that matters
            for fd in (self._lock_fd, *self._held):
                os.close(fd)
            self._lock_fd, self._held = None, []
        if not keep:
            for parent in reversed(self._made):
                if not any(parent.iterdir()):
                    parent.rmdir()


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _make_closed(folder: Path) -> bool:
    """Make a folder that nobody else may look into; False where there is one."""
    try:
        folder.mkdir(mode=_CLOSED)
    except FileExistsError:
        return False
    return True


def _usual_mode(folder: Path) -> int:
    """The mode of a folder that is made here by anybody: what the umask leaves, and what the parent hands down."""
    mask = os.umask(0o077)
    os.umask(mask)
    return (stat.S_IMODE(folder.stat().st_mode) & ~0o777) | (0o777 & ~mask)


def _discard(folder: Path) -> None:
    """Delete an old checkpoint; what cannot be deleted is only room. Its report goes last: a kill leaves what is known."""
    for path in folder.iterdir():
        if path.name != REPORT_FILE:
            _remove(path)
    _remove(folder)


def _remove(path: Path) -> None:
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


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
