"""Pushing: a version of a direction becomes one commit and one tag of a repository.

    1. the artifact is hashed; the repository is made where it is missing; its branches and tags are read once
    2. the tag is there already: the same digest ends here, another one is a conflict
    3. the head of main, or of the version's own branch, holds the version: a cut came before its tag, which is given now
    4. else one commit, whose parent is the head that was read, is made, read back and compared
    5. the tag makes the commit the version; aliases follow
    6. evaluations of a version that was there already are a later commit on main, which the tag does not follow

main is the version that the bare name means. A lower one is committed to a branch of its own (`version/1.0.1`), which
is made from the next lower version and removed once the tag is there.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wsmerge.core.hub.commit import RepoCommit
from wsmerge.core.hub.connection import Hub
from wsmerge.errors import ConflictError, ManifestError, Problems, UsageError, VerificationError
from wsmerge.registry.artifact_reading import artifact_files, read_manifest
from wsmerge.registry.direction import Direction, verify_direction
from wsmerge.registry.evaluations import Evaluation, evaluations_in, read_evaluation
from wsmerge.registry.hub.contents import Told, contents_of, digest_at
from wsmerge.registry.hub.files import CommitFiles
from wsmerge.registry.hub.naming import MAIN, Refs, check_hub_alias, check_repo, outranks, side_branch, tag_of
from wsmerge.registry.hub.tagging import Tag, drop_branch, ensure_branch, ensure_tag, move_aliases
from wsmerge.registry.hub.writing import Change, commit_change, ensure_repo
from wsmerge.registry.manifest import MANIFEST_FILE, Manifest
from wsmerge.registry.versions import Version

__all__ = ["PushOptions", "Pushed", "push"]

Outcome = Literal["pushed", "tagged", "present", "evaluated"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PushOptions:
    """How a version is pushed.

    Attributes:
        private: whether a repository that is made is private; one that is there stays as it is.
        aliases: tags that shall point to the version from now on.
        message: first line of the commit; the version's label if None.
        evaluations: files of results that shall lie beside the version and stand on its card, further than those that lie
            beside the artifact.
        card: whether a card that wsmerge wrote is written again for the repository.
        bars: whether the Hub client may draw its progress bars, which it does on a terminal alone.
    """

    private: bool = False
    aliases: tuple[str, ...] = ()
    message: str | None = None
    evaluations: tuple[Path, ...] = ()
    card: bool = True
    bars: bool = False


@dataclass(frozen=True, slots=True)
class Pushed:
    """A version that is on the Hub now.

    Attributes:
        branch: that the commit was made on; None where it was there already.
        outcome: `pushed`; `tagged`, where a commit that a cut left without its tag got it; `present`, where all was there;
            `evaluated`, where evaluations came to it.
        url: page of the version.
        collection: page of the collection that the repository is in; None where none was asked for.
    """

    repo: str
    version: str
    version_digest: str
    content_digest: str
    tag: str
    commit: str
    branch: str | None
    outcome: Outcome
    aliases: tuple[str, ...]
    url: str
    collection: str | None = None


def push(hub: Hub, direction: Direction, repo: str, options: PushOptions | None = None) -> Pushed:
    """Push `direction` to `repo` as the version that its manifest says; doing so again changes nothing.

    Args:
        hub: the connection.
        direction: an opened artifact. Its name stays as it is, whatever the repository is called.
        repo: `owner/name`.
        options: how.

    Raises:
        ConflictError: the version is there with another digest, or another writer was first.
        VerificationError: tensors that are not what the manifest says.
        DirectionError: the artifact is not whole.
        HubError: the Hub is not reached, or refuses. Pushing again goes on where this stopped.
        UsageError: an alias that means something else; evaluations of another version, or of one that is not on main.
    """
    options = options or PushOptions()
    check_repo(repo)
    for alias in options.aliases:
        check_hub_alias(alias)
    hub.refuse_offline(repo, hint="unset it to push")
    artifact_files(direction.files)  # what is not whole is told before what is not right
    if problems := verify_direction(direction):
        raise VerificationError("tensors are not what the manifest says", where=direction.label, details=problems)
    told = _evaluations(direction, options.evaluations)
    refs = ensure_repo(hub, repo, private=options.private)
    with _bars(shown=options.bars):
        pushed = _Push(hub, direction, repo, refs, options, told).run()
    move_aliases(hub, repo, options.aliases, pushed.commit)
    return pushed


class _Push:
    """One push, after what is there was read."""

    def __init__(self, hub: Hub, direction: Direction, repo: str, refs: Refs, options: PushOptions, told: Told) -> None:
        self.hub = hub
        self.direction = direction
        self.repo = repo
        self.refs = refs
        self.options = options
        self.told = told
        self.manifest: Manifest = direction.manifest
        self.version = Version.parse(self.manifest.version)
        self.tag = refs.versions.get(self.version, tag_of(self.version))
        self.side = side_branch(self.version)

    def run(self) -> Pushed:
        if self.version in self.refs.versions:
            return self._present()
        heads = {branch: self._at(branch) for branch in (MAIN, self.side) if branch in self.refs.branches}
        for head in heads.values():
            if digest_at(head) == self.direction.digest:
                return self._tagged(head.commit, None, "tagged")
        self._refuse_other(heads.values())
        branch, parent = self._place(heads)
        return self._tagged(self._commit(branch, parent), branch, "pushed")

    def _commit(self, branch: str, parent: RepoCommit, standing: RepoCommit | None = None) -> str:
        """Commit the version's files on `parent`; with `standing`, what came to a version that is there."""
        title = f"Evaluations of {self.manifest.label}" if standing else self.manifest.label
        repo = self.repo if self.options.card else None
        with contents_of(self.direction, repo, self.told, standing) as contents:
            change = Change(
                branch=branch,
                parent=parent.commit,
                present=frozenset(parent.files),
                contents=contents,
                message=(self.options.message or title, self._digests()),
            )
            return commit_change(self.hub, self.repo, change)

    def _present(self) -> Pushed:
        held = self._at(self.tag)
        digest = digest_at(held)
        if digest != self.direction.digest:
            free = max(self.refs.versions).next()
            raise ConflictError(
                f"version {self.version} is there with digest {digest}, and this one has {self.direction.digest}",
                where=f"{self.repo}@{self.tag}",
                hint=f"versions never change: publish it as {free} (wsmerge publish ... --version {free}), and push that",
            )
        if self.side in self.refs.branches:
            drop_branch(self.hub, self.repo, self.side)
        return self._done(held.commit, None, "evaluated" if self._evaluate() else "present")

    def _evaluate(self) -> bool:
        """Put evaluations that are not there yet beside the version on main; whether there were any."""
        if not self.told:
            return False
        main = self._at(MAIN)
        if digest_at(main) != self.direction.digest:
            raise UsageError(
                f"main holds another version than {self.manifest.label}, and evaluations lie beside what main holds",
                where=self.repo,
                hint="push evaluations with the version that they are of, or while it is the highest",
            )
        if all(name in main.files and main.read(name) == data for name, (_, data) in self.told.items()):
            return False
        self._commit(MAIN, main, standing=main)
        return True

    def _refuse_other(self, heads: Iterable[RepoCommit]) -> None:
        """Another direction of this very version, without its tag: its push goes on, or was cut and will be repeated."""
        for head in heads:
            manifest = _manifest_at(head)
            if manifest is not None and manifest.version == self.manifest.version:
                raise ConflictError(
                    f"another direction is about to become version {self.version}: commit {head.commit[:12]} has digest "
                    f"{manifest.version_digest} and no tag yet",
                    where=self.repo,
                    hint=f"wait, and push again; if nobody finishes it, push this one as {self.version.next()}",
                )

    def _place(self, heads: dict[str, RepoCommit]) -> tuple[str, RepoCommit]:
        """The branch to commit to, and its head."""
        main = heads[MAIN]
        there = _manifest_at(main)
        others = [*self.refs.versions, *([Version.parse(there.version)] if there else [])]
        if outranks(self.version, others):
            return MAIN, main
        if self.side in heads:
            return self.side, heads[self.side]
        lower = [version for version in self.refs.versions if version < self.version]
        start = self._at(self.refs.versions[lower[-1]]) if lower else main
        ensure_branch(self.hub, self.repo, self.side, start.commit)
        return self.side, start

    def _tagged(self, commit: str, branch: str | None, outcome: Outcome) -> Pushed:
        message = f"{self.manifest.label}\n\n{self._digests()}"
        tag = Tag(name=self.tag, commit=commit, digest=self.direction.digest, message=message)
        commit = ensure_tag(self.hub, self.repo, tag)
        if self.side in self.refs.branches or branch == self.side:
            drop_branch(self.hub, self.repo, self.side)
        return self._done(commit, branch, outcome)

    def _done(self, commit: str, branch: str | None, outcome: Outcome) -> Pushed:
        return Pushed(
            repo=self.repo,
            version=self.manifest.version,
            version_digest=self.direction.digest,
            content_digest=self.manifest.content_digest,
            tag=self.tag,
            commit=commit,
            branch=branch,
            outcome=outcome,
            aliases=self.options.aliases,
            url=f"{self.hub.endpoint}/{self.repo}/tree/{self.tag}",
        )

    def _at(self, revision: str) -> RepoCommit:
        return RepoCommit.resolve(self.hub, self.repo, revision)

    def _digests(self) -> str:
        return f"version digest {self.direction.digest}\ncontent digest {self.manifest.content_digest}"


def _evaluations(direction: Direction, given: Iterable[Path]) -> Told:
    """Evaluations of this version: those beside the artifact, and those given."""
    told = {name: item for name, item in evaluations_in(direction.files).items() if _is_of(direction, item[0])}
    problems = Problems()
    names: set[str] = set()
    for path in given:
        evaluation, data = read_evaluation(path)
        if not _is_of(direction, evaluation):
            problems.add(f"{path}: is of version digest {evaluation.version_digest}")
        if evaluation.name in names:
            problems.add(f"{path}: has the name of another, {evaluation.name}")
        names.add(evaluation.name)
        told[evaluation.file] = evaluation, data
    problems.raise_if_any(
        UsageError,
        f"evaluations of another version than {direction.label}, or two of one name",
        hint=f"its version digest is {direction.digest}; each evaluation has a name of its own",
    )
    return told


def _is_of(direction: Direction, evaluation: Evaluation) -> bool:
    return evaluation.version_digest == direction.digest


def _manifest_at(commit: RepoCommit) -> Manifest | None:
    """The manifest at a commit; None where there is none, or one that this version cannot read."""
    if MANIFEST_FILE not in commit.files:
        return None
    try:
        return read_manifest(CommitFiles(commit))
    except ManifestError:
        return None


def _bars(*, shown: bool) -> AbstractContextManager[object]:
    from huggingface_hub.utils import (  # type: ignore[attr-defined]  # it makes its names when asked  # noqa: PLC0415 - only pushing needs it
        disable_progress_bars,
    )

    return nullcontext() if shown else disable_progress_bars()
