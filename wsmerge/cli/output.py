"""The one place that prints. Data goes to stdout, as tables or as JSON; everything else to stderr.

What is printed may come from a stranger's file: its control characters are shown escaped and do nothing to the terminal.
"""

from __future__ import annotations

import errno
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from wsmerge.core.text import escaped_json, printable
from wsmerge.errors import EXIT_FAILED, OutputError, WsmergeError

__all__ = ["Output", "exit_code", "guarded_streams"]


_SHOWN_DETAILS: Final = 12
_SHORTEST_WAIT: Final = 2.0
_LONGEST_WAIT: Final = 10.0
_UNBOUNDED_COLUMNS: Final = 1 << 30


class Output:
    """Where a command's results go.

    Args:
        as_json: print data as one JSON document instead of tables and sentences.

    Attributes:
        on_terminal: whether somebody reads the results on a screen; else they are printed whole.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        # Only a terminal has a width: what goes to a file or a pipe is neither folded nor cut, so that grep finds it.
        self.on_terminal = sys.stdout.isatty()
        columns = None if self.on_terminal else _UNBOUNDED_COLUMNS
        self._stdout = Console(highlight=False, soft_wrap=True, width=columns)
        self._stderr = Console(stderr=True, highlight=False, soft_wrap=True)

    def data(self, value: Any) -> None:  # noqa: ANN401 - any JSON value
        """Print `value` as JSON; does nothing unless JSON was asked for."""
        if self.as_json:
            sys.stdout.write(escaped_json(value, indent=2) + "\n")

    def text(self, line: str) -> None:
        """Print a line of the result; nothing with JSON, where `data` says it all."""
        if not self.as_json:
            self._stdout.print(_shown(line))

    def part(self, text: str) -> None:
        """Print a piece of a result that is still being made; nothing with JSON."""
        if not self.as_json:
            sys.stdout.write(printable(text))
            sys.stdout.flush()

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None) -> None:
        """Print rows under headings; nothing with JSON, where `data` says it all. Numbers are set right."""
        if self.as_json:
            return
        if title:
            self._stdout.print(Text(printable(title), style="italic"))
        table = Table(box=None, pad_edge=False, header_style="bold")
        for index, column in enumerate(columns):
            numeric = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
            table.add_column(column, justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(_shown(_cell(value)) for value in row))
        self._stdout.print(table)

    def note(self, line: str) -> None:
        """Say something beside the result, on stderr."""
        self._stderr.print(_shown(line))

    def warning(self, line: str) -> None:
        """Warn on stderr."""
        self._stderr.print(Text.assemble(("warning: ", "yellow"), printable(line)))

    def error(self, error: WsmergeError) -> None:
        """Show a failure on stderr; with JSON, as an object with its code."""
        if self.as_json:
            fields = {
                "code": error.code,
                "message": error.message,
                "where": error.where,
                "details": list(error.details),
                "next": error.hint,
            }
            sys.stderr.write(escaped_json({"error": fields}) + "\n")
            return
        shown = error
        if len(error.details) > _SHOWN_DETAILS:
            left = len(error.details) - _SHOWN_DETAILS
            lines = (*error.details[:_SHOWN_DETAILS], f"... and {left} more (all of them with --json)")
            shown = type(error)(error.message, where=error.where, hint=error.hint, details=lines)
        self._stderr.print(Text.assemble(("error: ", "bold red"), printable(str(shown))))

    @contextmanager
    def progress(self, label: str) -> Iterator[Callable[[int, int], None]]:
        """Tell how far work on bytes is; yields a function of (done, total)."""
        with self._told_progress(label, of_bytes=True) as told:
            yield lambda done, total: told(done, total, "")

    @contextmanager
    def counter(self, label: str) -> Iterator[Callable[[int, int, str], None]]:
        """Tell how far work in steps is; yields a function of (done, total, what is told beside it)."""
        with self._told_progress(label, of_bytes=False) as told:
            yield told

    @contextmanager
    def _told_progress(self, label: str, *, of_bytes: bool) -> Iterator[Callable[[int, int, str], None]]:
        """A bar on a terminal; elsewhere, and with JSON, lines at a steady pace."""
        if self.as_json or not sys.stderr.isatty():
            from rich.filesize import decimal

            yield _Lines(label, decimal if of_bytes else str, self.note).tell
            return
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        amounts = DownloadColumn() if of_bytes else MofNCompleteColumn()
        text = (TextColumn(f"{{task.fields[{key}]}}", markup=False) for key in ("label", "told"))
        columns = (next(text), BarColumn(), amounts, next(text), TimeRemainingColumn())
        with Progress(*columns, console=self._stderr, transient=True) as bar:
            task = bar.add_task("", total=None, label=printable(label), told="")
            yield lambda done, total, told: bar.update(task, completed=done, total=total, told=printable(told))


class _Lines:
    """Progress in lines: one at each tenth of the work, but not more than one in two seconds nor less than one in ten."""

    def __init__(self, label: str, spell: Callable[[int], str], say: Callable[[str], None]) -> None:
        self._label = label
        self._spell = spell
        self._say = say
        self._began: tuple[float, int] | None = None
        self._said = time.monotonic()
        self._tenth = 0

    def tell(self, done: int, total: int, told: str) -> None:
        """Say how far the work is, if it is time to; threads may call it."""
        now = time.monotonic()
        began, before = self._began = self._began or (now, done)  # what was done in an earlier run tells no pace
        tenth = 10 * done // total if total else 0
        waited = now - self._said
        if waited < _SHORTEST_WAIT or (waited < _LONGEST_WAIT and tenth <= self._tenth):
            return
        self._said, self._tenth = now, tenth
        line = f"{self._label}: {self._spell(done)} of {self._spell(total)}"
        if told:
            line += f", {told}"
        if before < done < total:
            line += f", {(now - began) / (done - before) * (total - done):.0f} s left"
        self._say(line)


def _shown(text: str) -> Text:
    return Text(printable(text))


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return json.dumps(value)
    return "" if value is None else str(value)


class _StandardStream(io.FileIO):
    """Standard output or error, whose failures do not end the command: it goes on, and what it prints is dropped.

    Attributes:
        failure: the first failed write.
    """

    failure: OSError | None = None

    def write(self, data: Any, /) -> int:  # noqa: ANN401 - any buffer
        """Write some of `data`; all of it counts as written once a write has failed."""
        if self.failure is None:
            try:
                return super().write(data)
            except BlockingIOError:
                raise
            except OSError as error:
                self.failure = error
        return memoryview(data).nbytes


@contextmanager
def guarded_streams() -> Iterator[None]:
    """Print in here: a reader that leaves (`| head`), a full disk under `>` or a closed stream raise nothing.

    A command whose reader has left goes on and ends with its own exit code. Output that was lost for another reason is
    told at the end, and `exit_code` makes the process fail.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _guarded(sys.stdout, sys.__stdout__), _guarded(sys.stderr, sys.__stderr__)
    try:
        yield
    finally:
        _flush()
        sys.stdout, sys.stderr = before


def exit_code(code: int, *, as_json: bool) -> int:
    """The exit code of a command that ended with `code`: a failure, told on stderr, if its output could not be written."""
    _flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    failure = raw.failure if isinstance(raw, _StandardStream) else None
    if failure is None or failure.errno == errno.EPIPE:
        return code
    Output(as_json=as_json).error(OutputError(f"the output cannot be written: {failure.strerror}"))
    return code or EXIT_FAILED


def _guarded(stream: TextIO | None, original: TextIO | None) -> TextIO:
    if stream is None:  # closed before the process began: its number may be another file's by now
        return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123 - it lives as long as the process
    if stream is not original:  # replaced by whoever calls the command line from Python
        return stream
    # A name that is no text, as Linux allows for files, is shown escaped and does not end the command.
    return io.TextIOWrapper(
        io.BufferedWriter(_StandardStream(stream.fileno(), "w", closefd=False)),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering if isinstance(stream, io.TextIOWrapper) else True,
        write_through=isinstance(stream, io.TextIOWrapper) and stream.write_through,
    )


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
