"""Which payload an artifact has."""

from __future__ import annotations

from wsmerge.errors import DirectionError
from wsmerge.registry.files import ArtifactFiles
from wsmerge.registry.payloads.keys import ADAPTER_CONFIG_FILE, ADAPTER_FILE, INDEX_FILE, NATIVE_FILE
from wsmerge.registry.payloads.payload import Payload
from wsmerge.registry.payloads.safetensors import SafetensorsPayload, shard_names

__all__ = ["open_payload", "payload_files"]


def payload_files(files: ArtifactFiles) -> tuple[str, ...]:
    """Names of the files that hold the payload, as a version is copied with them.

    Raises:
        DirectionError: there is no payload, or more than one.
        TensorFileError: a broken index.
    """
    candidates = (ADAPTER_FILE, NATIVE_FILE, INDEX_FILE)
    present = files.names()
    found = [name for name in candidates if name in present]
    if len(found) != 1:
        problem = f"holds two payloads, {' and '.join(found)}" if found else "holds no payload"
        raise DirectionError(problem, where=files.label, hint=f"an artifact has one of {', '.join(candidates)}")
    if found == [ADAPTER_FILE]:
        return (ADAPTER_CONFIG_FILE, ADAPTER_FILE)
    if found == [NATIVE_FILE]:
        return (NATIVE_FILE,)
    return (INDEX_FILE, *shard_names(files))


def open_payload(files: ArtifactFiles) -> Payload:
    """The payload of an artifact, open for reading; close it after use.

    Raises:
        DirectionError: no payload, more than one, or one that contradicts itself.
        TensorFileError: a file that is missing, truncated or not well-formed.
    """
    return SafetensorsPayload(files, payload_files(files))
