"""The one place that prints. Data goes to stdout, as tables or as JSON; everything else to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from wsmerge.errors import WsmergeError

__all__ = ["Output"]


_SHOWN_DETAILS: Final = 12


class Output:
    """Where a command's results go.

    Args:
        as_json: print data as one JSON document instead of tables and sentences.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self._stdout = Console(highlight=False, soft_wrap=True)
        self._stderr = Console(stderr=True, highlight=False, soft_wrap=True)

    def data(self, value: Any) -> None:  # noqa: ANN401 - any JSON value
        """Print `value` as JSON; does nothing unless JSON was asked for."""
        if self.as_json:
            sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n")

    def text(self, line: str) -> None:
        """Print a line of the result; nothing with JSON, where `data` says it all."""
        if not self.as_json:
            self._stdout.print(Text(line))

    def part(self, text: str) -> None:
        """Print a piece of a result that is still being made, as it is; nothing with JSON."""
        if not self.as_json:
            sys.stdout.write(text)
            sys.stdout.flush()

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None) -> None:
        """Print rows under headings; nothing with JSON, where `data` says it all. Numbers are set right."""
        if self.as_json:
            return
        table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
        for index, column in enumerate(columns):
            numeric = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
            table.add_column(column, justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(_cell(value)) for value in row))
        self._stdout.print(table)

    def note(self, line: str) -> None:
        """Say something beside the result, on stderr."""
        self._stderr.print(Text(line))

    def warning(self, line: str) -> None:
        """Warn on stderr."""
        self._stderr.print(Text.assemble(("warning: ", "yellow"), line))

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
            sys.stderr.write(json.dumps({"error": fields}, ensure_ascii=False) + "\n")
            return
        shown = error
        if len(error.details) > _SHOWN_DETAILS:
            left = len(error.details) - _SHOWN_DETAILS
            lines = (*error.details[:_SHOWN_DETAILS], f"... and {left} more (all of them with --json)")
            shown = type(error)(error.message, where=error.where, hint=error.hint, details=lines)
        self._stderr.print(Text.assemble(("error: ", "bold red"), str(shown)))

    @contextmanager
    def progress(self, label: str) -> Iterator[Callable[[int, int], None]]:
        """A bar over bytes on a terminal, and nothing elsewhere; yields a function of (done, total)."""
        if self.as_json or not self._stderr.is_terminal:
            yield lambda _done, _total: None
            return
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self._stderr, transient=True) as bar:
            task = bar.add_task(label, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)

    @contextmanager
    def counter(self, label: str) -> Iterator[Callable[[int, int, str], None]]:
        """A bar over steps on a terminal, and nothing elsewhere; yields a function of (done, total, what is told beside it)."""
        if self.as_json or not self._stderr.is_terminal:
            yield lambda _done, _total, _told: None
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        told = TextColumn("{task.fields[told]}")
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), told, TimeRemainingColumn())
        with Progress(*columns, console=self._stderr, transient=True) as bar:
            task = bar.add_task(label, total=None, told="")
            yield lambda done, total, text: bar.update(task, completed=done, total=total, told=text)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return json.dumps(value)
    return "" if value is None else str(value)
