"""The command line in this process: arguments in; exit code, stdout and stderr out."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from wsmerge.cli import main


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def wsmerge(monkeypatch, capsys) -> Callable[..., Done]:
    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["wsmerge", *map(str, arguments)])
        before = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as left:
                main()
        finally:
            signal.signal(signal.SIGTERM, before)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Done(int(left.value.code or 0), captured.out, captured.err)

    monkeypatch.setenv("COLUMNS", "200")
    return run
