"""The repositories of one owner on the Hub as a registry: the same reading and publishing as from a local store.

Names are `owner/repo`. There is no log (git has one), versions are removed on the Hub's own pages alone, and a direction
is published under its manifest's own version. The tag `latest` and other tags that name no version are aliases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from wsmerge.core.hub.commit import RepoCommit
from wsmerge.core.hub.connection import Hub, telling
from wsmerge.errors import NotFoundError, UsageError
from wsmerge.registry.catalogue import is_name
from wsmerge.registry.direction import Direction
from wsmerge.registry.entries import Entry
from wsmerge.registry.garbage import GarbageReport
from wsmerge.registry.history import Event, History, untag_event
from wsmerge.registry.hub.files import CommitFiles
from wsmerge.registry.hub.naming import Refs, find_refs
from wsmerge.registry.hub.push import PushOptions, push
from wsmerge.registry.hub.tagging import move_aliases
from wsmerge.registry.hub.writing import HeadMovedError
from wsmerge.registry.manifest import MANIFEST_FILE, Manifest
from wsmerge.registry.references import StoreReference, check_alias, check_name
from wsmerge.registry.registry import GARBAGE_AGE_S, Registry
from wsmerge.registry.versions import Version

__all__ = ["HubRegistry"]

_ATTEMPTS: Final = 20


@dataclass(frozen=True, slots=True)
class _VersionFiles(CommitFiles):
    """Files of a version, without those that git itself reads."""

    def names(self) -> frozenset[str]:
        return frozenset(name for name in self.commit.files if not name.startswith(".git"))


class HubRegistry(Registry):
    """The directions of `owner` on the Hub.

    Args:
        hub: the connection.
        owner: a user or an organisation.
    """

    def __init__(self, hub: Hub, owner: str) -> None:
        self.hub = hub
        self.owner = owner

    @property
    def place(self) -> str:
        """The address of the owner's page."""
        return f"{self.hub.endpoint}/{self.owner}"

    def known_names(self) -> tuple[str, ...]:
        """The owner's repositories that hold a direction; sorted."""
        self.hub.refuse_offline(self.place, hint="unset it; what was pulled already is in the store: wsmerge list")
        with telling(self.owner):
            found = self.hub.api.list_models(author=self.owner, filter=["wsmerge", "direction"])
            return tuple(sorted(model.id for model in found if is_name(model.id)))

    def files(self, name: str, version: Version) -> CommitFiles:
        """The files of one version, at the commit that its tag points to.

        Raises:
            NotFoundError: there is no such version.
        """
        tag = self._refs(name).versions.get(version)
        if tag is None:
            raise NotFoundError(f"{name}@{version} is not there", where=self.place)
        return _VersionFiles(RepoCommit.resolve(self.hub, name, tag))

    def history(self, name: str) -> History:
        """Where the aliases point; nothing else is told."""
        refs = self._refs(name)
        versions = {refs.tags[tag]: str(version) for version, tag in refs.versions.items()}
        aliases = [(alias, versions[refs.tags[alias]]) for alias in refs.aliases if refs.tags[alias] in versions]
        return History(tuple(Event("", "tag", version, "", alias) for alias, version in aliases))

    def tag(self, name: str, alias: str, target: str) -> Entry:
        """Point `alias` of `name` to `target`.

        Raises:
            NotFoundError: there is no such target.
            UsageError: the alias is the name of a branch.
        """
        check_alias(alias)
        entry = self.resolve(f"{check_name(name)}@{target}")
        refs = self._refs(name)
        move_aliases(self.hub, name, (alias,), refs.tags[refs.versions[entry.version]])
        return self.resolve(StoreReference(name, "version", str(entry.version)))

    def untag(self, name: str, alias: str) -> None:
        """Drop `alias` of `name`.

        Raises:
            NotFoundError: there is no such alias.
        """
        self.version_of(StoreReference(name))
        untag_event(self.history(name), name, alias)
        with telling(name, alias):
            self.hub.api.delete_tag(name, tag=alias)

    def remove(self, reference: str) -> NoReturn:
        """Refuse: what others pulled does not go by a command.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            f"{reference}: versions on the Hub are not removed by wsmerge",
            hint=f"delete the tag, or the repository, on its page: {self.place}",
        )

    def gc(self, *, dry_run: bool = True, min_age_s: float = GARBAGE_AGE_S) -> GarbageReport:  # noqa: ARG002 - nothing is deleted
        """Nothing: the Hub looks after what it keeps."""
        return GarbageReport(dry_run=dry_run, removed_versions=0, temporaries=0, blobs=0, freed_bytes=0)

    def _found(self, name: str) -> tuple[str, ...]:
        return tuple(map(str, self._refs(name).versions))

    def _is_published(self, version: str, history: History) -> bool:  # noqa: ARG002 - its tag says it
        return True

    def _holds(self, name: str, version: Version) -> bool:
        try:
            return MANIFEST_FILE in self.files(name, version).names()
        except NotFoundError:
            return False

    def _publish(self, direction: Direction, name: str, manifest: Manifest, aliases: Sequence[str]) -> Entry:
        if manifest != direction.manifest:
            raise UsageError(
                f"{direction.label} is pushed as what its manifest says, not as {manifest.label}",
                hint="publish it to the local store under the other name or version, and push that",
            )
        options = PushOptions(aliases=tuple(aliases), card=False)
        for attempt in range(_ATTEMPTS):
            try:
                push(self.hub, direction, name, options)
                break
            except HeadMovedError:
                if attempt == _ATTEMPTS - 1:
                    raise
        return self.resolve(StoreReference(name, "version", manifest.version))

    def _refs(self, name: str) -> Refs:
        """Branches and tags; none where there is no such repository, or no name of one."""
        found = find_refs(self.hub, name) if "/" in check_name(name) else None
        return found or Refs(name, {}, {})
