"""The local store: directions by name and version, in plain files.

Publishing is correct under several processes and a crash at any instruction:

    1. the files are copied into a temporary folder, synced and verified there, then shared with equal ones (`blobs`)
    2. under the name's lock, the log gets its line; a folder that it does not name is no version
    3. one rename makes the folder the version; before it there is nothing, after it everything. A crash before it leaves
       a line without a version, which the next publish of that version makes good

Removing writes the log first and then moves the folder away, so a removed version is never seen, nor its name reused.
What a crash leaves in `temporary/` belongs to nobody, and `gc` deletes it once it is old.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from wsmerge.core.files import make_folder, sync_folder
from wsmerge.errors import OutputError, StoreError
from wsmerge.registry.access import refuse_file_root, store_reading
from wsmerge.registry.blobs import shared
from wsmerge.registry.catalogue import Entry, is_name
from wsmerge.registry.direction import Direction
from wsmerge.registry.files import FolderFiles
from wsmerge.registry.garbage import GarbageReport, collect_garbage
from wsmerge.registry.history import Event, History, append_event, publish_events, read_history, untag_event
from wsmerge.registry.manifest import Manifest
from wsmerge.registry.paths import REMOVED_PREFIX, StorePaths, default_root
from wsmerge.registry.references import StoreReference, check_alias, check_name
from wsmerge.registry.registry import GARBAGE_AGE_S, Registry
from wsmerge.registry.staging import fill_version
from wsmerge.registry.versions import Version

__all__ = ["Store"]

_LOCK_TIMEOUT_S: Final = 120.0


class Store(Registry):
    """The local store in one folder.

    Nothing is made on disk before the first write. Processes and threads may share a store.

    Args:
        root: the store's folder; `default_root()` if None, looked up now. It need not exist.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.paths = StorePaths(root or default_root())

    @property
    def root(self) -> Path:
        """The store's folder."""
        return self.paths.root

    @property
    def place(self) -> str:
        """The store's folder, as messages name it."""
        return str(self.paths.root)

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
        return tuple(sorted(name for name in map(StorePaths.name_of, folders) if is_name(name)))

    def files(self, name: str, version: Version) -> FolderFiles:
        """The files of one version, in its folder."""
        return FolderFiles(self.paths.version(name, version))

    def history(self, name: str) -> History:
        """What the log of `name` tells."""
        return read_history(self.paths.log(name))

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty folder on the store's own disk, for an artifact that is about to be published; gone afterwards.

        Raises:
            OutputError: the store cannot be written.
        """
        with self._writing(), self._staged() as folder:
            yield folder

    def tag(self, name: str, alias: str, target: str) -> Entry:
        """Point `alias` of `name` to `target`: a version, another alias, or `sha256:` or `content:` with a digest.

        Raises:
            NotFoundError: there is no such target.
        """
        check_alias(alias)
        self.resolve(f"{check_name(name)}@{target}")  # before the lock makes a folder for a name that is not there
        with self._changing(name):
            entry = self.resolve(f"{name}@{target}")
            events = publish_events(self.history(name), str(entry.version), entry.version_digest, (alias,))
            self._append(name, events)
            return self.resolve(f"{name}@{entry.version}")

    def untag(self, name: str, alias: str) -> None:
        """Drop `alias` of `name`. Without `latest`, the bare name means the highest release.

        Raises:
            NotFoundError: there is no such alias.
        """
        self.version_of(StoreReference(name))
        with self._changing(name):
            append_event(self.paths.log(name), untag_event(self.history(name), name, alias))

    def remove(self, reference: str) -> Event:
        """Remove one version and the aliases that point to it; its name is never used again. `gc` frees the bytes.

        A version whose manifest is damaged can be removed too, by its version or an alias.

        Raises:
            UsageError: a bare name, which means another version tomorrow.
            NotFoundError: there is no such version.
        """
        wanted, _ = self._to_remove(reference)
        with self._changing(wanted.name):
            version = str(self.version_of(wanted))
            event = Event.now("remove", version, self.history(wanted.name).published.get(version, ""))
            append_event(self.paths.log(wanted.name), event)
            make_folder(self.paths.temporary)
            with suppress(FileNotFoundError):  # gc has seen the log already
                self.paths.version(wanted.name, version).rename(self.paths.fresh(REMOVED_PREFIX))
            sync_folder(self.paths.versions(wanted.name))
            return event

    def gc(self, *, dry_run: bool = True, min_age_s: float = GARBAGE_AGE_S) -> GarbageReport:
        """Delete removed versions, blobs that nothing uses, and temporary files untouched for `min_age_s` seconds.

        Args:
            dry_run: only count.
            min_age_s: a publish that runs has touched its files more recently than this.
        """
        with self._writing():
            removed = [
                self.paths.version(name, version)
                for name in self.known_names()
                for version in self._readable_history(name).removed
                if self.paths.version(name, version).exists()
            ]
            return collect_garbage(self.paths, removed, dry_run=dry_run, min_age_s=min_age_s)

    def _found(self, name: str) -> tuple[str, ...]:
        folder = self.paths.versions(name)
        try:
            with store_reading(folder):
                return tuple(path.name for path in folder.iterdir())
        except FileNotFoundError:
            return ()

    def _holds(self, name: str, version: Version) -> bool:
        path = self.paths.version(name, version)
        with store_reading(path):
            return path.is_dir()

    def _publish(self, direction: Direction, name: str, manifest: Manifest, aliases: Sequence[str]) -> Entry:
        if Version.parse(manifest.version) in self.version_numbers(name):
            with self._changing(name):
                return self._commit(name, manifest, None, aliases)
        with self._writing(), self._staged() as staged:
            digests = fill_version(staged, direction, manifest)
            with shared(self.paths, staged, digests), self._changing(name):
                return self._commit(name, manifest, staged, aliases)

    def _commit(self, name: str, manifest: Manifest, staged: Path | None, aliases: Sequence[str]) -> Entry:
        """Make `staged` the version, if it is not there yet; the name's lock is held."""
        history = self.history(name)
        digest, version = manifest.version_digest, manifest.version
        if version in history.removed:
            raise self._was_removed(name, version, history)
        if Version.parse(version) in self._versions(name, history):
            existing = self.resolve(f"{name}@{version}").version_digest
            if existing != digest:
                raise self._is_taken(name, version, existing, digest)
        elif staged is None:
            raise StoreError(f"{name}@{version} vanished from the store meanwhile", hint="publish it again")
        else:
            self._append(name, publish_events(history, version, digest))
            target = self.paths.version(name, version)
            make_folder(target.parent)
            with suppress(FileNotFoundError):  # what lies there was put there past the store
                target.rename(self.paths.fresh(REMOVED_PREFIX))
            staged.rename(target)
            sync_folder(target.parent)
        self._append(name, publish_events(self.history(name), version, digest, aliases))
        return self.resolve(f"{name}@{version}")

    def _append(self, name: str, events: Sequence[Event]) -> None:
        if events:
            append_event(self.paths.log(name), *events)

    @contextmanager
    def _staged(self) -> Iterator[Path]:
        staged = self.paths.fresh("publish-")
        make_folder(staged)
        try:
            yield staged
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    @contextmanager
    def _changing(self, name: str) -> Iterator[None]:
        """Hold the lock of `name`, which exists or is about to."""
        lock = self.paths.lock(check_name(name))
        with self._writing():
            make_folder(lock.parent)
            try:
                with FileLock(lock, timeout=_LOCK_TIMEOUT_S):
                    yield
            except Timeout as error:
                raise StoreError(
                    f"another process has held the lock of {name} for {_LOCK_TIMEOUT_S:g} s",
                    where=str(lock),
                    hint="wait for that process to end, and try again",
                ) from error

    @contextmanager
    def _writing(self) -> Iterator[None]:
        refuse_file_root(self.paths.root)
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"the store cannot be written: {error.strerror or error}",
                where=str(error.filename or self.paths.root),
                hint="make room (wsmerge gc --delete frees what nothing uses) and see that you may write there, or give another "
                "folder with --store or WSMERGE_HOME",
            ) from error
