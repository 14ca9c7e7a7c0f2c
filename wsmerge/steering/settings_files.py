"""YAML files of settings that a pydantic model describes: read, and refused with every problem at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import ValidationError

from wsmerge.core.opening import read_whole
from wsmerge.errors import Problems, UsageError

__all__ = ["problem_lines", "read_yaml", "validated"]

Model = TypeVar("Model")


def read_yaml(path: Path, what: str) -> object:
    """The value that a YAML file (UTF-8) holds.

    Args:
        path: the file.
        what: what it is called in messages: `sweep file`.

    Raises:
        UsageError: it cannot be read, or is not YAML.
    """
    try:
        return yaml.safe_load(read_whole(path).decode())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"cannot read the {what}: {error}", where=str(path)) from error


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
