"""The log of one name: append-only, one JSON object a line, and the truth about aliases and removed versions.

Aliases are not kept anywhere else, so moving one is one append, which a crash can leave out but not tear: a last line
without its newline never happened, and the next writer cuts it off. Appending needs the name's lock; reading does not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from wsmerge.core.files import make_folder, sync_folder
from wsmerge.core.opening import parse_json, read_whole
from wsmerge.errors import BadReferenceError, NotFoundError, StoreError
from wsmerge.registry.access import store_reading
from wsmerge.registry.versions import Version

__all__ = [
    "Action",
    "Event",
    "History",
    "append_event",
    "event_lines",
    "parse_history",
    "publish_events",
    "read_history",
    "untag_event",
]

Action = Literal["publish", "tag", "untag", "remove"]

_MEND_LOG: Final = (
    "restore the log from a backup, or take this line out of it: the versions are not touched, but what the line recorded "
    "(an alias, a removal) is forgotten"
)


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a log.

    Attributes:
        time: UTC, ISO 8601.
        version: the version that was published or removed, or that the alias points to.
        version_digest: of that version; empty where a crash kept its publishing out of the log.
        alias: the alias that moved; empty for `publish` and `remove`.
    """

    time: str
    action: Action
    version: str
    version_digest: str = ""
    alias: str = ""

    @classmethod
    def now(cls, action: Action, version: str, version_digest: str, alias: str = "") -> Event:
        """An event of this moment."""
        return cls(datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), action, version, version_digest, alias)


@dataclass(frozen=True, slots=True)
class History:
    """All events of one name, oldest first."""

    events: tuple[Event, ...] = ()

    @property
    def aliases(self) -> dict[str, str]:
        """The version that each alias points to. Removing a version removes its aliases."""
        aliases: dict[str, str] = {}
        for event in self.events:
            if event.action == "tag":
                aliases[event.alias] = event.version
            elif event.action == "untag":
                aliases.pop(event.alias, None)
            elif event.action == "remove":
                aliases = {alias: version for alias, version in aliases.items() if version != event.version}
        return aliases

    @property
    def removed(self) -> dict[str, str]:
        """Removed versions, which are never used again, and their version digests."""
        return {event.version: event.version_digest for event in self.events if event.action == "remove"}

    @property
    def published(self) -> dict[str, str]:
        """Versions whose publishing was logged, and their version digests."""
        return {event.version: event.version_digest for event in self.events if event.action == "publish"}


def publish_events(history: History, version: str, digest: str, aliases: Sequence[str] = ()) -> list[Event]:
    """What is missing in `history` once `version` is there and `aliases` are to point to it."""
    current = history.aliases
    moved = [alias for alias in dict.fromkeys(aliases) if current.get(alias) != version]
    known = history.published.get(version)  # of a publish that was killed before the version appeared: maybe another
    published = [] if known == digest else [Event.now("publish", version, digest)]
    return published + [Event.now("tag", version, digest, alias) for alias in moved]


def untag_event(history: History, name: str, alias: str) -> Event:
    """What dropping `alias` adds to `history`.

    Raises:
        NotFoundError: there is no such alias.
    """
    target = history.aliases.get(alias)
    if target is None:
        raise NotFoundError(f"{name} has no alias {alias}", hint=f"wsmerge list {name} shows them")
    return Event.now("untag", target, history.published.get(target, ""), alias)


def read_history(log: Path) -> History:
    """The history in file `log`; empty where there is none.

    Raises:
        StoreError: a line that is no event (the file was edited or damaged), or no permission to read it.
    """
    try:
        with store_reading(log):
            data = read_whole(log)
    except FileNotFoundError:
        return History()
    return parse_history(data, where=str(log))


def parse_history(data: bytes, *, where: str) -> History:
    """The history that the bytes of a log tell; `where` is how messages name the log.

    Raises:
        StoreError: a line that is no event.
    """
    lines = data[: data.rfind(b"\n") + 1].splitlines()
    return History(tuple(_event(line, f"{where}:{number}") for number, line in enumerate(lines, 1)))


def append_event(log: Path, *events: Event) -> None:
    """Append `events` and sync. The caller holds the name's lock."""
    make_folder(log.parent)
    created = not log.exists()
    with log.open("ab+") as file:
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)
        file.write(event_lines(events))
        file.flush()
        os.fsync(file.fileno())
    if created:
        sync_folder(log.parent)


def event_lines(events: Iterable[Event]) -> bytes:
    """`events` as lines of a log."""
    return b"".join(_line(event) for event in events)


def _line(event: Event) -> bytes:
    present = {key: value for key, value in asdict(event).items() if value}
    return json.dumps(present, separators=(",", ":")).encode() + b"\n"


def _event(line: bytes, where: str) -> Event:
    known: Sequence[Action] = ("publish", "tag", "untag", "remove")
    try:
        # A later wsmerge may add keys, but an action that is not known could change what an alias means.
        fields = {key: value for key, value in parse_json(line).items() if key in Event.__slots__}
        event = Event(**fields)
        if not all(isinstance(value, str) for value in fields.values()):
            raise ValueError("a value is no text")  # noqa: TRY301 - told as what follows
        Version.parse(event.version)
    except (ValueError, TypeError, AttributeError) as error:
        raise StoreError(f"is no line of a log: {error}", where=where, hint=_MEND_LOG) from error
    except BadReferenceError as error:
        raise StoreError(f"is no line of a log: {error.message}", where=where, hint=_MEND_LOG) from error
    if event.action not in known:
        raise StoreError(f"unknown action {event.action!r}", where=where, hint="a newer wsmerge may read this store")
    return event
