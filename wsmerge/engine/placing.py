"""Whether a folder may become the output: asked before anything is read or written, and by dry runs too."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from wsmerge.core.opening import expanded, parse_json, read_whole
from wsmerge.engine.journal import JOURNAL_FILE, is_journal
from wsmerge.errors import OutputError, UsageError

__all__ = ["REPORT_FILE", "check_output", "partial_of", "place_of", "replaced_of"]

REPORT_FILE: Final = "wsmerge.json"
_NAMED_FILES: Final = 5


def place_of(out: Path) -> Path:
    """Where the output will lie, without links and dots."""
    return Path(os.path.realpath(expanded(out)))


def partial_of(place: Path) -> Path:
    """Where the output is made."""
    return place.with_name(f"{place.name}.partial")


def replaced_of(place: Path) -> Path:
    """Where an old output lies while it is replaced."""
    return place.with_name(f"{place.name}.replaced")


def check_output(out: Path, inputs: Iterable[Path], needed_bytes: int, *, overwrite: bool) -> None:
    """Raise if `out` cannot become the output.

    Raises:
        UsageError: `out` is one of the inputs, or one contains the other.
        OutputError: it exists and may not be replaced, its folder cannot be written, or the disk lacks the room.
    """
    place = place_of(out)
    _check_apart(out, place, inputs)
    if place.exists():
        _check_replaceable(out, place, overwrite=overwrite)
    _check_beside(out, place, overwrite=overwrite)
    anchor = next(parent for parent in place.parents if parent.exists())
    if not anchor.is_dir():
        raise OutputError("cannot hold the output: it is no folder", where=str(anchor), hint="choose another place")
    if not os.access(anchor, os.W_OK | os.X_OK):
        raise OutputError("cannot be written: permission denied", where=str(anchor), hint="choose another folder")
    _check_room(anchor, partial_of(place), needed_bytes)


def _check_apart(out: Path, place: Path, inputs: Iterable[Path]) -> None:
    for item in inputs:
        theirs = item.resolve()
        # A lone tensor file has nothing to do with what lies beside it; one of a checkpoint stands for its folder.
        whole = theirs.is_file() and (theirs.parent / "config.json").is_file()
        folder = theirs.parent if whole else theirs
        if place == theirs or folder in place.parents or place in theirs.parents:
            raise UsageError(
                f"the output would lie over the input {item}", where=str(out), hint="choose another folder"
            )


def _check_replaceable(out: Path, place: Path, *, overwrite: bool) -> None:
    if place.is_dir() and not any(place.iterdir()):
        return
    strange = _strange_files(place)
    if strange is None:
        raise OutputError(
            f"exists already, and holds no {REPORT_FILE}: wsmerge did not write it and will not delete it",
            where=str(out),
            hint="choose another folder, or remove it yourself",
        )
    if strange:
        more = f" and {len(strange) - _NAMED_FILES} more" if len(strange) > _NAMED_FILES else ""
        raise OutputError(
            f"holds files that wsmerge did not write: {', '.join(strange[:_NAMED_FILES])}{more}",
            where=str(out),
            hint="move them elsewhere first, or choose another folder",
        )
    if not overwrite:
        raise OutputError(
            "exists already", where=str(out), hint="choose another folder, or replace it with --overwrite"
        )


def _strange_files(place: Path) -> list[str] | None:
    """Files in `place` that its report does not list; None where there is no report."""
    try:
        report = parse_json(read_whole(place / REPORT_FILE))
        listed = {str(name) for name in report["files"]}
    except (OSError, ValueError, LookupError, TypeError):
        return None
    found = (str(path.relative_to(place)) for path in place.rglob("*") if not path.is_dir())
    return sorted(set(found) - listed)


def _check_beside(out: Path, place: Path, *, overwrite: bool) -> None:
    """The two names beside the output must be free, or hold what an earlier merge left."""
    replaced, partial = replaced_of(place), partial_of(place)
    if os.path.lexists(replaced):
        # A merge that was killed while it replaced a checkpoint leaves the old one so, where the system cannot exchange.
        old = replaced.is_dir() and not replaced.is_symlink()
        if not old or (_strange_files(replaced) != [] and any(replaced.iterdir())):
            raise OutputError(
                "is in the way: an old checkpoint lies there while it is replaced, and this holds other files",
                where=str(replaced),
                hint="move it elsewhere, or choose another output",
            )
        if not overwrite and not (place.is_dir() and any(place.iterdir())):
            raise OutputError(
                f"exists already, as {replaced.name}: a merge was killed while it replaced it",
                where=str(out),
                hint=f"replace it with --overwrite, or rename {replaced.name} to {place.name} to have it back",
            )
    if os.path.lexists(partial) and not _is_leftover(partial):
        raise OutputError(
            "is in the way: the output is made there, and this was not left by a merge",
            where=str(partial),
            hint="move it elsewhere, or choose another output",
        )


def _is_leftover(partial: Path) -> bool:
    if not partial.is_dir() or partial.is_symlink():
        return False
    try:
        journals = (partial / JOURNAL_FILE, partial / f"{JOURNAL_FILE}.new")
        return not any(partial.iterdir()) or any(map(is_journal, journals)) or (partial / REPORT_FILE).is_file()
    except PermissionError:
        return True  # another user's: told where it would be opened


def _check_room(anchor: Path, partial: Path, needed_bytes: int) -> None:
    already = sum(file.lstat().st_size for file in partial.iterdir()) if os.access(partial, os.R_OK | os.X_OK) else 0
    free = shutil.disk_usage(anchor).free + already
    if free < needed_bytes:
        raise OutputError(
            f"not enough room: {needed_bytes:,} bytes are needed and {free:,} are free",
            where=str(anchor),
            hint="free some room, or write to another disk",
        )
