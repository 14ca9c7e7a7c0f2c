"""How a store remembers the commit that a version was pulled from: the alias `commit-HEX`, with all 40 digits.

So it is in the log, moves to no other version, and `owner/repo@commit-HEX` is a reference to what was pulled from there.
"""

from __future__ import annotations

from typing import Final

from wsmerge.registry.entries import Entry

__all__ = ["commits_of", "pin_of", "shown_alias"]

_PIN: Final = "commit-"
_SHOWN: Final = len(_PIN) + 12


def pin_of(commit: str) -> str:
    """The alias for a commit of 40 digits."""
    return f"{_PIN}{commit}"


def commits_of(entry: Entry) -> tuple[str, ...]:
    """The commits that a version in the store was pulled from; none if it was not pulled."""
    return tuple(alias.removeprefix(_PIN) for alias in entry.aliases if alias.startswith(_PIN))


def shown_alias(alias: str) -> str:
    """`alias`, that of a commit by its first 12 digits."""
    return alias[:_SHOWN] if alias.startswith(_PIN) else alias
