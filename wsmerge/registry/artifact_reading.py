"""What an artifact says and is made of, told without opening its payload."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from wsmerge.core.opening import MAX_WHOLE_BYTES, is_below, read_whole
from wsmerge.core.ranges import read_all
from wsmerge.errors import DirectionError, ManifestError, Problems
from wsmerge.registry.card import CARD_FILE, META_FILE
from wsmerge.registry.files import ArtifactFiles
from wsmerge.registry.manifest import MANIFEST_FILE, Manifest, parse_manifest
from wsmerge.registry.payloads import ADAPTER_CONFIG_FILE, payload_files

__all__ = ["artifact_files", "read_manifest"]


def read_manifest(files: ArtifactFiles | Path) -> Manifest:
    """The manifest of an artifact, or of the one in a folder; the payload is not looked at.

    Raises:
        DirectionError: there is no manifest.
        ManifestError: a bad one.
    """
    where = f"{files}/{MANIFEST_FILE}" if isinstance(files, Path) else f"{files.label}/{MANIFEST_FILE}"
    data = _manifest_of_folder(files) if isinstance(files, Path) else _manifest_of_files(files)
    return parse_manifest(data, where=where)


def artifact_files(files: ArtifactFiles) -> tuple[str, ...]:
    """Names of the files that make up the artifact; what else lies there is none of it.

    Raises:
        DirectionError: a file is missing; card and `meta.yaml` may be.
    """
    present = files.names()
    described = tuple(name for name in (META_FILE, CARD_FILE) if name in present)
    names = (MANIFEST_FILE, *payload_files(files), *described)
    problems = Problems()
    for name in names:
        if name not in present:
            problems.add(f"{name}: missing")
        elif not is_below(name):
            problems.add(f"{name!r}: is no name of a file below a folder")
    problems.raise_if_any(DirectionError, "the artifact is not whole", where=files.label)
    return names


def _manifest_of_files(files: ArtifactFiles) -> bytes:
    if files.folder is not None:
        return _manifest_of_folder(files.folder)
    if MANIFEST_FILE not in files.names():
        raise DirectionError(
            f"is no artifact: it has no {MANIFEST_FILE}", where=files.label, hint="wsmerge push writes one"
        )
    file = files.open(MANIFEST_FILE)
    if file.size > MAX_WHOLE_BYTES:
        file.close()
        raise _too_large(files.label)
    return read_all(file)


def _manifest_of_folder(folder: Path) -> bytes:
    try:
        return read_whole(folder / MANIFEST_FILE, within=folder)
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise _too_large(str(folder)) from error
        raise DirectionError(
            f"is no artifact: {MANIFEST_FILE} cannot be read: {error.strerror}",
            where=str(folder),
            hint=_hint_for_no_artifact(folder),
        ) from error


def _too_large(where: str) -> ManifestError:
    return ManifestError(
        f"has more than the {MAX_WHOLE_BYTES:,} bytes that a manifest has at most",
        where=f"{where}/{MANIFEST_FILE}",
        hint="give a folder that wsmerge extract wrote",
    )


def _hint_for_no_artifact(folder: Path) -> str:
    if os.path.isfile(folder / ADAPTER_CONFIG_FILE):  # noqa: PTH113 - False where the folder may not be looked into
        return f"a PEFT adapter becomes one with: wsmerge extract NAME --base BASE --positive {folder}"
    return "give a folder that wsmerge extract wrote"
