"""What a local store holds: the side that only reads, takes no lock and makes no folder.

A version is there when its folder is and the log does not say that it was removed; both are read anew at every call,
so nothing here can be out of date.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, MutableSequence, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from wsmerge.errors import BadReferenceError, DirectionError, NotFoundError, StoreError, UsageError, WsmergeError
from wsmerge.registry.access import store_reading
from wsmerge.registry.direction import Direction, open_direction_folder, read_manifest
from wsmerge.registry.history import Event, History, read_history
from wsmerge.registry.manifest import Manifest
from wsmerge.registry.paths import StorePaths, default_root
from wsmerge.registry.references import HubReference, PathReference, StoreReference, check_name, parse_reference
from wsmerge.registry.versions import FIRST_VERSION, Version

__all__ = ["LATEST", "Broken", "Catalogue", "Entry", "Survey"]

LATEST = "latest"
_SHOWN_VERSIONS = 8


@dataclass(frozen=True, slots=True)
class Entry:
    """One version in the store.

    Attributes:
        name: under which it is stored: the manifest's, or `owner/name` of what was pulled.
        path: its artifact folder, read-only.
        aliases: that point to it, `latest` among them where it is the one that the bare name means.
    """

    name: str
    version: Version
    path: Path
    manifest: Manifest
    version_digest: str
    content_digest: str
    aliases: tuple[str, ...]

    @property
    def label(self) -> str:
        """`name@version`, a reference that always means this version."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class Broken:
    """A version, or the whole of a name, that cannot be read.

    Attributes:
        label: `name@version`, or the name where its log is damaged.
        error: why.
    """

    label: str
    error: WsmergeError

    def __str__(self) -> str:
        command = f"wsmerge verify {self.label}" if "@" in self.label else self.error.hint or "wsmerge verify"
        return f"{self.label} cannot be read: {'; '.join(error_lines(self.error))}; next: {command}"


@dataclass(frozen=True, slots=True)
class Survey:
    """What can be read of a store, and what cannot."""

    entries: tuple[Entry, ...]
    broken: tuple[Broken, ...]


class Catalogue:
    """The directions of the store in one folder.

    Args:
        root: the store's folder; `default_root()` if None, looked up now. It need not exist.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.paths = StorePaths(root or default_root())

    @property
    def root(self) -> Path:
        """The store's folder."""
        return self.paths.root

    def names(self) -> tuple[str, ...]:
        """Names that have a version, sorted; one whose log cannot be read has those whose folders are there."""
        return tuple(name for name in self.known_names() if self._versions(name, self._readable_history(name)))

    def known_names(self) -> tuple[str, ...]:
        """Names that the store has a folder for, be it that all their versions were removed; sorted.

        Raises:
            StoreError: the store is a file, or may not be read.
        """
        try:
            with store_reading(self.paths.directions):
                folders = [path for path in self.paths.directions.iterdir() if path.is_dir()]
        except FileNotFoundError:
            return ()
        return tuple(sorted(name for name in map(StorePaths.name_of, folders) if _is_name(name)))

    def versions(self, name: str) -> tuple[Entry, ...]:
        """All versions of `name`, oldest first.

        Raises:
            NotFoundError: there are none.
        """
        history = self._history(name)
        versions = self._versions(name, history)
        if not versions:
            raise self._no_such_name(name)
        return self._entries(name, versions, history)

    def version_numbers(self, name: str) -> tuple[Version, ...]:
        """The versions of `name`, lowest first; their manifests are not read. Empty where there are none."""
        return self._versions(name, self._history(name))

    def list(self) -> tuple[Entry, ...]:
        """Every version in the store, by name and version.

        Raises:
            WsmergeError: a version or a log cannot be read; `survey` gives the others.
        """
        entries: list[Entry] = []
        for name in self.known_names():
            history = self._history(name)
            entries += self._entries(name, self._versions(name, history), history)
        return tuple(entries)

    def survey(self, name: str | None = None) -> Survey:
        """All versions of `name`, or of the store, that can be read, and why others cannot.

        Raises:
            NotFoundError: `name` has no version.
            StoreError: the store itself cannot be read.
        """
        entries: MutableSequence[Entry] = []
        broken: MutableSequence[Broken] = []
        known = self.known_names()
        for one in known if name is None else (check_name(name),):
            try:
                history = self._history(one)
            except StoreError as error:
                broken.append(Broken(one, error))
                continue
            versions = self._versions(one, history)
            if name is not None and not versions:
                raise self._no_such_name(name)
            entries += self._entries(one, versions, history, broken)
        return Survey(tuple(entries), tuple(broken))

    def log(self, name: str) -> tuple[Event, ...]:
        """What happened to `name`, oldest first.

        Raises:
            NotFoundError: nothing ever did.
        """
        events = self._history(name).events
        if not events and not self._versions(name, History()):
            raise self._no_such_name(name)
        return events

    def next_version(self, name: str) -> Version:
        """The version that follows all that `name` ever had, removed ones included; 1.0.0 for a new name."""
        history = self._history(name)
        used = [*self._versions(name, history), *map(Version.parse, history.removed)]
        return max(used).next() if used else FIRST_VERSION

    def resolve(self, reference: str | StoreReference) -> Entry:
        """The version that `reference` means now.

        A bare name means what `latest` was moved to, else the highest release, else the highest pre-release.

        Raises:
            NotFoundError: no such name, version, alias or digest; with the nearest ones.
            BadReferenceError: it does not parse.
        """
        wanted = store_reference(reference)
        version = self.version_of(wanted)
        history = self._history(wanted.name)
        return self._entry(wanted.name, version, self._versions(wanted.name, history), history)

    def version_of(self, reference: str | StoreReference) -> Version:
        """As `resolve`, without reading the version's manifest, unless it is asked for by digest."""
        wanted = store_reference(reference)
        history = self._history(wanted.name)
        versions = self._versions(wanted.name, history)
        if not versions:
            raise self._no_such_name(wanted.name)
        if wanted.selector in ("sha256", "content"):
            return self._by_digest(wanted, versions, history).version
        return _by_version_or_alias(wanted, versions, history)

    def open(self, reference: str | StoreReference) -> Direction:
        """The direction that `reference` means now, opened; close it after use."""
        entry = self.resolve(reference)
        return open_direction_folder(entry.path, label=entry.label)

    def _history(self, name: str) -> History:
        return read_history(self.paths.log(name))

    def _readable_history(self, name: str) -> History:
        """As `_history`; empty where the log is damaged."""
        try:
            return self._history(name)
        except StoreError:
            return History()

    def _versions(self, name: str, history: History) -> tuple[Version, ...]:
        folder = self.paths.versions(name)
        try:
            with store_reading(folder):
                found = [path.name for path in folder.iterdir()]
        except FileNotFoundError:
            return ()
        removed = history.removed
        return tuple(sorted(Version.parse(text) for text in found if Version.is_version(text) and text not in removed))

    def _entries(
        self, name: str, versions: Sequence[Version], history: History, broken: MutableSequence[Broken] | None = None
    ) -> tuple[Entry, ...]:
        """Those of `versions` that are still there. One that cannot be read is an error, or goes to `broken`."""
        entries = []
        for version in versions:
            try:
                with suppress(NotFoundError):  # removed since `versions` was read
                    entries.append(self._entry(name, version, versions, history))
            except (DirectionError, StoreError) as error:
                if broken is None:
                    raise
                broken.append(Broken(f"{name}@{version}", error))
        return tuple(entries)

    def _entry(self, name: str, version: Version, versions: Sequence[Version], history: History) -> Entry:
        path = self.paths.version(name, version)
        try:
            manifest = read_manifest(path)
        except DirectionError as error:
            with store_reading(path):
                damaged = path.is_dir()
            if damaged:
                raise
            raise NotFoundError(f"{name}@{version} was removed at this moment") from error
        targets = {LATEST: str(_latest(versions or (version,), history))} | history.aliases
        aliases = tuple(sorted(alias for alias, target in targets.items() if target == str(version)))
        return Entry(name, version, path, manifest, manifest.version_digest, manifest.content_digest, aliases)

    def _by_digest(self, wanted: StoreReference, versions: Sequence[Version], history: History) -> Entry:
        digest_of: Callable[[Entry], str] = (
            (lambda entry: entry.version_digest) if wanted.selector == "sha256" else lambda entry: entry.content_digest
        )
        broken: MutableSequence[Broken] = []
        entries = self._entries(wanted.name, versions, history, broken)
        found = [entry for entry in entries if digest_of(entry).startswith(wanted.value)]
        if not found:
            raise NotFoundError(
                f"{wanted} is not in the store",
                hint=_known(wanted.name, versions, history),
                details=tuple(map(str, broken)),
            )
        if len({digest_of(entry) for entry in found}) > 1:
            labels = ", ".join(entry.label for entry in found)
            raise NotFoundError(f"{wanted} means several versions: {labels}", hint="give more digits")
        return found[-1]  # equal contents under several versions: the highest

    def _no_such_name(self, name: str) -> NotFoundError:
        names = self.names()
        near = difflib.get_close_matches(name, names, n=3)
        same_end = [other for other in names if other.rpartition("/")[2] == name]
        hint = f"did you mean {' or '.join(near or same_end)}?" if near or same_end else None
        if not names:
            hint = "the store is empty: wsmerge publish ./FOLDER puts a direction into it"
        return NotFoundError(
            f"there is no direction {name!r} in the store",
            where=str(self.paths.root),
            hint=hint or "wsmerge list shows what there is; a folder is written ./FOLDER",
        )


def error_lines(error: WsmergeError) -> tuple[str, ...]:
    """What went wrong, a line a problem and without the next step, to stand in another message."""
    head = f"{error.where}: {error.message}" if error.where else error.message
    return tuple(f"{head}: {detail}" for detail in error.details) or (head,)


def _is_name(text: str) -> bool:
    try:
        check_name(text)
    except BadReferenceError:
        return False
    return True


def store_reference(reference: str | StoreReference) -> StoreReference:
    """`reference` as one of the local store.

    Raises:
        BadReferenceError: it does not parse.
        UsageError: it is a path.
        StoreError: it is on the Hub.
    """
    if isinstance(reference, StoreReference):
        return reference
    parsed = parse_reference(reference)
    if isinstance(parsed, HubReference):
        raise no_hub(parsed)
    if isinstance(parsed, PathReference):
        raise UsageError(f"{reference} is a path, and a direction of the store is needed", hint="write name@version")
    return parsed


def no_hub(reference: HubReference) -> StoreError:
    """What resolving a Hub reference raises in this version."""
    return StoreError(
        f"{reference}: this version of wsmerge has no Hub support",
        hint=f"download the repository, and give the folder: hf download {reference.repo} --local-dir ./FOLDER",
    )


def _by_version_or_alias(wanted: StoreReference, versions: Sequence[Version], history: History) -> Version:
    if wanted.selector == "latest" or (wanted.selector, wanted.value) == ("alias", LATEST):
        return _latest(versions, history)
    target = wanted.value if wanted.selector == "version" else history.aliases.get(wanted.value)
    if target is not None and Version.parse(target) in versions:
        return Version.parse(target)
    if wanted.value in history.removed:
        raise NotFoundError(f"{wanted} was removed", hint=_known(wanted.name, versions, history))
    raise NotFoundError(
        f"{wanted.name} has no {wanted.selector} {wanted.value}", hint=_known(wanted.name, versions, history)
    )


def _latest(versions: Sequence[Version], history: History) -> Version:
    chosen = history.aliases.get(LATEST)
    if chosen is not None and Version.parse(chosen) in versions:
        return Version.parse(chosen)
    return max([version for version in versions if version.released] or versions)


def _known(name: str, versions: Sequence[Version], history: History) -> str:
    shown = [str(version) for version in versions[-_SHOWN_VERSIONS:]]
    earlier = ["..."] if len(versions) > _SHOWN_VERSIONS else []
    aliases = [f"{alias} -> {version}" for alias, version in sorted(history.aliases.items())]
    return f"{name} has {', '.join([*earlier, *shown, *aliases])}"
