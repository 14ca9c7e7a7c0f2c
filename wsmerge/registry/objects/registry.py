"""A registry on an object store: the same as the local store, for everybody who reaches the store, and without locks.

Publishing is correct under several writers and a crash at any request:

    1. the source is verified, and its files become blobs (`upload`); nothing names them yet
    2. one conditional write, which only the first of several writers does, makes the version's object
    3. the log gets its lines by compare-and-swap (`log`); a crash before it costs the lines alone, and publishing the
       same again writes them

Removing is a line in the log, so a removed version is never seen, nor its name reused. What a crash leaves is blobs that
nothing names and an upload that does not go on, which `gc` deletes. A direction that is opened is read where it lies, by
range.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NoReturn

from wsmerge.errors import NotFoundError, StoreError
from wsmerge.registry.catalogue import Entry, is_name
from wsmerge.registry.direction import Direction
from wsmerge.registry.garbage import GarbageReport
from wsmerge.registry.history import Event, History, publish_events, untag_event
from wsmerge.registry.manifest import Manifest
from wsmerge.registry.objects.files import ObjectFiles
from wsmerge.registry.objects.garbage import collect_garbage
from wsmerge.registry.objects.interface import ObjectAbsentError, ObjectChangedError, Objects
from wsmerge.registry.objects.layout import (
    NAMES,
    StoredVersion,
    name_of_key,
    version_key,
    version_of_key,
    versions_prefix,
)
from wsmerge.registry.objects.log import change_log, read_log
from wsmerge.registry.objects.upload import bring
from wsmerge.registry.references import StoreReference, check_alias, check_name
from wsmerge.registry.registry import GARBAGE_AGE_S, Registry
from wsmerge.registry.versions import Version

__all__ = ["ObjectRegistry"]

_SHARED_WITH: Final = 8


class ObjectRegistry(Registry):
    """The registry under one prefix of an object store.

    Args:
        objects: the objects under that prefix. Nothing is asked before it is needed.
    """

    def __init__(self, objects: Objects) -> None:
        self.objects = objects

    @property
    def place(self) -> str:
        """The address, as messages name it."""
        return self.objects.label

    def known_names(self) -> tuple[str, ...]:
        """Names that the registry knows, be it that all their versions were removed; sorted."""
        found = {name_of_key(listed.key) for listed in self.objects.list(NAMES)}
        return tuple(sorted(filter(is_name, found)))

    def files(self, name: str, version: Version) -> ObjectFiles:
        """The files of one version, as its object names them.

        Raises:
            NotFoundError: there is no such version.
            StoreError: its object is damaged.
        """
        stored = self._stored(name, str(version))
        if stored is None:
            raise NotFoundError(f"{name}@{version} is not there", where=self.place)
        return ObjectFiles(self.objects, stored, f"{self.place}/{name}@{version}")

    def history(self, name: str) -> History:
        """What the log of `name` tells."""
        return read_log(self.objects, name)

    def tag(self, name: str, alias: str, target: str) -> Entry:
        """Point `alias` of `name` to `target`: a version, another alias, or `sha256:` or `content:` with a digest.

        Raises:
            NotFoundError: there is no such target.
        """
        check_alias(alias)
        reference = f"{check_name(name)}@{target}"
        decided: list[Version] = []

        def decide(history: History) -> Sequence[Event]:
            # Looked up anew each time: were it to read a later log than `history`, the write would be refused.
            entry = self.resolve(reference)
            decided[:] = [entry.version]
            return publish_events(history, str(entry.version), entry.version_digest, (alias,))

        change_log(self.objects, name, decide)
        return self.resolve(f"{name}@{decided[0]}")

    def untag(self, name: str, alias: str) -> None:
        """Drop `alias` of `name`. Without `latest`, the bare name means the highest release.

        Raises:
            NotFoundError: there is no such alias.
        """
        self.version_of(StoreReference(name))
        change_log(self.objects, name, lambda history: (untag_event(history, name, alias),))

    def remove(self, reference: str) -> Event:
        """Remove one version and the aliases that point to it; its name is never used again. `gc` frees the bytes.

        Raises:
            UsageError: a bare name, which means another version tomorrow.
            NotFoundError: there is no such version.
        """
        wanted, _ = self._to_remove(reference)
        decided: list[Event] = []

        def decide(history: History) -> Sequence[Event]:
            version = str(self.version_of(wanted))
            decided[:] = [Event.now("remove", version, history.published.get(version, ""))]
            return decided

        change_log(self.objects, wanted.name, decide)
        return decided[0]

    def gc(self, *, dry_run: bool = True, min_age_s: float = GARBAGE_AGE_S) -> GarbageReport:
        """Delete removed versions, blobs that nothing uses, and uploads that did not go on, older than `min_age_s`.

        Args:
            dry_run: only count.
            min_age_s: longer than the clocks of this machine and of the store are apart; a publish that runs says so
                once a minute.

        Raises:
            StoreError: a version is damaged, so that nobody knows which blobs it uses; nothing is deleted then.
        """
        return collect_garbage(self.objects, self._readable_history, dry_run=dry_run, min_age_s=min_age_s)

    def _found(self, name: str) -> tuple[str, ...]:
        return tuple(version_of_key(listed.key) for listed in self.objects.list(versions_prefix(name)))

    def _is_published(self, version: str, history: History) -> bool:  # noqa: ARG002 - the one conditional write says it
        return True

    def _holds(self, name: str, version: Version) -> bool:
        try:
            self.objects.head(version_key(name, version))
        except ObjectAbsentError:
            return False
        return True

    def _stored(self, name: str, version: str) -> StoredVersion | None:
        key = version_key(name, version)
        try:
            data = self.objects.get(key).data
        except ObjectAbsentError:
            return None
        return StoredVersion.decode(data, where=f"{self.place}/{key}")

    def _publish(self, direction: Direction, name: str, manifest: Manifest, aliases: Sequence[str]) -> Entry:
        version, digest = manifest.version, manifest.version_digest
        history = self.history(name)
        self._refuse_removed(name, version, history)
        stored = self._stored(name, version) or self._bring(direction, name, manifest)
        if stored.version_digest != digest:
            raise self._is_taken(name, version, stored.version_digest, digest)

        def decide(history: History) -> Sequence[Event]:
            self._refuse_removed(name, version, history)
            return publish_events(history, version, digest, aliases)

        change_log(self.objects, name, decide)
        try:
            return self.resolve(f"{name}@{version}")
        except NotFoundError:
            self._refuse_removed(name, version, self.history(name))  # at this moment
            raise

    def _refuse_removed(self, name: str, version: str, history: History) -> None:
        if version in history.removed:
            raise self._was_removed(name, version, history)

    def _bring(self, direction: Direction, name: str, manifest: Manifest) -> StoredVersion:
        """Upload the files and make the version; if another writer was first, what that one stored."""
        key = version_key(name, manifest.version)

        def commit(stored: StoredVersion) -> StoredVersion:
            try:
                self.objects.put(key, stored.encode(), if_absent=True)
            except ObjectChangedError:
                return self._stored(name, manifest.version) or self._vanished(name, manifest.version)
            return stored

        return bring(self.objects, direction, manifest, lambda: self._blobs_of(name), commit)

    def _vanished(self, name: str, version: str) -> NoReturn:
        self._refuse_removed(name, version, self.history(name))
        raise StoreError(f"{name}@{version} vanished meanwhile", where=self.place, hint="publish it again")

    def _blobs_of(self, name: str) -> dict[str, str]:
        """Blobs of the newest versions of `name`, by the SHA-256 of their bytes: a new version may share them."""
        versions = self.version_numbers(name)[-_SHARED_WITH:]
        stored = (self._stored(name, str(version)) for version in versions)
        return {file.sha256: file.blob for version in stored if version for file in version.files.values()}
