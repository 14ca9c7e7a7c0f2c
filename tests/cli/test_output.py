"""What reaches a pipe, a full disk or a closed stream: whole lines, no traceback, the command's own exit code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time

import pytest

from tests.registry.artifacts import make_artifact
from wsmerge.cli.output import Output
from wsmerge.registry import Store

NAME = "a-direction-with-a-name-that-takes-more-than-half-of-a-terminal"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("terminal")
    make_artifact(folder / "made", name=NAME)
    Store(folder / "store").publish(folder / "made", aliases=("an-alias-of-some-length", "and-another-one"))
    return folder / "store"


def shell(store, line: str) -> subprocess.CompletedProcess[str]:
    """Run `line` in bash, where `wsmerge` is the command line of this interpreter over `store`."""
    script = f'set -o pipefail; wsmerge() {{ "{sys.executable}" -m wsmerge "$@"; }}\n{line}'
    environment = {"WSMERGE_HOME": str(store), "COLUMNS": "40"}
    return subprocess.run(
        ["/bin/bash", "-c", script], capture_output=True, text=True, env=os.environ | environment, check=False
    )


def test_what_is_piped_is_one_line_a_row(store):
    for asked in ("", "FORCE_COLOR=1 NO_COLOR=1 "):  # who asks for colours in a pipe still wants whole lines
        done = shell(store, f"{asked}wsmerge list | grep {NAME}@1.0.0")
        assert done.returncode == 0
        assert "an-alias-of-some-length, and-another-one" in done.stdout
    assert Store(store).resolve(NAME).version_digest in shell(store, f"wsmerge show {NAME} | cat").stdout


@pytest.mark.parametrize("command", ["list", "--help", "lint --help", "--version"])
def test_a_full_stdout_is_told_in_one_line_and_fails(store, command):
    done = shell(store, f"wsmerge {command} > /dev/full")
    assert done.returncode == 1
    assert done.stderr == "error: the output cannot be written: No space left on device\n"


def test_a_full_stdout_is_told_in_json_where_that_was_asked_for(store):
    done = shell(store, f"wsmerge show {NAME} --json > /dev/full")
    assert done.returncode == 1
    assert json.loads(done.stderr)["error"]["code"] == "output"


def test_a_failure_keeps_its_exit_code_whatever_becomes_of_the_streams(store):
    for streams in ("> /dev/full", "2> /dev/full", ">&-", "2>&-", "| true"):
        assert shell(store, f"wsmerge show --no-such-option {streams}").returncode == 2, streams


@pytest.mark.parametrize("command", ["--help", f"show {NAME}", "list --json"])
def test_a_reader_that_leaves_ends_no_command(store, command):
    done = shell(store, f"wsmerge {command} | true")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_closed_stdout_is_silence(store):
    done = shell(store, f"wsmerge show {NAME} >&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_work_is_done_to_its_end_although_nobody_reads(store, tmp_path):
    make_artifact(tmp_path / "made", name="unread", seed=5)
    assert shell(store, f"wsmerge publish {tmp_path / 'made'} | true").returncode == 0
    assert json.loads(shell(store, "wsmerge list unread --json").stdout)[0]["version"] == "1.0.0"


def test_a_name_that_is_no_text_is_shown_escaped(store):
    done = shell(store, "wsmerge publish $'./no\\xffsuch'")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "no\\udcffsuch" in done.stderr


def test_shells_complete_commands_and_options(store):
    asked = "_WSMERGE_COMPLETE=complete_bash COMP_WORDS='wsmerge {}' COMP_CWORD={} wsmerge"
    assert {"list", "lint"} <= set(shell(store, asked.format("li", 1)).stdout.split())
    assert "--json" in shell(store, asked.format("list --j", 2)).stdout.split()
    assert "complete" in shell(store, "wsmerge --show-completion bash").stdout


def test_what_a_stranger_wrote_does_nothing_to_the_terminal(wsmerge, tmp_path, monkeypatch):
    evil = "\x1b]0;title\x07\x1b[2J all is well \x9b \u202egnp.exe"
    monkeypatch.setenv("WSMERGE_HOME", str(tmp_path / "store"))
    made = make_artifact(tmp_path / "made", name="evil", description=evil)
    done = [
        wsmerge("show", made),
        wsmerge("publish", made),
        wsmerge("list"),
        wsmerge("show", evil),
        wsmerge("list", "--json"),
    ]
    for one in done:
        assert not {"\x1b", "\x9b", "\u202e"} & {*one.out, *one.err}
    assert json.loads(done[-1].out)[0]["description"] == evil


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


@pytest.mark.parametrize(("seconds", "lines"), [(0.1, 0), (1.0, 5), (10.0, 9), (40.0, 40)])
def test_progress_without_a_terminal_comes_at_a_steady_pace(monkeypatch, capsys, seconds, lines):
    """Ten tenths of so many seconds each: a line for a tenth or for ten seconds, and none in less than two."""
    clock = Clock(monkeypatch)
    with Output().counter("training") as told:
        for step in range(1, 1001):
            clock.now += seconds / 100
            told(step, 1000, f"loss {step}")
    said = capsys.readouterr().err.splitlines()
    assert abs(len(said) - lines) <= 1
    for line in said:
        assert re.fullmatch(r"training: \d+ of 1000, loss \d+(, \d+ s left)?", line)


def test_the_time_left_counts_what_this_run_did(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    with Output(as_json=True).progress("merging") as told:
        told(900, 1000)  # an earlier run
        clock.now += 20.0
        told(920, 1000)
    assert capsys.readouterr().err == "merging: 920 bytes of 1.0 kB, 80 s left\n"


def test_short_work_says_nothing(capsys):
    with Output().progress("merging") as told:
        for done in range(11):
            told(done, 10)
        told(0, 0)
    assert capsys.readouterr().err == ""
