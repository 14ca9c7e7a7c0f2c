"""Pulling: a version on the Hub becomes a version of the store, under `owner/repo`, whole or not at all.

    1. the revision is resolved once, to a commit; without one, the highest release, else main
    2. its manifest is read: is this version in the store already, with this digest?
    3. the artifact's files are downloaded into the store's `temporary/`, in a folder of this commit, and checked
    4. publishing hashes every tensor and lets the version appear; the alias `commit-HEX` keeps the commit it came from

A version in the store never changes, so what its tag points to on the Hub is compared each time that it is pulled.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from filelock import FileLock

from wsmerge.core.files import make_folder
from wsmerge.core.hub.commit import RepoCommit, is_commit
from wsmerge.core.hub.connection import Hub
from wsmerge.errors import ConflictError, DirectionError, HubError, NotFoundError, OutputError, VerificationError
from wsmerge.registry.artifact_reading import artifact_files, read_manifest
from wsmerge.registry.direction import open_direction_folder
from wsmerge.registry.entries import Entry
from wsmerge.registry.hub.download import Progress, download
from wsmerge.registry.hub.files import CommitFiles
from wsmerge.registry.hub.naming import parse_hub_reference, read_refs, version_in
from wsmerge.registry.hub.pins import commits_of, pin_of
from wsmerge.registry.hub.remote import pinned_commit, refuse_other_version
from wsmerge.registry.references import HubReference, StoreReference, check_name
from wsmerge.registry.staging import readdressed
from wsmerge.registry.store import Store

if TYPE_CHECKING:
    from wsmerge.registry.manifest import Manifest
    from wsmerge.registry.registry import Registry

__all__ = ["Pulled", "pinned_reference", "pull"]

Outcome = Literal["pulled", "present", "offline"]


@dataclass(frozen=True, slots=True)
class Pulled:
    """A version from the Hub that is in the store now.

    Attributes:
        commit: that it came from, 40 digits.
        outcome: `pulled`; `present`, where it was there already; `offline`, where nothing was asked.
        bytes_read: bytes that came from the Hub.
        notes: what the user should know.
    """

    entry: Entry
    repo: str
    commit: str
    outcome: Outcome
    bytes_read: int
    notes: tuple[str, ...] = ()


def pull(
    hub: Hub,
    reference: str | HubReference,
    store: Registry,
    *,
    name: str | None = None,
    progress: Progress | None = None,
) -> Pulled:
    """Bring the direction that `reference` means now into `store`. What is there already is not fetched again.

    Args:
        hub: the connection.
        reference: `owner/repo`, or with `@` and a version (`1.2.0`, `v1.2.0`), another tag, a branch or a commit.
        store: where it goes.
        name: in the store; `owner/repo` if None. A name without owner rewrites the manifest, and so its version digest.
        progress: called with bytes done and bytes in all.

    Raises:
        ConflictError: the store has this version with another digest: its tag was moved on the Hub.
        VerificationError: bytes that are not what commit or manifest say; nothing enters the store.
        HubError: it is not there, or the Hub is not reached. Pulling again goes on where this stopped.
        DirectionError: the repository holds no direction.
    """
    wanted = reference if isinstance(reference, HubReference) else parse_hub_reference(reference)
    name = check_name(name or wanted.repo)
    held = _held(hub, wanted, store, name)
    if held is not None:
        return held
    return _Pull(_commit_of(hub, wanted), wanted, store, name).run(progress)


def pinned_reference(hub: Hub, reference: HubReference) -> HubReference:
    """`reference`; where it names no revision, with what the tag `latest` says, the highest release, or main.

    Raises:
        HubError: no such repository, or the Hub is not reached.
    """
    if reference.revision is not None:
        return reference
    hub.refuse_offline(str(reference), hint="unset it; what was pulled already is in the store: wsmerge list")
    return HubReference(reference.repo, read_refs(hub, reference.repo).bare)


def _commit_of(hub: Hub, wanted: HubReference) -> RepoCommit:
    chosen = pinned_reference(hub, wanted)
    # A tag that was just read is no version to be looked up again.
    return pinned_commit(hub, wanted) if wanted.revision else RepoCommit.resolve(hub, wanted.repo, chosen.revision)


def _held(hub: Hub, wanted: HubReference, store: Registry, name: str) -> Pulled | None:
    """What can be told without a request: a commit that was pulled before, or all that there is while offline."""
    revision = wanted.revision or ""
    version = version_in(revision)
    if is_commit(revision):
        local = StoreReference(name, "alias", pin_of(revision))
    elif version is not None:
        local = StoreReference(name, "version", str(version))
    else:
        local = StoreReference(name, "alias", revision) if revision else StoreReference(name)
    if not (hub.offline or is_commit(revision)):
        return None
    try:
        entry = store.resolve(local)
    except NotFoundError as error:
        if not hub.offline:
            return None
        raise HubError(
            f"is not in the store, and the Hub may not be asked: HF_HUB_OFFLINE is set ({error.message})",
            where=str(wanted),
            hint="unset it, or pull it where there is a network",
        ) from error
    commits = commits_of(entry)
    commit = revision if revision in commits else next(iter(commits), "")
    return Pulled(entry, wanted.repo, commit, "offline" if hub.offline else "present", 0)


class _Pull:
    """One pull, after its commit is known."""

    def __init__(self, commit: RepoCommit, wanted: HubReference, store: Registry, name: str) -> None:
        self.commit = commit
        self.wanted = wanted
        self.store = store
        self.name = name

    def run(self, progress: Progress | None) -> Pulled:
        files = CommitFiles(self.commit)
        names = artifact_files(files)
        manifest = read_manifest(files)
        refuse_other_version(self.commit, manifest)
        present = self._present(manifest)
        if present is not None:
            return present
        with self._folder() as folder:
            present = self._present(manifest)  # another process may have pulled it meanwhile
            if present is not None:
                return present
            download(self.commit, names, folder, progress)
            try:
                return self._done(self._publish(folder, manifest), "pulled")
            except (DirectionError, VerificationError):
                shutil.rmtree(folder, ignore_errors=True)  # the same files would be refused again
                raise

    def _present(self, manifest: Manifest) -> Pulled | None:
        """The version, where the store has it with this digest."""
        try:
            entry = self.store.resolve(StoreReference(self.name, "version", manifest.version))
        except NotFoundError:
            return None
        commits = commits_of(entry)
        stored = readdressed(manifest, self.name, None).version_digest
        if entry.version_digest != stored:
            came = f"from commit {commits[-1]}" if commits else "from elsewhere"
            raise ConflictError(
                f"{entry.label} is in the store with digest {entry.version_digest}, {came}; on the Hub it is commit "
                f"{self.commit.commit} with digest {stored} now",
                where=str(self.wanted),
                hint=f"the version was changed after it was pulled: ask its owner why. The one in the store stays as it is; "
                f"the other comes under another name: wsmerge pull {self.wanted.repo}@{self.commit.commit} --name NAME",
            )
        if self.commit.commit in commits:
            return self._done(entry, "present")
        moved = f"{entry.label} was pulled from commit {', '.join(commits)}; it is commit {self.commit.commit} now, with the same direction"
        entry = self.store.tag(self.name, pin_of(self.commit.commit), manifest.version)
        return self._done(entry, "present", (moved,) if commits else ())

    def _publish(self, folder: Path, manifest: Manifest) -> Entry:
        with open_direction_folder(folder, label=self.commit.label) as direction:
            if direction.digest != manifest.version_digest:
                raise VerificationError(
                    "the manifest changed while it was pulled", where=self.commit.label, hint="pull it again"
                )
            return self.store.publish(direction, name=self.name, aliases=(pin_of(self.commit.commit),))

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        """Where this commit's files come. In a local store whoever pulls it again finds what came; `gc` deletes it at last."""
        if not isinstance(self.store, Store):
            with self.store.scratch() as folder:
                yield folder
            return
        repo = self.wanted.repo.replace("/", "--")
        lock = self.store.paths.root / "locks" / f"pull--{repo}.lock"  # no name of a direction has "--"
        kept = self.store.paths.temporary / f"pull-{repo}-{self.commit.commit}"
        try:
            make_folder(lock.parent)
            with FileLock(lock):
                make_folder(kept)
                yield kept
                shutil.rmtree(kept, ignore_errors=True)
        except OSError as error:
            raise OutputError(
                f"the store cannot be written: {error.strerror or error}",
                where=str(error.filename or kept),
                hint="make room, or give another folder with --store or WSMERGE_HOME; what came is kept",
            ) from error

    def _done(self, entry: Entry, outcome: Outcome, notes: tuple[str, ...] = ()) -> Pulled:
        return Pulled(entry, self.wanted.repo, self.commit.commit, outcome, self.commit.bytes_read, notes)
