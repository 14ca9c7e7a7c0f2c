"""A direction on the Hub, read where it lies: its manifest and headers on opening, each array when it is needed."""

from __future__ import annotations

from wsmerge.core.hub.commit import RepoCommit
from wsmerge.core.hub.connection import Hub
from wsmerge.errors import NotFoundError, VerificationError
from wsmerge.registry.direction import Direction, open_direction
from wsmerge.registry.hub.files import CommitFiles
from wsmerge.registry.hub.naming import read_refs, version_in
from wsmerge.registry.manifest import Manifest
from wsmerge.registry.payloads import FetchedPayload
from wsmerge.registry.references import HubReference

__all__ = ["RemoteDirection", "open_remote", "pinned_commit", "refuse_other_version"]


class RemoteDirection(Direction):
    """A direction whose files lie on the Hub. Every array, dense ones too, is checked before it is used.

    Attributes:
        commit: the repository at the commit that the reference meant when it was opened.
    """

    def __init__(self, opened: Direction, commit: RepoCommit, label: str) -> None:
        payload = FetchedPayload(opened.payload, opened.manifest, label)
        super().__init__(opened.files, opened.manifest, payload, label=label)
        self.commit = commit

    @property
    def pinned(self) -> str:
        """`hub:owner/repo@COMMIT` with all 40 digits: tags and branches move, a commit does not."""
        return str(HubReference(self.commit.repo, self.commit.commit))

    @property
    def bytes_read(self) -> int:
        """Bytes that came from the Hub so far."""
        return self.commit.bytes_read


def open_remote(hub: Hub, reference: HubReference, *, ahead: bool = True) -> RemoteDirection:
    """Open the direction that `reference` means now; reads its manifest and headers only. Close it after use.

    Args:
        hub: the connection.
        reference: repository and revision: a version (`1.2.0` or `v1.2.0`), another tag, a branch or a commit.
        ahead: whether what is read in order is fetched in few requests; else in exactly the ranges that are read.

    Raises:
        HubError: it is not there, or the Hub is not reached.
        NotFoundError: no such version.
        DirectionError: the repository holds no direction.
        VerificationError: the tag of a version, and the direction there is another one.
    """
    commit = pinned_commit(hub, reference)
    label = str(reference if reference.revision else HubReference(commit.repo, commit.commit))
    opened = open_direction(CommitFiles(commit, ahead=ahead), label=label)
    try:
        refuse_other_version(commit, opened.manifest)
    except VerificationError:
        opened.close()
        raise
    return RemoteDirection(opened, commit, label)


def refuse_other_version(commit: RepoCommit, manifest: Manifest) -> None:
    """Refuse a commit that was found by the tag of a version, and holds another one.

    Raises:
        VerificationError: it does.
    """
    version = version_in(commit.revision or "")
    if version is not None and str(version) != manifest.version:
        raise VerificationError(
            f"the tag says version {version}, and the direction there is version {manifest.version}",
            where=commit.label,
            hint="tell the owner of the repository, or name the commit itself",
        )


def pinned_commit(hub: Hub, reference: HubReference) -> RepoCommit:
    """The commit that `reference` means now. A version is the commit that its tag points to.

    Raises:
        HubError: no such repository or revision, or the Hub is not reached or not to be asked.
        NotFoundError: no such version.
    """
    hub.refuse_offline(
        str(reference),
        hint=f"unset it; or pull it where there is a network, and name what was pulled: {reference.repo}",
    )
    version = version_in(reference.revision) if reference.revision else None
    if version is None:
        return RepoCommit.resolve(hub, reference.repo, reference.revision)
    refs = read_refs(hub, reference.repo)
    tag = refs.versions.get(version)
    if tag is None:
        raise NotFoundError(f"the repository has no version {version}", where=str(reference), hint=refs.known())
    return RepoCommit.resolve(hub, reference.repo, tag)
