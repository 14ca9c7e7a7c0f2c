"""Downloading the files of a commit: continued where a cut stopped, each checked before it counts as there.

A file that comes is `NAME.part` beside its place; what it already holds is not asked for again, be it by another process.
Once it is whole, its digest is compared with the one that the commit names, and it is renamed. The Hub client's own
download is not used: it begins a file anew after every cut that ends the process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from wsmerge.core.hub.commit import RepoCommit
from wsmerge.core.opening import is_below
from wsmerge.errors import HubError, VerificationError

__all__ = ["Progress", "download"]

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""

_CHUNK_BYTES: Final = 8 << 20


def download(commit: RepoCommit, names: Iterable[str], folder: Path, progress: Progress | None = None) -> None:
    """Fetch files `names` of `commit` into `folder`, those alone that are not there yet, or not as the commit names them.

    Args:
        commit: the repository at one commit.
        names: the files.
        folder: of this commit alone.
        progress: called after every few MB.

    Raises:
        HubError: a file is not there, or the Hub is not reached; what came is kept.
        VerificationError: bytes that are not those that the commit names; they are thrown away.
        OSError: the disk refuses.
    """
    wanted = list(names)
    total = sum(commit.files[name].size for name in wanted)
    done = 0
    for name in wanted:
        entry = commit.files[name]
        if not is_below(name):
            raise HubError(
                f"{name!r} is no name of a file below a folder", where=commit.label, hint="do not pull this repository"
            )
        target = folder / name
        # What is there came whole; but a crash of the machine may have spoilt it since.
        if not (target.exists() and entry.is_content_of(target)):
            report = None if progress is None else _shifted(progress, done, total)
            _fetch(commit, name, target, report)
        done += entry.size
        if progress is not None:
            progress(done, total)


def _fetch(commit: RepoCommit, name: str, target: Path, report: Callable[[int], None] | None) -> None:
    entry = commit.files[name]
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    with part.open("ab") as written:
        held = written.tell()
        if held > entry.size:
            written.truncate(held := 0)
        remote = commit.open(name, ahead=False)
        try:
            buffer = memoryview(bytearray(min(entry.size - held, _CHUNK_BYTES)))
            for start in range(held, entry.size, _CHUNK_BYTES):
                chunk = buffer[: entry.size - start]
                remote.read_into(start, chunk)
                written.write(chunk)
                written.flush()
                if report is not None:
                    report(start + len(chunk))
        finally:
            remote.close()
    if not entry.is_content_of(part):
        part.unlink()
        raise VerificationError(
            f"the bytes that came for {name} are not those that the commit names",
            where=commit.label,
            hint="pull again; if it stays, what the Hub keeps is damaged or was changed",
        )
    part.replace(target)


def _shifted(progress: Progress, done: int, total: int) -> Callable[[int], None]:
    return lambda here: progress(done + here, total)
