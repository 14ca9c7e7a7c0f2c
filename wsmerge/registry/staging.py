"""What a version's folder is filled with before it appears."""

from __future__ import annotations

from pathlib import Path

from wsmerge.core.files import sync_folder
from wsmerge.errors import VerificationError
from wsmerge.registry.artifact_reading import artifact_files
from wsmerge.registry.blobs import place_bytes, place_file
from wsmerge.registry.card import CARD_FILE, META_FILE, render_card, render_meta
from wsmerge.registry.direction import Direction, open_direction_folder, verify_direction
from wsmerge.registry.manifest import MANIFEST_FILE, Manifest
from wsmerge.registry.payloads import restated_files
from wsmerge.registry.references import check_name
from wsmerge.registry.versions import Version

__all__ = ["fill_version", "readdressed", "version_files"]


def readdressed(manifest: Manifest, name: str | None, version: str | None) -> Manifest:
    """`manifest` under another name or version; itself where nothing changes, or the name is `owner/name`."""
    changes = {}
    if version is not None and version != manifest.version:
        changes["version"] = str(Version.parse(version))
    if name is not None and "/" not in check_name(name) and name != manifest.name:
        changes["name"] = name
    return manifest.replaced(**changes) if changes else manifest


def version_files(direction: Direction, manifest: Manifest) -> dict[str, bytes | None]:
    """The files of `direction` under `manifest`, by name: their bytes where they are made anew, None where copied.

    Raises:
        DirectionError: the artifact is not whole.
    """
    present = artifact_files(direction.files)
    files: dict[str, bytes | None] = dict.fromkeys(present)
    files[MANIFEST_FILE] = manifest.canonical_bytes()
    renamed = manifest != direction.manifest
    described = {
        META_FILE: render_meta(manifest),
        CARD_FILE: render_card(manifest, adapter=direction.payload.adapter),
    }
    files |= {file: text.encode() for file, text in described.items() if renamed or file not in present}
    if renamed:
        files |= restated_files(direction.files, manifest.canonical_bytes().decode())
    return dict(sorted(files.items()))


def fill_version(staged: Path, direction: Direction, manifest: Manifest) -> dict[str, str]:
    """Copy the artifact of `direction` into the empty folder `staged` under `manifest`, sync and verify it.

    Tensors are copied as they are. Card and `meta.yaml` are copied too, unless they are missing or the manifest changed.

    Returns:
        SHA-256 of each file.

    Raises:
        VerificationError: tensors that are not what the manifest says.
        DirectionError: the artifact is not whole.
    """
    digests = {
        file: place_file(direction.files, file, staged / file) if data is None else place_bytes(data, staged / file)
        for file, data in version_files(direction, manifest).items()
    }
    for folder in (*(path for path in staged.rglob("*") if path.is_dir()), staged):
        sync_folder(folder)
    with open_direction_folder(staged, label=direction.label) as copy:
        problems = verify_direction(copy)
    if problems:
        raise VerificationError("tensors are not what the manifest says", where=direction.label, details=problems)
    return digests
