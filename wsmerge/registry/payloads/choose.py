"""Which payload an artifact has."""

from __future__ import annotations

from typing import Final

from wsmerge.core.ranges import read_all
from wsmerge.errors import DirectionError
from wsmerge.registry.files import ArtifactFiles
from wsmerge.registry.payloads.keys import ADAPTER_CONFIG_FILE, ADAPTER_FILE, INDEX_FILE, NATIVE_FILE
from wsmerge.registry.payloads.payload import Payload
from wsmerge.registry.payloads.safetensors import SafetensorsPayload, shard_names
from wsmerge.registry.payloads.zarr_layout import METADATA_FILE, ZARR_FOLDER
from wsmerge.registry.payloads.zarr_metadata import encode_metadata, parse_group, with_manifest
from wsmerge.registry.payloads.zarr_reading import ZarrPayload

__all__ = ["open_payload", "payload_files", "restated_files"]

_GROUP_FILE: Final = f"{ZARR_FOLDER}/{METADATA_FILE}"


def payload_files(files: ArtifactFiles) -> tuple[str, ...]:
    """Names of the files that hold the payload, as a version is copied with them.

    Raises:
        DirectionError: there is no payload, or more than one.
        TensorFileError: a broken index.
    """
    candidates = (ADAPTER_FILE, NATIVE_FILE, INDEX_FILE, _GROUP_FILE)
    present = files.names()
    found = [name for name in candidates if name in present]
    if len(found) != 1:
        problem = f"holds two payloads, {' and '.join(found)}" if found else "holds no payload"
        raise DirectionError(problem, where=files.label, hint=f"an artifact has one of {', '.join(candidates)}")
    if found == [ADAPTER_FILE]:
        return (ADAPTER_CONFIG_FILE, ADAPTER_FILE)
    if found == [NATIVE_FILE]:
        return (NATIVE_FILE,)
    if found == [_GROUP_FILE]:
        return tuple(sorted(name for name in present if name.startswith(f"{ZARR_FOLDER}/")))
    return (INDEX_FILE, *shard_names(files))


def open_payload(files: ArtifactFiles) -> Payload:
    """The payload of an artifact, open for reading; close it after use.

    Raises:
        DirectionError: no payload, more than one, or one that contradicts itself.
        TensorFileError: a file that is missing, truncated or not well-formed.
        MissingDependencyError: a zarr payload whose codec is not installed.
    """
    names = payload_files(files)
    if _GROUP_FILE not in names:
        return SafetensorsPayload(files, names)
    from wsmerge.registry.payloads.zarr_stores import FilesStore  # noqa: PLC0415 - imports zarr, which is slow

    store = FilesStore(files)
    try:
        return ZarrPayload(store, ZARR_FOLDER, f"{files.label}/{ZARR_FOLDER}", owned=True)
    except BaseException:
        store.close()
        raise


def restated_files(files: ArtifactFiles, manifest: str) -> dict[str, bytes]:
    """Those files of a payload that repeat the manifest, with the text `manifest` in its place.

    Raises:
        TensorFileError: such a file is damaged.
    """
    if _GROUP_FILE not in files.names():
        return {}
    group = parse_group(read_all(files.open(_GROUP_FILE)), f"{files.label}/{_GROUP_FILE}")
    return {_GROUP_FILE: encode_metadata(with_manifest(group, manifest))}
