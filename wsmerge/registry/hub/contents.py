"""What a version's commit holds: the artifact's files, evaluations of it, and what of an older version has to go.

Anything else in the repository (other `evaluations/*.json`, `*.sig`, `.gitattributes`) is left as it is.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from wsmerge.core.digest import sha256_hex
from wsmerge.core.files import copy_synced, temporary_folder
from wsmerge.core.hub.commit import RepoCommit, git_blob_id
from wsmerge.core.ranges import read_all
from wsmerge.registry.artifact_reading import artifact_files
from wsmerge.registry.card import CARD_FILE, META_FILE, render_card, render_meta
from wsmerge.registry.direction import Direction
from wsmerge.registry.evaluations import Evaluation, evaluations_in
from wsmerge.registry.files import ArtifactFiles
from wsmerge.registry.hub.files import CommitFiles
from wsmerge.registry.manifest import MANIFEST_FILE
from wsmerge.registry.payloads import ADAPTER_CONFIG_FILE

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

__all__ = ["Contents", "Told", "contents_of", "digest_at", "missing_from", "stale_files"]

Contents = Mapping[str, Path | bytes]
"""Name in the repository, and the file or the bytes that go there."""

Told = Mapping[str, tuple[Evaluation, bytes]]
"""Place of an evaluation, what it says, and its bytes."""

_PAYLOAD: Final = re.compile(
    r"adapter_config\.json|adapter_model\.safetensors"
    r"|direction(-\d+-of-\d+)?\.safetensors(\.index\.json)?|direction\.zarr(/.*|\.zip)?"
)


@contextmanager
def contents_of(
    direction: Direction, repo: str | None, told: Told | None = None, standing: RepoCommit | None = None
) -> Iterator[Contents]:
    """The files of `direction` as they are pushed to `repo`; they can be read until the block ends.

    A card that wsmerge wrote is written again for the repository; one that somebody edited stays as it is, and so does
    every card where `repo` is None.

    Args:
        direction: what is pushed.
        repo: `owner/name`.
        told: evaluations that go with it, by their places.
        standing: where the version is there already: its card and evaluations count beside those given.

    Raises:
        DirectionError: the artifact is not whole.
    """
    files = direction.files
    names = artifact_files(files)
    contents: dict[str, Path | bytes] = {name: data for name, (_, data) in (told or {}).items()}
    contents[CARD_FILE] = _card(direction, names, repo, told or {}, standing).encode()
    if META_FILE not in names:
        contents[META_FILE] = render_meta(direction.manifest).encode()
    rest = [name for name in names if name not in contents]
    if files.folder is not None:
        for name in rest:
            files.open(name).close()  # refuses what is no file of the folder, before the Hub's client follows links
        yield contents | {name: files.folder / name for name in rest}
        return
    with temporary_folder(Path(tempfile.gettempdir()), ".wsmerge-push-", mode=0o700) as folder:
        yield contents | {name: _copied(files, name, folder) for name in rest}


def _card(
    direction: Direction, names: tuple[str, ...], repo: str | None, told: Told, standing: RepoCommit | None
) -> str:
    manifest = direction.manifest
    place, has_card = (
        (CommitFiles(standing), CARD_FILE in standing.files) if standing else (direction.files, CARD_FILE in names)
    )
    given = _text(place, CARD_FILE) if has_card else None
    known = evaluations_in(place) if standing else {}
    before = [item for item, _ in known.values()]
    own = {
        render_card(manifest, repo=name, adapter=kind, evaluations=shown)
        for name in (None, repo, _repo_of(direction.label))
        for kind in (True, False)
        for shown in ((), before)
    }
    if given is not None and (repo is None or given not in own):
        return given
    shown = [item for item, _ in {**known, **told}.values()]
    return render_card(manifest, repo=repo, adapter=ADAPTER_CONFIG_FILE in names, evaluations=shown)


def stale_files(present: Iterable[str], contents: Contents) -> tuple[str, ...]:
    """Payload files in `present` that the version does not have: beside them its own could not be told."""
    return tuple(sorted(name for name in present if _PAYLOAD.fullmatch(name) and name not in contents))


def missing_from(commit: RepoCommit, additions: Iterable[CommitOperationAdd], contents: Contents) -> tuple[str, ...]:
    """What a commit should hold and does not, or holds and should not, a line each."""
    problems = [f"{name}: should not be there" for name in stale_files(commit.files, contents)]
    for addition in additions:
        name = addition.path_in_repo
        entry = commit.files.get(name)
        if entry is None:
            problems.append(f"{name}: is not there")
        elif entry.sha256 is not None:
            if entry.sha256 != addition.upload_info.sha256.hex():
                problems.append(f"{name}: has other bytes")
        elif entry.blob_id != git_blob_id(_bytes(contents[name])):
            problems.append(f"{name}: has other bytes")
    return tuple(problems)


def digest_at(commit: RepoCommit) -> str | None:
    """The version digest of the direction at a commit; None where there is no manifest."""
    return sha256_hex(commit.read(MANIFEST_FILE)) if MANIFEST_FILE in commit.files else None


def _repo_of(label: str) -> str | None:
    """`owner/name` of what was pulled or lies on the Hub, None of any other direction."""
    name = label.removeprefix("hub:").partition("@")[0]
    return name if name.count("/") == 1 and not name.startswith(("/", ".", "~")) else None


def _bytes(source: Path | bytes) -> bytes:
    return source if isinstance(source, bytes) else source.read_bytes()


def _text(files: ArtifactFiles, name: str) -> str:
    return read_all(files.open(name)).decode(errors="replace")


def _copied(files: ArtifactFiles, name: str, folder: Path) -> Path:
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    file = files.open(name)
    try:
        copy_synced(file, target)
    finally:
        file.close()
    return target
