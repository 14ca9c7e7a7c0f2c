"""The same direction in another payload: manifest, and with it both digests, stay; what is written is read back.

A version in a store never changes, so the other form is an artifact folder. Publishing it elsewhere is the same version.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal, get_args

from wsmerge.core.files import staged_folder
from wsmerge.errors import Problems, UsageError, VerificationError
from wsmerge.registry.card import CARD_FILE, META_FILE, render_card, render_meta
from wsmerge.registry.direction import Direction, open_direction_folder, verify_direction
from wsmerge.registry.files import ArtifactFiles
from wsmerge.registry.manifest import MANIFEST_FILE
from wsmerge.registry.payloads import MAX_SHARD_BYTES, Codec, check_codec, payload_files, write_payload
from wsmerge.registry.payloads.zarr_layout import ZARR_FOLDER
from wsmerge.registry.records import told_modules
from wsmerge.registry.zarr_direction import write_zarr_direction

__all__ = ["PAYLOADS", "PayloadFormat", "check_payload", "convert_direction", "payload_bytes"]

PayloadFormat = Literal["safetensors", "zarr"]
PAYLOADS: Final[tuple[PayloadFormat, ...]] = get_args(PayloadFormat)


def convert_direction(
    direction: Direction,
    folder: Path,
    payload: PayloadFormat,
    *,
    codec: Codec = "auto",
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Direction:
    """Write `direction` as an artifact with another payload, and open it. `folder` appears whole, or not at all.

    Args:
        direction: opened; every byte of it is read and compared with its manifest.
        folder: must not exist, or be empty.
        payload: `safetensors`, which is a PEFT adapter wherever PEFT can hold the direction, or `zarr`.
        codec: of a zarr payload's chunks.
        max_shard_bytes: above this a safetensors payload that is no adapter is sharded.

    Raises:
        UsageError: no such payload or codec.
        OutputError: the folder is taken or cannot be written.
        VerificationError: tensors that are not what the manifest says.
        MissingDependencyError: the codec is not installed.
    """
    check_payload(payload)
    check_codec(codec)
    manifest = direction.manifest
    adapter = payload == "safetensors" and manifest.plain_adapter
    with staged_folder(folder) as staged:
        (staged / MANIFEST_FILE).write_bytes(manifest.canonical_bytes())
        (staged / META_FILE).write_text(render_meta(manifest), encoding="utf-8")
        (staged / CARD_FILE).write_text(render_card(manifest, adapter=adapter), encoding="utf-8")
        if payload == "zarr":
            _write_zarr(direction, staged, codec)
        else:
            _write_safetensors(direction, staged, max_shard_bytes)
    return open_direction_folder(folder)


def check_payload(name: str) -> PayloadFormat:
    """`name`, if it is a payload's.

    Raises:
        UsageError: it is not.
    """
    for known in PAYLOADS:
        if name == known:
            return known
    raise UsageError(f"there is no payload {name!r}", hint=f"one of {', '.join(PAYLOADS)}")


def payload_bytes(files: ArtifactFiles) -> int:
    """Bytes of the files that hold an artifact's payload."""
    return sum(_size(files, name) for name in payload_files(files))


def _size(files: ArtifactFiles, name: str) -> int:
    file = files.open(name)
    try:
        return file.size
    finally:
        file.close()


def _write_zarr(direction: Direction, folder: Path, codec: Codec) -> None:
    from zarr.storage import LocalStore  # noqa: PLC0415 - zarr is slow to import

    write_zarr_direction(direction, LocalStore(folder / ZARR_FOLDER), codec=codec)


def _write_safetensors(direction: Direction, folder: Path, max_shard_bytes: int) -> None:
    """As every direction is written; what comes out is what the manifest names, unless the tensors are damaged."""
    manifest = direction.manifest
    layouts = {row.name: row.layout for row in manifest.tensors if row.layout is not None}
    rows = write_payload(
        folder,
        direction,
        manifest.base,
        layouts,
        modules=told_modules(manifest.tensors),
        max_shard_bytes=max_shard_bytes,
    )
    written = {(row.name, part.component, part.sha256) for row in rows for part in row.components}
    problems = Problems()
    for row in manifest.tensors:
        for part in row.components:
            if (row.name, part.component, part.sha256) not in written:
                problems.add(f"{row.name}: the bytes of {part.component} are not those that the manifest names")
    problems.raise_if_any(
        VerificationError, "its tensors are damaged", where=direction.label, hint="copy it again from its source"
    )
    with open_direction_folder(folder, label=direction.label) as copy:
        wrong = verify_direction(copy)
    if wrong:
        raise VerificationError("what was written is not what was read", where=str(folder), details=wrong)
