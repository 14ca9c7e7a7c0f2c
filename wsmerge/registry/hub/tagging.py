"""Tags and branches of a repository, moved so that a lost answer, a cut or another writer leaves them right."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from wsmerge.core.hub.commit import RepoCommit
from wsmerge.core.hub.connection import Hub, status_of, telling
from wsmerge.errors import ConflictError, HubError, UsageError
from wsmerge.registry.hub.contents import digest_at
from wsmerge.registry.hub.naming import Refs, read_refs, short

__all__ = ["Tag", "drop_branch", "ensure_branch", "ensure_tag", "move_aliases"]

_TRIES: Final = 10
_WAIT_S: Final = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    """The tag of a version.

    Attributes:
        commit: that it is to point to.
        digest: version digest of the direction there.
        message: of the annotated tag.
    """

    name: str
    commit: str
    digest: str
    message: str


def ensure_branch(hub: Hub, repo: str, branch: str, start: str) -> None:
    """Make `branch` at commit `start`, where it is missing.

    Raises:
        HubError: it cannot be made.
    """
    with telling(repo, branch):
        hub.api.create_branch(repo, branch=branch, revision=start, exist_ok=True)


def ensure_tag(hub: Hub, repo: str, tag: Tag) -> str:
    """Make `tag` where it is missing, and return the commit that it points to: another, where another writer was first.

    Raises:
        ConflictError: it is there, and points to another direction.
        HubError: it cannot be made.
    """
    try:
        with telling(repo, tag.name):
            hub.api.create_tag(repo, tag=tag.name, tag_message=tag.message, revision=tag.commit)
    except HubError as error:
        if tag.name not in _refs_after(hub, repo, error).tags:
            raise HubError(
                f"commit {short(tag.commit)} has no tag {tag.name} yet: {error.message}",
                where=error.where,
                hint=f"push again, and it is given; {error.hint}",
            ) from error
        held = RepoCommit.resolve(hub, repo, tag.name)
        if held.commit != tag.commit and digest_at(held) != tag.digest:
            raise ConflictError(
                f"another writer was first: {tag.name} is commit {short(held.commit)}, not {short(tag.commit)}",
                where=repo,
                hint=f"versions never change: push this one under another number, or pull that one: {repo}@{tag.name}",
            ) from error
        return held.commit
    return tag.commit


def move_aliases(hub: Hub, repo: str, aliases: Sequence[str], commit: str) -> None:
    """Point the tags `aliases` to `commit`.

    A tag is moved by two requests: a cut between them leaves it missing, and a repetition mends it.

    Raises:
        UsageError: an alias that is the name of a branch.
        HubError: one cannot be moved.
    """
    for alias in aliases:
        for last in (*[False] * (_TRIES - 1), True):
            if _moved(hub, repo, alias, commit, last=last):
                break
            time.sleep(random.uniform(0, _WAIT_S))  # noqa: S311 - only that two writers do not keep step


def _moved(hub: Hub, repo: str, alias: str, commit: str, *, last: bool) -> bool:
    """Whether `alias` points to `commit` now; not so where another writer moved it at this moment."""
    refs = read_refs(hub, repo)
    if alias in refs.branches:
        raise UsageError(f"{alias} is a branch of {repo}", hint="choose another word for the alias")
    if refs.tags.get(alias) == commit:
        return True
    try:
        with telling(repo, alias):
            if alias in refs.tags:
                hub.api.delete_tag(repo, tag=alias)
            hub.api.create_tag(repo, tag=alias, revision=commit)
    except HubError as error:
        if last or status_of(error) not in (404, 409):
            raise
        return False
    return True


def drop_branch(hub: Hub, repo: str, branch: str) -> None:
    """Remove `branch`, whose commit has a tag; another process may have done so.

    Raises:
        HubError: it cannot be removed.
    """
    try:
        with telling(repo, branch):
            hub.api.delete_branch(repo, branch=branch)
    except HubError as error:
        if status_of(error) != 404 or branch in read_refs(hub, repo).branches:
            raise


def _refs_after(hub: Hub, repo: str, failure: HubError) -> Refs:
    try:
        return read_refs(hub, repo)
    except HubError:
        raise failure from failure.__cause__
