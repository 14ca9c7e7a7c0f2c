"""Semantic versions (semver.org 2.0.0) without build metadata, which has no order and so could name two contents."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import total_ordering
from typing import Final, Self

from wsmerge.errors import BadReferenceError

__all__ = ["FIRST_VERSION", "Version"]

_NUMBER: Final = r"(?:0|[1-9][0-9]*)"
_IDENTIFIER: Final = rf"(?:{_NUMBER}|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
_VERSION: Final = re.compile(
    rf"(?P<major>{_NUMBER})\.(?P<minor>{_NUMBER})\.(?P<patch>{_NUMBER})(?:-(?P<pre>{_IDENTIFIER}(?:\.{_IDENTIFIER})*))?"
)
_MAX_CHARACTERS: Final = 64


@total_ordering
@dataclass(frozen=True, slots=True)
class Version:
    """One semantic version. Ordered by semver's rules: 1.0.0-rc.2 < 1.0.0-rc.10 < 1.0.0 < 1.0.1.

    Attributes:
        pre: identifiers of a pre-release (`rc`, `1`); empty for a released version.
    """

    major: int
    minor: int
    patch: int
    pre: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """The version that `text` writes.

        Raises:
            BadReferenceError: it is no semantic version.
        """
        match = _VERSION.fullmatch(text) if len(text) <= _MAX_CHARACTERS else None
        if match is None:
            raise BadReferenceError(
                f"{text!r} is no semantic version", hint="write MAJOR.MINOR.PATCH, for example 1.0.0 or 1.1.0-rc.1"
            )
        pre = tuple(match["pre"].split(".")) if match["pre"] else ()
        return cls(int(match["major"]), int(match["minor"]), int(match["patch"]), pre)

    @classmethod
    def is_version(cls, text: str) -> bool:
        """Whether `text` is a semantic version."""
        return len(text) <= _MAX_CHARACTERS and _VERSION.fullmatch(text) is not None

    @property
    def released(self) -> bool:
        """Whether this is no pre-release."""
        return not self.pre

    def next(self) -> Self:
        """The release that follows: of a pre-release its release, else the next patch."""
        return type(self)(self.major, self.minor, self.patch + (0 if self.pre else 1))

    def __str__(self) -> str:
        release = f"{self.major}.{self.minor}.{self.patch}"
        return f"{release}-{'.'.join(self.pre)}" if self.pre else release

    def __lt__(self, other: Version) -> bool:
        return self._order() < other._order()

    def _order(self) -> tuple[int, int, int, bool, tuple[tuple[bool, int, str], ...]]:
        # Numeric identifiers come before others and compare as numbers; a release comes after its pre-releases.
        pre = tuple((False, int(part), "") if part.isdigit() else (True, 0, part) for part in self.pre)
        return self.major, self.minor, self.patch, self.released, pre


FIRST_VERSION: Final = Version(1, 0, 0)
