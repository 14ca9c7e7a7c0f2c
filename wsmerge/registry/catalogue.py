"""What a registry holds: the side that only reads, the same wherever the files lie.

A version is there when its files are, and the log says that it was published and not that it was removed; both are read
anew at every call, so nothing here can be out of date.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, MutableSequence, Sequence
from contextlib import suppress

from wsmerge.errors import (
    BadReferenceError,
    DirectionError,
    NotFoundError,
    StoreError,
    UsageError,
    VerificationError,
)
from wsmerge.registry.artifact_reading import read_manifest
from wsmerge.registry.direction import Direction, open_direction
from wsmerge.registry.entries import Broken, Entry, Survey, error_lines
from wsmerge.registry.files import ArtifactFiles
from wsmerge.registry.history import Event, History
from wsmerge.registry.payloads import FetchedPayload
from wsmerge.registry.references import HubReference, PathReference, StoreReference, check_name, parse_reference
from wsmerge.registry.versions import FIRST_VERSION, Version

__all__ = ["LATEST", "Broken", "Catalogue", "Entry", "Survey", "error_lines", "is_name", "store_reference"]

LATEST = "latest"
_SHOWN_VERSIONS = 8


class Catalogue(ABC):
    """The directions of a registry. Where the files lie is up to the class that extends this one."""

    @property
    @abstractmethod
    def place(self) -> str:
        """How messages name the registry: its folder or address."""

    @abstractmethod
    def known_names(self) -> tuple[str, ...]:
        """Names that the registry knows, be it that all their versions were removed; sorted.

        Raises:
            StoreError: the registry cannot be read.
        """

    @abstractmethod
    def files(self, name: str, version: Version) -> ArtifactFiles:
        """The files of one version.

        Raises:
            NotFoundError: it is not there, where that is known before a file is read.
        """

    @abstractmethod
    def history(self, name: str) -> History:
        """What happened to `name`; empty where nothing did.

        Raises:
            StoreError: the log is damaged, or cannot be read.
        """

    @abstractmethod
    def _found(self, name: str) -> Iterable[str]:
        """What lies where the versions of `name` are: versions, removed ones, and whatever else was put there."""

    @abstractmethod
    def _holds(self, name: str, version: Version) -> bool:
        """Whether one version is there, be it damaged."""

    def names(self) -> tuple[str, ...]:
        """Names that have a version, sorted; one whose log cannot be read has those whose folders are there."""
        return tuple(filter(self._has_versions, self.known_names()))

    def versions(self, name: str) -> tuple[Entry, ...]:
        """All versions of `name`, oldest first.

        Raises:
            NotFoundError: there are none.
        """
        history = self.history(name)
        versions = self._versions(name, history)
        if not versions:
            raise self._no_such_name(name)
        return self._entries(name, versions, history)

    def version_numbers(self, name: str) -> tuple[Version, ...]:
        """The versions of `name`, lowest first; their manifests are not read. Empty where there are none."""
        return self._versions(name, self.history(name))

    def list(self) -> tuple[Entry, ...]:
        """Every version in the store, by name and version.

        Raises:
            WsmergeError: a version or a log cannot be read; `survey` gives the others.
        """
        entries: list[Entry] = []
        for name in self.known_names():
            history = self.history(name)
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
                history = self.history(one)
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
        events = self.history(name).events
        if not events:
            raise self._no_such_name(name)
        return events

    def next_version(self, name: str) -> Version:
        """The version that follows all that `name` ever had, removed ones included; 1.0.0 for a new name."""
        history = self.history(name)
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
        version, versions, history = self._select(wanted)
        return self._entry(wanted.name, version, versions, history)

    def version_of(self, reference: str | StoreReference) -> Version:
        """As `resolve`, without reading the version's manifest, unless it is asked for by digest."""
        return self._select(store_reference(reference))[0]

    def open(self, reference: str | StoreReference) -> Direction:
        """The direction that `reference` means now, opened; close it after use.

        Where its files lie on no disk of this machine, each array comes once and whole.
        """
        wanted = store_reference(reference)
        version, _, history = self._select(wanted)
        direction = open_direction(self.files(wanted.name, version), label=f"{wanted.name}@{version}")
        try:
            _check_published(direction.digest, wanted.name, version, history)
        except VerificationError:
            direction.close()
            raise
        if direction.files.folder is not None:
            return direction
        payload = FetchedPayload(direction.payload, direction.manifest, direction.label)
        return Direction(direction.files, direction.manifest, payload, label=direction.label)

    def _select(self, wanted: StoreReference) -> tuple[Version, tuple[Version, ...], History]:
        """The version that `wanted` means, and all versions and the history that told so."""
        history = self.history(wanted.name)
        versions = self._versions(wanted.name, history)
        if not versions:
            raise self._no_such_name(wanted.name)
        if wanted.selector in ("sha256", "content"):
            return self._by_digest(wanted, versions, history).version, versions, history
        return _by_version_or_alias(wanted, versions, history), versions, history

    def _has_versions(self, name: str) -> bool:
        try:
            return bool(self._versions(name, self.history(name)))
        except StoreError:
            return bool(self._placed(name))

    def _readable_history(self, name: str) -> History:
        """As `history`; empty where the log is damaged."""
        try:
            return self.history(name)
        except StoreError:
            return History()

    def strays(self, name: str) -> tuple[Version, ...]:
        """What lies where a version of `name` would, and the log does not name: nobody published it."""
        history = self.history(name)
        return tuple(
            version
            for version in self._placed(name)
            if str(version) not in history.removed and not self._is_published(str(version), history)
        )

    def _is_published(self, version: str, history: History) -> bool:
        """Whether the log says so. Files alone make no version: they may have been put there past the registry."""
        return version in history.published

    def _placed(self, name: str) -> tuple[Version, ...]:
        return tuple(sorted(Version.parse(text) for text in self._found(name) if Version.is_version(text)))

    def _versions(self, name: str, history: History) -> tuple[Version, ...]:
        removed = history.removed
        return tuple(
            version
            for version in self._placed(name)
            if str(version) not in removed and self._is_published(str(version), history)
        )

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
        files = self.files(name, version)
        try:
            manifest = read_manifest(files)
        except DirectionError as error:
            if self._holds(name, version):
                raise
            raise NotFoundError(f"{name}@{version} was removed at this moment") from error
        _check_published(manifest.version_digest, name, version, history)
        targets = {LATEST: str(_latest(versions or (version,), history))} | history.aliases
        aliases = tuple(sorted(alias for alias, target in targets.items() if target == str(version)))
        digests = manifest.version_digest, manifest.content_digest
        return Entry(name, version, files.label, files.folder, manifest, *digests, aliases)

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
            where=self.place,
            hint=hint or "wsmerge list shows what there is; a folder is written ./FOLDER",
        )


def is_name(text: str) -> bool:
    """Whether a direction may be called `text`."""
    try:
        check_name(text)
    except BadReferenceError:
        return False
    return True


def store_reference(reference: str | StoreReference) -> StoreReference:
    """`reference` as one of a registry.

    Raises:
        BadReferenceError: it does not parse.
        UsageError: it is a path, or on the Hub.
    """
    if isinstance(reference, StoreReference):
        return reference
    parsed = parse_reference(reference)
    if isinstance(parsed, HubReference):
        raise UsageError(
            f"{reference} is on the Hub, and a direction of the store is needed",
            hint=f"wsmerge pull {parsed.repo} brings it into the store, as {parsed.repo}@VERSION",
        )
    if isinstance(parsed, PathReference):
        raise UsageError(f"{reference} is a path, and a direction of the store is needed", hint="write name@version")
    return parsed


def _check_published(digest: str, name: str, version: Version, history: History) -> None:
    logged = history.published.get(str(version), digest)
    if digest != logged:
        raise VerificationError(
            f"{name}@{version}: its manifest has digest {digest}, and {logged} was published",
            hint="its files were changed past the registry: remove the version, and publish it again under the next one",
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
