"""Committing to a repository so that a lost answer, a cut or another writer leaves it right.

Every change is one request that either happened or did not. After one that failed, what is there now is read and
decides: what was wanted is there (its answer was lost), nothing changed (the failure is told, and trying again is safe),
or another writer was first (a conflict).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from wsmerge.core.hub.commit import RepoCommit
from wsmerge.core.hub.connection import Hub, telling
from wsmerge.errors import ConflictError, HubError, WsmergeError
from wsmerge.registry.hub.contents import Contents, missing_from, stale_files
from wsmerge.registry.hub.naming import MAIN, Refs, find_refs, read_refs, short

__all__ = ["Change", "HeadMovedError", "commit_change", "ensure_repo"]

_AGAIN: Final = "push again: what arrived is recognised"
_LOOKS: Final = 10
_LOOK_AGAIN_S: Final = 0.2


class HeadMovedError(ConflictError):
    """Another writer's commit came first, and nothing of this one is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One commit that is to be made.

    Attributes:
        branch: that it is to be the head of.
        parent: commit that the branch is at.
        present: files that are there at the parent.
        contents: files to be there afterwards, beside those that no version owns.
        message: first line, and the rest.
    """

    branch: str
    parent: str
    present: frozenset[str]
    contents: Contents
    message: tuple[str, str]


def ensure_repo(hub: Hub, repo: str, *, private: bool) -> Refs:
    """Branches and tags of `repo`, which is made where it is missing.

    Raises:
        HubError: it cannot be read or made.
    """
    refs = find_refs(hub, repo)
    if refs is None:
        with telling(repo):
            hub.api.create_repo(repo, private=private, exist_ok=True)
    elif MAIN in refs.branches:
        return refs
    return _once_made(hub, repo)


def _once_made(hub: Hub, repo: str) -> Refs:
    """Branches and tags of a repository that is new, with its first commit: another writer may be making it."""
    for _ in range(_LOOKS):
        refs = read_refs(hub, repo)
        if MAIN in refs.branches:
            return refs
        time.sleep(_LOOK_AGAIN_S)
    raise HubError(
        f"has no branch {MAIN}", where=repo, hint="push again in a moment; give it a first commit if it stays"
    )


def commit_change(hub: Hub, repo: str, change: Change) -> str:
    """Make one commit of `change` and return its id, read back and compared.

    Raises:
        HeadMovedError: another writer moved the branch first.
        HubError: the Hub is not reached or refuses; then nothing was changed.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete  # noqa: PLC0415 - only pushing needs it
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415 - as above

    additions = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=source) for name, source in change.contents.items()
    ]
    stale = stale_files(change.present, change.contents)
    failure: HfHubHTTPError | HubError | None = None
    found = change.branch
    try:
        with _uploading(repo), telling(repo):
            made = hub.api.create_commit(
                repo,
                [*additions, *(CommitOperationDelete(path_in_repo=name, is_folder=False) for name in stale)],
                commit_message=change.message[0],
                commit_description=change.message[1],
                revision=change.branch,
                parent_commit=change.parent,
            )
            # Where every file is there already the client commits nothing and looks at no parent: read what it named.
            found = made.oid
    except (HfHubHTTPError, HubError) as error:
        failure = error
    landed = _read_back(hub, repo, found, failure)
    problems = missing_from(landed, additions, change.contents)
    if not problems:
        return landed.commit
    if failure is not None and landed.commit == change.parent:
        raise _unchanged(failure, repo)
    raise HeadMovedError(
        f"another writer was first: {change.branch} was at {short(change.parent)}, and is at {short(landed.commit)}",
        where=repo,
        hint=f"look at it (wsmerge pull {repo}, wsmerge diff), and push again",
        details=problems if failure is None else (),
    ) from failure


def _read_back(hub: Hub, repo: str, revision: str, failure: Exception | None) -> RepoCommit:
    try:
        return RepoCommit.resolve(hub, repo, revision)
    except WsmergeError as unread:
        if failure is None:
            raise
        raise _unchanged(failure, repo) from unread


def _unchanged(failure: Exception, repo: str) -> WsmergeError:
    if isinstance(failure, HubError):
        return HubError(failure.message, where=failure.where, hint=f"{_AGAIN}; {failure.hint}")
    return HubError(f"the Hub refused the commit: {failure}", where=repo, hint=_AGAIN)


@contextmanager
def _uploading(repo: str) -> Iterator[None]:
    """What uploading large files raises beside the Hub client's own errors, as an error of wsmerge."""
    try:
        yield
    except ValueError as error:  # a card or an upload that the Hub calls bad; the client raises nothing better
        raise HubError(f"the Hub refused: {error}", where=repo, hint="see what it says") from error
    except RuntimeError as error:
        if error.__cause__ is None:
            raise _not_uploaded(error, repo) from error
        with telling(repo):  # the client wraps what its threads raise
            raise error.__cause__ from error
    except (ConnectionError, TimeoutError, PermissionError) as error:  # of the Xet library
        raise _not_uploaded(error, repo) from error


def _not_uploaded(error: Exception, repo: str) -> HubError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return HubError(
        f"a file could not be uploaded: {lines[0]}", where=repo, hint="what was uploaded already is not uploaded again"
    )
