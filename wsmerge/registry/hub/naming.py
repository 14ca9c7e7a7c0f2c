"""How versions are named on the Hub, and which there are.

    v1.2.0              tag of a version; the version exists when its tag does
    main                branch of the version that is the highest release, else the highest pre-release
    version/1.0.1       branch that a version lower than main's is committed to; it goes when the tag is there
    latest              tag that, where somebody gave it, says which version the bare name means
    any other tag       an alias

A tag `1.2.0` that somebody gave is read as a version too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from wsmerge.core.hub.connection import Hub, telling
from wsmerge.errors import BadReferenceError, HubError, UsageError
from wsmerge.registry.references import HubReference, check_alias, parse_reference
from wsmerge.registry.versions import Version

__all__ = [
    "MAIN",
    "Refs",
    "check_hub_alias",
    "check_repo",
    "find_refs",
    "outranks",
    "parse_hub_reference",
    "read_refs",
    "short",
    "side_branch",
    "tag_of",
    "version_in",
]

MAIN: Final = "main"
_SHOWN_VERSIONS: Final = 8
LATEST: Final = "latest"


@dataclass(frozen=True, slots=True)
class Refs:
    """Branches and tags of a repository, as they were when they were read.

    Attributes:
        branches: each branch, and the commit it points to.
        tags: each tag, and what it points to.
    """

    repo: str
    branches: Mapping[str, str]
    tags: Mapping[str, str]

    @property
    def versions(self) -> dict[Version, str]:
        """Each version and its tag, lowest version first; `v1.2.0` goes before `1.2.0`."""
        found: dict[Version, str] = {}
        for tag in sorted(self.tags):
            version = version_in(tag)
            if version is not None:
                found[version] = tag  # "1.2.0" sorts before "v1.2.0", so the latter stays
        return dict(sorted(found.items()))

    @property
    def bare(self) -> str:
        """The tag or branch that the bare name means: `latest`, the highest release, the highest version, or main."""
        if LATEST in self.tags:
            return LATEST
        versions = self.versions
        return versions[max(versions, key=_rank)] if versions else MAIN

    @property
    def aliases(self) -> tuple[str, ...]:
        """Tags that name no version."""
        return tuple(sorted(tag for tag in self.tags if version_in(tag) is None))

    def known(self) -> str:
        """What there is, for a hint."""
        versions = [str(version) for version in self.versions]
        earlier = ["..."] if len(versions) > _SHOWN_VERSIONS else []
        shown = [*earlier, *versions[-_SHOWN_VERSIONS:], *self.aliases, *sorted(self.branches)]
        return f"{self.repo} has {', '.join(shown) or 'neither version nor branch'}"


def read_refs(hub: Hub, repo: str) -> Refs:
    """Branches and tags of `repo` now.

    Raises:
        HubError: no such repository, or the Hub is not reached, or not to be asked.
    """
    hub.refuse_offline(repo, hint="unset it; what was pulled already is in the store: wsmerge list")
    with telling(repo):
        refs = hub.api.list_repo_refs(repo)
    return Refs(
        repo,
        {ref.name: ref.target_commit for ref in refs.branches},
        {ref.name: ref.target_commit for ref in refs.tags},
    )


def find_refs(hub: Hub, repo: str) -> Refs | None:
    """Branches and tags of `repo` now; None where there is no such repository, or the Hub shows none.

    Raises:
        HubError: a gated repository, or the Hub is not reached, or not to be asked.
    """
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError  # noqa: PLC0415 - imported when asked

    try:
        return read_refs(hub, repo)
    except HubError as error:
        cause = error.__cause__
        if isinstance(cause, RepositoryNotFoundError) and not isinstance(cause, GatedRepoError):
            return None
        raise


def short(commit: str) -> str:
    """The first digits of a commit, for messages."""
    return commit[:12]


def tag_of(version: Version) -> str:
    """The tag of a version: `v1.2.0`."""
    return f"v{version}"


def side_branch(version: Version) -> str:
    """The branch that a version is committed to which must not move main."""
    return f"version/{version}"


def version_in(revision: str) -> Version | None:
    """The version that a tag or a revision names, as `1.2.0` or `v1.2.0`; None for any other."""
    text = revision.removeprefix("v")
    return Version.parse(text) if Version.is_version(text) else None


def outranks(version: Version, others: Iterable[Version]) -> bool:
    """Whether the bare name means `version` rather than any of `others`: a release goes before every pre-release."""
    return all(_rank(version) > _rank(other) for other in others)


def check_repo(repo: str) -> str:
    """`repo`, if it is `owner/name`.

    Raises:
        BadReferenceError: it is not.
    """
    reference = parse_hub_reference(repo)
    if reference.revision is not None:
        raise BadReferenceError(
            f"{repo!r}: a version is pushed under its own number", hint=f"write the repository alone: {reference.repo}"
        )
    return reference.repo


def parse_hub_reference(text: str) -> HubReference:
    """The repository and revision in `owner/repo[@revision]`; `hub:` may stand before it.

    Raises:
        BadReferenceError: it does not parse.
    """
    parsed = parse_reference(text if text.startswith("hub:") else f"hub:{text}")
    if not isinstance(parsed, HubReference):
        raise HubError(f"{text!r} is no repository", hint="write owner/repo, or owner/repo@1.2.0")
    return parsed


def check_hub_alias(alias: str) -> str:
    """`alias`, if a tag that moves may be called that.

    Raises:
        BadReferenceError: it has another form.
        UsageError: it means a version or a branch already.
    """
    check_alias(alias)
    if alias == MAIN or version_in(alias) is not None:
        raise UsageError(
            f"{alias} is no alias on the Hub: it means a version or a branch already", hint="choose another word"
        )
    return alias


def _rank(version: Version) -> tuple[bool, Version]:
    return version.released, version
