"""References: how a direction is named on a command line, in a recipe and in the API.

    name                        the version that `latest` points to
    name@1.2.0                  one version
    name@alias                  the version that an alias points to
    name@sha256:HEX             by version digest, or its first 12 digits or more
    name@content:HEX            by content digest, or its first 12 digits or more
    hub:owner/repo[@revision]   a repository on the Hub
    ./folder, ../f, /f, ~/f     an artifact folder

A name is `formal`, or `owner/formal` for what was pulled. Parsing and formatting are inverse, and parsing does no I/O.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from wsmerge.core.opening import expanded
from wsmerge.errors import BadReferenceError
from wsmerge.registry.versions import Version

__all__ = [
    "HubReference",
    "PathReference",
    "Reference",
    "Selector",
    "StoreReference",
    "check_alias",
    "check_name",
    "parse_reference",
    "parse_store_reference",
]

Selector = Literal["latest", "version", "alias", "sha256", "content"]

_PART: Final = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_OWN_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?")
_PULLED_NAME: Final = re.compile(rf"{_PART}/{_PART}")
_ALIAS: Final = re.compile(r"[a-z](?:[a-z0-9._-]*[a-z0-9])?")
_REVISION: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]*[A-Za-z0-9])?")
_DIGEST: Final = re.compile(r"[0-9a-f]{12,64}")
_MAX_CHARACTERS: Final = 96
_PATH_STARTS: Final = ("./", "../", "/", "~")
_HUB: Final = "hub:"
_FORMS: Final = "write name, name@1.2.0, name@alias, name@sha256:DIGEST, or a path that begins with ./ or /"
_HUB_FORMS: Final = "write hub:owner/repo, or hub:owner/repo@REVISION with a version, branch, tag or commit"


@dataclass(frozen=True, slots=True)
class StoreReference:
    """A direction of the local store.

    Attributes:
        name: `formal`, or `owner/formal`.
        selector: how the version is chosen; `latest` where only the name is given.
        value: the version, alias or digest; empty for `latest`.
    """

    name: str
    selector: Selector = "latest"
    value: str = ""

    def __str__(self) -> str:
        if self.selector == "latest":
            return self.name
        prefix = f"{self.selector}:" if self.selector in ("sha256", "content") else ""
        return f"{self.name}@{prefix}{self.value}"


@dataclass(frozen=True, slots=True)
class HubReference:
    """A repository on the Hub; `revision` is a branch, tag or commit, or None for the default branch."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{_HUB}{self.repo}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True, slots=True)
class PathReference:
    """An artifact folder, as the user wrote it."""

    text: str

    @property
    def path(self) -> Path:
        """The folder, with `~` expanded."""
        return expanded(self.text)

    def __str__(self) -> str:
        return self.text


Reference = StoreReference | HubReference | PathReference


def parse_reference(text: str) -> Reference:
    """The reference that `text` writes.

    Raises:
        BadReferenceError: it has none of the forms.
    """
    if text.startswith(_PATH_STARTS) or text in (".", ".."):
        if "\0" in text:
            raise BadReferenceError(f"a path holds no NUL character: {text!r}", hint="write the path without it")
        return PathReference(text)
    if text.startswith(_HUB):
        return _parse_hub(text)
    return parse_store_reference(text)


def parse_store_reference(text: str) -> StoreReference:
    """As `parse_reference`, for where only a direction of the local store will do."""
    name, at, rest = text.partition("@")
    check_name(name, whole=text)
    if not at:
        return StoreReference(name)
    kind, colon, digest = rest.partition(":")
    if colon and kind in ("sha256", "content"):
        if not _DIGEST.fullmatch(digest):
            raise BadReferenceError(
                f"{text!r}: a digest has 12 to 64 digits of 0-9a-f, not {digest!r}",
                hint=f"wsmerge log {name} shows the digests of its versions",
            )
        return StoreReference(name, "sha256" if kind == "sha256" else "content", digest)
    if Version.is_version(rest):
        return StoreReference(name, "version", rest)
    if rest[:1].isdigit():
        raise BadReferenceError(
            f"{text!r}: {rest!r} is no semantic version", hint=f"write all three numbers, for example {name}@1.0.0"
        )
    return StoreReference(name, "alias", check_alias(rest, whole=text))


def check_name(name: str, *, whole: str | None = None) -> str:
    """`name`, if a direction may have it.

    Raises:
        BadReferenceError: it is no name; `whole` is the reference it stands in.
    """
    # "--" stands for "/" in the store's folders, and the Hub forbids it in names as well.
    fits = _OWN_NAME.fullmatch(name) or _PULLED_NAME.fullmatch(name)
    if fits and "--" not in name and ".." not in name and len(name) <= _MAX_CHARACTERS:
        return name
    hint = _FORMS
    if re.fullmatch(_PART, name) or (fits and len(name) > _MAX_CHARACTERS):
        hint = f"names are in lower case, at most {_MAX_CHARACTERS} characters, without '--' and '..'"
    elif Path(name).is_absolute() or name.count("/") > 1:
        hint = f"a path begins with ./ or /: ./{name}"
    place = "" if whole in (None, name) else f"{whole!r}: "
    raise BadReferenceError(f"{place}{name!r} is no name of a direction", hint=hint)


def check_alias(alias: str, *, whole: str | None = None) -> str:
    """`alias`, if an alias may be called that: a lower-case letter, then letters, digits, dots, underscores, hyphens.

    Raises:
        BadReferenceError: it may not.
    """
    if _ALIAS.fullmatch(alias) and len(alias) <= _MAX_CHARACTERS:
        return alias
    place = f"{whole!r}: " if whole else ""
    raise BadReferenceError(
        f"{place}{alias!r} is neither a version, an alias nor a digest",
        hint="an alias begins with a lower-case letter; a digest with sha256: or content:",
    )


def _parse_hub(text: str) -> HubReference:
    repo, at, revision = text.removeprefix(_HUB).partition("@")
    if not _PULLED_NAME.fullmatch(repo) or "--" in repo or ".." in repo:
        raise BadReferenceError(f"{text!r}: {repo!r} is no Hub repository", hint=_HUB_FORMS)
    if at and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise BadReferenceError(f"{text!r}: {revision!r} is no branch, tag or commit", hint=_HUB_FORMS)
    return HubReference(repo, revision or None)
