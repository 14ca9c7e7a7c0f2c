"""YAML files of settings that a pydantic model describes: read, and refused with every problem at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from wsmerge.errors import Problems, RecipeError, UsageError
from wsmerge.recipe.document import read_text, read_value

__all__ = ["problem_lines", "read_yaml", "validated"]

Model = TypeVar("Model")


def read_yaml(path: Path, what: str) -> object:
    """The value that a YAML file (UTF-8) holds.

    Args:
        path: the file.
        what: what it is called in messages: `sweep file`.

    Raises:
        UsageError: it cannot be read, is not YAML, or gives a key twice.
    """
    try:
        return read_value(read_text(path), str(path))
    except RecipeError as error:
        message = f"cannot read the {what}: {error.message}"
        raise UsageError(message, where=error.where, hint=error.hint, details=error.details) from error


def validated(
    check: Callable[[], Model],
    what: str,
    where: str | None,
    lines: Callable[[ValidationError], Iterable[str]] | None = None,
) -> Model:
    """What `check` returns.

    Args:
        check: validates, as pydantic does.
        what: what is validated, as of `read_yaml`.
        where: the file.
        lines: a line a problem; `problem_lines` if None.

    Raises:
        UsageError: unknown, missing or bad keys; all of them are named.
    """
    try:
        return check()
    except ValidationError as error:
        problems = Problems()
        for line in dict.fromkeys((lines or problem_lines)(error)):
            problems.add(line)
        raise UsageError(f"bad {what}", where=where, details=problems.lines) from error


def problem_lines(error: ValidationError) -> Iterable[str]:
    """A line a problem: its key and what is wrong."""
    for problem in error.errors(include_url=False):
        key = ".".join(map(str, problem["loc"])) or "file"
        yield f"{key}: {problem['msg'].removeprefix('Value error, ')}"
