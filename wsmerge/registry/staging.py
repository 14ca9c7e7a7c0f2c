"""What a version's folder is filled with before it appears."""

from __future__ import annotations

from pathlib import Path

from wsmerge.core.files import sync_folder
from wsmerge.errors import VerificationError
from wsmerge.registry.blobs import place_bytes, place_file
from wsmerge.registry.card import CARD_FILE, META_FILE, render_card, render_meta
from wsmerge.registry.direction import Direction, artifact_files, open_direction_folder, verify_direction
from wsmerge.registry.manifest import MANIFEST_FILE, Manifest
from wsmerge.registry.paths import StorePaths
from wsmerge.registry.references import check_name
from wsmerge.registry.versions import Version

__all__ = ["fill_version", "readdressed"]


def readdressed(manifest: Manifest, name: str | None, version: str | None) -> Manifest:
    """`manifest` under another name or version; itself where nothing changes, or the name is `owner/name`."""
    changes = {}
    if version is not None and version != manifest.version:
        changes["version"] = str(Version.parse(version))
    if name is not None and "/" not in check_name(name) and name != manifest.name:
        changes["name"] = name
    return manifest.replaced(**changes) if changes else manifest


def fill_version(paths: StorePaths, staged: Path, direction: Direction, manifest: Manifest) -> None:
    """Copy the artifact of `direction` into the empty folder `staged` under `manifest`, sync and verify it.

    Tensors are copied as they are. Card and `meta.yaml` are copied too, unless they are missing or the manifest changed.

    Raises:
        VerificationError: tensors that are not what the manifest says.
        DirectionError: the artifact is not whole.
    """
    rendered = {MANIFEST_FILE: manifest.canonical_bytes()}
    present = artifact_files(direction.files)
    renamed = manifest != direction.manifest
    for file, render in ((META_FILE, render_meta), (CARD_FILE, render_card)):
        if renamed or file not in present:
            rendered[file] = render(manifest).encode()
    for file in sorted({*present, *rendered}):
        if file in rendered:
            place_bytes(paths, rendered[file], staged / file)
        else:
            place_file(paths, direction.files, file, staged / file)
    sync_folder(staged)
    with open_direction_folder(staged, label=direction.label) as copy:
        problems = verify_direction(copy)
    if problems:
        raise VerificationError("tensors are not what the manifest says", where=direction.label, details=problems)
