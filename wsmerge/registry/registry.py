"""What every registry can do: the local store, one on an object store, and whatever else holds directions."""

from __future__ import annotations

import tempfile
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from wsmerge.core.files import temporary_folder
from wsmerge.errors import ConflictError, UsageError
from wsmerge.registry.catalogue import Catalogue, Entry, store_reference
from wsmerge.registry.compare import Difference, compare_directions
from wsmerge.registry.direction import Direction, open_direction_folder
from wsmerge.registry.garbage import GarbageReport
from wsmerge.registry.history import Event, History
from wsmerge.registry.manifest import Manifest
from wsmerge.registry.references import StoreReference, check_alias, check_name
from wsmerge.registry.search import Wanted, search_entries
from wsmerge.registry.staging import readdressed
from wsmerge.registry.verification import VerificationReport, verify_store, verify_version
from wsmerge.registry.versions import Version

__all__ = ["GARBAGE_AGE_S", "Registry"]

GARBAGE_AGE_S: Final = 3600.0


class Registry(Catalogue):
    """All of `Catalogue`, and what changes it.

    Nothing is made before the first write. Processes and threads may share a registry.
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
            OutputError: a local store cannot be written.
            StoreError: an object store cannot be reached or refuses.
        """
        for alias in aliases:
            check_alias(alias)
        if isinstance(source, Direction):
            return self._readdress(source, name, version, aliases)
        with open_direction_folder(source) as direction:
            return self._readdress(direction, name, version, aliases)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty folder on this machine, for an artifact that is about to be published; gone afterwards."""
        with temporary_folder(Path(tempfile.gettempdir()), ".wsmerge-scratch-", mode=0o700) as folder:
            yield folder

    @abstractmethod
    def tag(self, name: str, alias: str, target: str) -> Entry:
        """Point `alias` of `name` to `target`: a version, another alias, or `sha256:` or `content:` with a digest.

        Raises:
            NotFoundError: there is no such target.
        """

    @abstractmethod
    def untag(self, name: str, alias: str) -> None:
        """Drop `alias` of `name`. Without `latest`, the bare name means the highest release.

        Raises:
            NotFoundError: there is no such alias.
        """

    @abstractmethod
    def remove(self, reference: str) -> Event:
        """Remove one version and the aliases that point to it; its name is never used again. `gc` frees the bytes.

        A version whose manifest is damaged can be removed too, by its version or an alias.

        Raises:
            UsageError: a bare name, which means another version tomorrow.
            NotFoundError: there is no such version.
        """

    @abstractmethod
    def gc(self, *, dry_run: bool = True, min_age_s: float = GARBAGE_AGE_S) -> GarbageReport:
        """Delete removed versions, and bytes that nothing uses and that were untouched for `min_age_s` seconds.

        Args:
            dry_run: only count.
            min_age_s: a publish that runs has touched its files more recently than this.
        """

    def diff(self, left: str, right: str) -> Difference:
        """What changed from version `left` to version `right`."""
        with self.open(left) as first, self.open(right) as second:
            return compare_directions(first, second)

    def verify(self, reference: str | None = None) -> VerificationReport:
        """Hash one version, or all of the registry; the report names every problem found."""
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
        wanted = Wanted(query=query, base=base, kind=kind, name=name, dataset=dataset)
        return search_entries(self.list(), wanted)

    @abstractmethod
    def _publish(self, direction: Direction, name: str, manifest: Manifest, aliases: Sequence[str]) -> Entry:
        """Store `direction` under `manifest`, in which name and version are settled."""

    def _readdress(self, direction: Direction, name: str | None, version: str | None, aliases: Sequence[str]) -> Entry:
        manifest = readdressed(direction.manifest, name, version)
        return self._publish(direction, check_name(name or manifest.name), manifest, aliases)

    def _to_remove(self, reference: str) -> tuple[StoreReference, Version]:
        """What `remove` is asked to remove."""
        wanted = store_reference(reference)
        version = self.version_of(wanted)
        if wanted.selector == "latest":
            raise UsageError(f"which version of {wanted.name}?", hint=f"name it: {wanted.name}@{version}")
        return wanted, version

    def _conflict(self, name: str, version: str, state: str) -> ConflictError:
        free = self.next_version(name)
        return ConflictError(
            f"{name}@{version} {state}", hint=f"versions never change: publish it as {free} (--version {free})"
        )

    def _was_removed(self, name: str, version: str, history: History) -> ConflictError:
        return self._conflict(name, version, f"was removed (it had digest {history.removed[version]})")

    def _is_taken(self, name: str, version: str, existing: str, digest: str) -> ConflictError:
        return self._conflict(name, version, f"is in the store with digest {existing}, and this one has {digest}")
