r"""Text that a stranger may have written, made fit for a terminal, a JSON document or a Markdown page.

A description can hold escape sequences that clear the screen or set the window's title, and bidirectional marks that
show a name in another order than it has. Both are shown as escapes (`\x1b`, `\u202e`) instead of being obeyed.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

__all__ = ["escaped_json", "fenced", "figure_text", "inline_code", "plain_text", "printable"]

_CONTROLS: Final = (
    r"\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but for tab and newline, DEL, C1
    r"\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # directions, zero widths
    r"\u2028\u2029\ud800-\udfff\U000e0000-\U000e007f"  # line separators, halves of surrogate pairs, tags
)
_UNPRINTABLE: Final = re.compile(f"[{_CONTROLS}]")
_MARKDOWN: Final = re.compile(
    r"[\\`*<>|~$]|\](?=[(\[:])|(?<!\w)_|_(?!\w)|&(?=#?\w+;)|^(?:[#+=-]|\d+(?=[.)]))", re.ASCII
)


def printable(text: str) -> str:
    """`text` with its control and bidirectional characters as escapes; newlines and tabs stay."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def escaped_json(value: Any, *, indent: int | None = None) -> str:  # noqa: ANN401 - any JSON value
    """`value` as JSON in Unicode whose unprintable characters are JSON's own escapes: it reads back as the same value.

    Raises:
        ValueError: NaN or infinity, which JSON cannot hold.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False, default=str)
    return _UNPRINTABLE.sub(_json_escape, text)


def plain_text(text: str) -> str:
    """`text` as plain words within a paragraph or a cell of Markdown: one line, no markup, no HTML."""
    return _MARKDOWN.sub(_escaped_mark, printable(" ".join(text.split())))


def inline_code(text: str) -> str:
    """`text` between backquotes, on one line; empty for none."""
    line = printable(" ".join(text.split())).replace("`", "'")
    return f"`{line}`" if line else ""


def fenced(language: str, text: str) -> str:
    """`text` as a block of code, by a fence that is longer than any within it."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{printable(text)}\n{fence}"


def figure_text(text: str) -> str:
    """`text` as matplotlib draws it and nothing else: what stands between dollars would be a formula, or none and an error."""
    return printable(text).replace("$", r"\$")


def _json_escape(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def _escaped_mark(found: re.Match[str]) -> str:
    mark = found[0]
    if mark in "<>&":
        return {"<": "&lt;", ">": "&gt;", "&": "&amp;"}[mark]
    return f"{mark}\\" if mark.isdigit() else f"\\{mark}"  # a number begins a list by the mark behind it
