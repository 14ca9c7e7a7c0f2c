"""Regular expressions that an adapter's author wrote, matched with bounded work.

An expression may take exponential time (`(a+)+!`), and Python's `re` cannot be stopped. PEFT's meaning is that of `re`, so it
is `re` that matches here too: expressions without repetition or groups at once, any others in a process of its own, which the
system ends after `_CPU_SECONDS` of computing.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

from wsmerge.errors import AdapterError

__all__ = ["first_matches", "is_pattern"]

_PLAIN: Final = re.compile(r"(?:\.\*)?[^*+?{(]*")
_LONGEST: Final = 4096
_MATCHED_HERE: Final = 1 << 20  # pairs of an expression and a name; about a second
_CPU_SECONDS: Final = 3
_WALL_SECONDS: Final = 300
_CHILD: Final = f"""
import json, re, resource, sys
resource.setrlimit(resource.RLIMIT_CPU, ({_CPU_SECONDS}, {_CPU_SECONDS}))
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
texts, names = json.load(sys.stdin)
patterns = [re.compile(text) for text in texts]
print(json.dumps([next((i for i, one in enumerate(patterns) if one.match(name)), None) for name in names]))
"""


def is_pattern(text: str) -> bool:
    """Whether PEFT can match `text` as a key of `rank_pattern` or `alpha_pattern`."""
    if len(text) > _LONGEST:
        return False
    try:
        re.compile(_whole(text))
    except (re.error, OverflowError, RecursionError):
        return False
    return True


def first_matches(patterns: Sequence[str], names: Sequence[str]) -> list[int | None]:
    """For each name, which pattern is the first to match all of it, or all of it after a dot; None where none does.

    Raises:
        AdapterError: matching takes too long.
    """
    whole = [_whole(text) for text in patterns]
    if all(_PLAIN.fullmatch(text) for text in patterns) and len(patterns) * len(names) <= _MATCHED_HERE:
        compiled = [re.compile(text) for text in whole]
        return [next((index for index, one in enumerate(compiled) if one.match(name)), None) for name in names]
    try:
        done = subprocess.run(  # noqa: S603 - this Python, and text on its standard input
            [sys.executable, "-I", "-S", "-c", _CHILD],
            input=json.dumps([whole, list(names)]),
            capture_output=True,
            text=True,
            timeout=_WALL_SECONDS,
            check=True,
        )
    except (subprocess.SubprocessError, OSError) as error:
        raise AdapterError(
            f"the regular expressions of rank_pattern or alpha_pattern take too long to match {len(names)} names",
            hint="write the names of modules in their place",
        ) from error
    found: list[int | None] = json.loads(done.stdout)
    return found


def _whole(text: str) -> str:
    """The expression that PEFT makes of a key."""
    return rf"(.*\.)?({text})$"
