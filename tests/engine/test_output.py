"""The output folder where the system refuses, or somebody else is at work beside it."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wsmerge.engine import output
from wsmerge.engine.output import OutputFolder
from wsmerge.errors import OutputError


def write_output(out: Path, fill: Callable[[Path], object] = lambda _: None, *, overwrite: bool = False) -> None:
    plan: Any = SimpleNamespace(digest="0" * 64)
    with OutputFolder(out, plan, overwrite=overwrite) as made:
        fill(made.folder)
        made.finish()


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def failing(code: int, at_call: int = 1) -> Callable[..., None]:
    calls: list[Any] = []

    def fail(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == at_call:
            raise OSError(code, os.strerror(code))

    return fail


def test_what_lies_in_the_place_of_a_folder_that_was_moved_away_stays(tmp_path):
    def take_its_place(folder: Path) -> None:
        folder.rename(tmp_path / "moved")
        folder.mkdir()
        (folder / "theirs").touch()

    with pytest.raises(OutputError, match="was moved away"):
        write_output(tmp_path / "out", take_its_place)
    assert names(tmp_path) == ["moved", "out.partial", "out.partial/theirs"]


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_holds_outputs(tmp_path, monkeypatch, code):
    def refuse(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    write_output(tmp_path / "out", lambda folder: (folder / "mine").touch())
    assert names(tmp_path) == ["out", "out/mine"]


def test_a_lock_that_is_refused_is_told_and_leaves_nothing_open(tmp_path, monkeypatch):
    before = len(list(Path("/proc/self/fd").iterdir()))
    monkeypatch.setattr(fcntl, "flock", failing(errno.EIO))
    with pytest.raises(OutputError, match="Input/output error"):
        write_output(tmp_path / "out")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("at_call", [1, 2])
def test_a_disk_that_fails_at_the_end_is_told(tmp_path, monkeypatch, at_call):
    monkeypatch.setattr(output, "sync_folder", failing(errno.EIO, at_call))
    with pytest.raises(OutputError, match="Input/output error"):
        write_output(tmp_path / "out")
    assert names(tmp_path) == ["out"][: at_call - 1]


@pytest.mark.parametrize("stopped_at", [1, 2])
def test_an_interrupt_between_two_renames_leaves_a_whole_output(tmp_path, monkeypatch, stopped_at):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("")
    rename, calls = Path.rename, []

    def stopped(path: Path, target: Path) -> Path:
        calls.append(path)
        found = rename(path, target)
        if len(calls) == stopped_at:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(output, "exchange", lambda *_: False)
    monkeypatch.setattr(Path, "rename", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_output(tmp_path / "out", lambda folder: (folder / "new").touch(), overwrite=True)
    assert ("out/old" if stopped_at == 1 else "out/new") in names(tmp_path)
    assert "out.partial" not in names(tmp_path)
