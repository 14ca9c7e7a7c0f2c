"""Files and folders that survive a crash, and what a crash leaves of them."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wsmerge.core.files import exchange, replace_synced, staged_folder, temporary_folder

NUMBER = "0123456789abcdef" * 2
ROOT = Path(__file__).parents[2]
KILLED = """
import os, sys
from pathlib import Path
from wsmerge.core.files import staged_folder
with staged_folder(Path(sys.argv[1])) as staged:
    (staged / "data").write_text("half")
    os._exit(9)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_a_killed_process_staged_goes_with_the_next_run(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "out")], check=False, cwd=ROOT)
    assert done.returncode == 9
    (left,) = names(tmp_path)
    assert left.startswith(".out.")
    for other in (f".other.{NUMBER}.partial", ".out.mine.partial", f".out.{NUMBER}"):
        (tmp_path / other).mkdir()
    with staged_folder(tmp_path / "out") as staged:
        (staged / "data").write_text("whole")
    assert left not in names(tmp_path)
    assert (tmp_path / "out" / "data").read_text() == "whole"
    assert len(names(tmp_path)) == 4


def test_what_a_running_process_stages_stays(tmp_path):
    with staged_folder(tmp_path / "out") as mine:
        (mine / "data").write_text("mine")
        with temporary_folder(tmp_path, ".out.") as other:
            assert mine.exists()
            assert other.exists()
        assert not other.exists()
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["data"]


def test_old_files_of_killed_processes_go_and_others_stay(tmp_path):
    old, new = (tmp_path / f".state.{digit * 32}.partial" for digit in "ab")
    link = tmp_path / f".state.{'c' * 32}.partial"
    old.write_text("half")
    new.write_text("half")
    link.symlink_to(tmp_path)
    os.utime(old, (time.time() - 7200,) * 2)
    replace_synced(tmp_path / "state", b"whole")
    assert names(tmp_path) == [new.name, link.name, "state"]


def test_nothing_of_another_user_is_deleted(tmp_path, monkeypatch):
    (tmp_path / f".out.{NUMBER}.partial").mkdir()
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with temporary_folder(tmp_path, ".out."):
        pass
    assert names(tmp_path) == [f".out.{NUMBER}.partial"]


def test_two_folders_exchange_their_names(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert exchange(tmp_path / "one", tmp_path / "two")
    assert (names(tmp_path / "one"), names(tmp_path / "two")) == (["two"], ["one"])
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "one", tmp_path / "three")


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EINVAL, errno.ENOTSUP])
def test_a_system_that_cannot_exchange_says_so(tmp_path, monkeypatch, code):
    class Library:
        @staticmethod
        def renameat2(*_arguments: object) -> int:
            return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *_name, **_options: Library)
    monkeypatch.setattr(ctypes, "get_errno", lambda: code)
    assert exchange(tmp_path / "one", tmp_path / "two") is False
    monkeypatch.setattr(ctypes, "CDLL", lambda *_name, **_options: object())
    assert exchange(tmp_path / "one", tmp_path / "two") is False


def test_a_folder_that_another_process_swept_before_it_was_locked_is_made_again(tmp_path, monkeypatch):
    opened = os.open
    swept: list[Path] = []

    def racing(path, *arguments, **more):
        if not swept and str(path).endswith(".partial"):
            swept.append(path)
            Path(path).rmdir()
        return opened(path, *arguments, **more)

    monkeypatch.setattr(os, "open", racing)
    with temporary_folder(tmp_path, ".out.") as folder:
        assert folder.is_dir()
    assert swept
