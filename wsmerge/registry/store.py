"""The local store: directions by name and version, in plain files.

Publishing is correct under several processes and a crash at any instruction:

    1. the files are copied into a temporary folder, synced, shared with equal ones (`blobs`), and verified there
    2. under the name's lock, one rename makes the folder the version; before it there is nothing, after it everything
    3. the log gets its line; a crash before it costs the line alone, and the next publish of that version writes it

Removing writes the log first and then moves the folder away, so a removed version is never seen, nor its name reused.
What a crash leaves in `temporary/` belongs to nobody, and `gc` deletes it once it is old.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NoReturn

from filelock import FileLock, Timeout

from wsmerge.core.files import make_folder, sync_folder
from wsmerge.errors import ConflictError, NotFoundError, OutputError, StoreError, UsageError
from wsmerge.registry.access import refuse_file_root, store_reading
from wsmerge.registry.catalogue import Catalogue, Entry, store_reference
from wsmerge.registry.compare import Difference, compare_directions
from wsmerge.registry.direction import Direction, open_direction_folder
from wsmerge.registry.garbage import GarbageReport, collect_garbage
from wsmerge.registry.history import Event, append_event
from wsmerge.registry.manifest import Manifest
from wsmerge.registry.paths import REMOVED_PREFIX
from wsmerge.registry.references import StoreReference, check_alias, check_name
from wsmerge.registry.search import search_entries
from wsmerge.registry.staging import fill_version, readdressed
from wsmerge.registry.verification import VerificationReport, verify_store, verify_version

__all__ = ["Store"]

_LOCK_TIMEOUT_S: Final = 120.0
_GARBAGE_AGE_S: Final = 3600.0


class Store(Catalogue):
    """The local store in one folder: all of `Catalogue`, and what changes it.

    Nothing is made on disk before the first write. Processes and threads may share a store.
    """

    def publish(
        self,
        source: Path | Direction,
        *,
        name: str | None = None,
        version: str | None = None,
        aliases: Sequence[str] = (),
    ) -> Entry:
        """Store `source` as a version, whole or not at all.

        Publishing the same direction again does nothing but move the aliases.

        Args:
            source: an artifact folder, or an opened direction.
            name: under which to store it; the manifest's if None. The manifest is rewritten to it, unless it is
                `owner/name`, which is where a pulled direction is kept as it was.
            version: the manifest is rewritten to it; the manifest's if None.
            aliases: that shall point to it.

        Raises:
            ConflictError: the version is there with another digest, or was removed.
            VerificationError: tensors that are not what the manifest says.
            DirectionError: no artifact, or payload and manifest do not agree.
            BadReferenceError: a bad name, version or alias.
            OutputError: the store cannot be written.
        """
        for alias in aliases:
            check_alias(alias)
        if isinstance(source, Direction):
            return self._publish(source, name, version, aliases)
        with open_direction_folder(source) as direction:
            return self._publish(direction, name, version, aliases)

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
            self._move_aliases(entry, (alias,))
            return self.resolve(f"{name}@{entry.version}")

    def untag(self, name: str, alias: str) -> None:
        """Drop `alias` of `name`. Without `latest`, the bare name means the highest release.

        Raises:
            NotFoundError: there is no such alias.
        """
        self.version_of(StoreReference(name))
        with self._changing(name):
            history = self._history(name)
            target = history.aliases.get(alias)
            if target is None:
                raise NotFoundError(f"{name} has no alias {alias}", hint=f"wsmerge list {name} shows them")
            digest = history.published.get(target, "")
            append_event(self.paths.log(name), Event.now("untag", target, digest, alias))

    def remove(self, reference: str) -> Event:
        """Remove one version and the aliases that point to it; its name is never used again. `gc` frees the bytes.

        A version whose manifest is damaged can be removed too, by its version or an alias.

        Raises:
            UsageError: a bare name, which means another version tomorrow.
            NotFoundError: there is no such version.
        """
        wanted = store_reference(reference)
        version = str(self.version_of(wanted))
        if wanted.selector == "latest":
            raise UsageError(f"which version of {wanted.name}?", hint=f"name it: {wanted.name}@{version}")
        with self._changing(wanted.name):
            version = str(self.version_of(wanted))
            event = Event.now("remove", version, self._history(wanted.name).published.get(version, ""))
            append_event(self.paths.log(wanted.name), event)
            make_folder(self.paths.temporary)
            with suppress(FileNotFoundError):  # gc has seen the log already
                self.paths.version(wanted.name, version).rename(self.paths.fresh(REMOVED_PREFIX))
            sync_folder(self.paths.versions(wanted.name))
            return event

    def diff(self, left: str, right: str) -> Difference:
        """What changed from version `left` to version `right`."""
        with self.open(left) as first, self.open(right) as second:
            return compare_directions(first, second)

    def verify(self, reference: str | None = None) -> VerificationReport:
        """Hash one version, or all of the store; the report names every problem found."""
        if reference is None:
            return verify_store(self)
        wanted = store_reference(reference)
        return verify_version(self, wanted.name, self.version_of(wanted))

    def search(
        self,
        query: str = "",
        *,
        base: str | None = None,
        kind: str | None = None,
        name: str | None = None,
        dataset: str | None = None,
    ) -> tuple[Entry, ...]:
        """Versions whose metadata has every word of `query` and every given field; see `search_entries`.

        Raises:
            UsageError: there is no such kind.
            WsmergeError: a version or a log cannot be read; `survey` gives the others.
        """
        return search_entries(self.list(), query, base=base, kind=kind, name=name, dataset=dataset)

    def gc(self, *, dry_run: bool = True, min_age_s: float = _GARBAGE_AGE_S) -> GarbageReport:
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

    def _publish(self, direction: Direction, name: str | None, version: str | None, aliases: Sequence[str]) -> Entry:
        manifest = readdressed(direction.manifest, name, version)
        stored_name = check_name(name or manifest.name)
        with store_reading(self.paths.root):
            present = self.paths.version(stored_name, manifest.version).exists()
        if present:
            with self._changing(stored_name):
                return self._commit(stored_name, manifest, None, aliases)
        with self._writing(), self._staged() as staged:
            fill_version(self.paths, staged, direction, manifest)
            with self._changing(stored_name):
                return self._commit(stored_name, manifest, staged, aliases)

    def _commit(self, name: str, manifest: Manifest, staged: Path | None, aliases: Sequence[str]) -> Entry:
        """Make `staged` the version, if it is not there yet; the name's lock is held."""
        history = self._history(name)
        digest, version = manifest.version_digest, manifest.version
        if version in history.removed:
            self._conflict(name, version, f"was removed (it had digest {history.removed[version]})")
        target = self.paths.version(name, version)
        if target.exists():
            existing = self.resolve(f"{name}@{version}").version_digest
            if existing != digest:
                self._conflict(name, version, f"is in the store with digest {existing}, and this one has {digest}")
        elif staged is None:
            raise StoreError(f"{name}@{version} vanished from the store meanwhile", hint="publish it again")
        else:
            make_folder(target.parent)
            staged.rename(target)
            sync_folder(target.parent)
        if version not in history.published:
            append_event(self.paths.log(name), Event.now("publish", version, digest))
        self._move_aliases(self.resolve(f"{name}@{version}"), aliases)
        return self.resolve(f"{name}@{version}")

    def _move_aliases(self, entry: Entry, aliases: Sequence[str]) -> None:
        current = self._history(entry.name).aliases
        version = str(entry.version)
        moved = [alias for alias in dict.fromkeys(aliases) if current.get(alias) != version]
        if moved:
            events = [Event.now("tag", version, entry.version_digest, alias) for alias in moved]
            append_event(self.paths.log(entry.name), *events)

    def _conflict(self, name: str, version: str, state: str) -> NoReturn:
        free = self.next_version(name)
        raise ConflictError(
            f"{name}@{version} {state}", hint=f"versions never change: publish it as {free} (--version {free})"
        )

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
                hint="make room and see that you may write there, or give another folder with --store or WSMERGE_HOME",
            ) from error
