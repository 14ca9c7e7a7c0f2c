"""Directions in any zarr store: a local folder, a zip file, memory, fsspec, or an object store through obstore.

    from zarr.storage import ZipStore

    with open_zarr_direction(ZipStore("sycophancy.zarr.zip", mode="r")) as direction:
        ...

The group repeats the manifest, so nothing beside it is needed. Opening and reading take no copy: what is asked for is
read by range. A store that needs opening and closing is its owner's to open and to close.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.ranges import MemoryFile, RangeFile
from wsmerge.errors import DirectionError, VerificationError
from wsmerge.registry.direction import Direction, check_agreement, verify_direction
from wsmerge.registry.manifest import MANIFEST_FILE, parse_manifest
from wsmerge.registry.payloads import Codec, component_key, write_zarr_payload
from wsmerge.registry.payloads.zarr_layout import METADATA_FILE, ZARR_FOLDER
from wsmerge.registry.payloads.zarr_reading import ZarrPayload
from wsmerge.registry.records import ComponentRecord, TensorRecord

if TYPE_CHECKING:
    from zarr.abc.store import Store

__all__ = ["open_zarr_direction", "write_zarr_direction"]

_NO_MANIFEST: Final = "wsmerge convert REF --to zarr writes a group with one"


def open_zarr_direction(store: Store, path: str = "", *, label: str | None = None) -> Direction:
    """Open the direction that a zarr group holds, reading its metadata only. Close it after use, and the store after it.

    Args:
        store: any zarr store.
        path: of the group in the store; the root if empty.
        label: how messages name it, where not as the manifest does.

    Raises:
        TensorFileError: no group, or one whose metadata are damaged; the store cannot be read.
        DirectionError: a group without manifest, or whose arrays do not agree with it; every tensor is named.
        ManifestError: a bad manifest.
        MissingDependencyError: a codec is not installed.
    """
    where = f"{store}/{path}" if path else str(store)
    payload = ZarrPayload(store, path.strip("/"), where)
    text = payload.manifest_text
    if text is None:
        raise DirectionError("is no direction: its attributes hold no manifest", where=where, hint=_NO_MANIFEST)
    manifest = parse_manifest(text.encode(), where=f"{where}/{METADATA_FILE}")
    check_agreement(manifest, payload)
    return Direction(_StoreFiles(store, path.strip("/"), where, text), manifest, payload, label=label)


def write_zarr_direction(direction: Direction, store: Store, path: str = "", *, codec: Codec = "auto") -> None:
    """Write the tensors of `direction`, and its manifest, as a group into any zarr store; what was written is read back.

    Args:
        direction: opened, with any payload.
        store: that can be written.
        path: of the group in the store; the root if empty.
        codec: how chunks are packed; see `wsmerge.registry.payloads.zarr_codecs`.

    Raises:
        OutputError: there is a group already, or the store cannot be written.
        TensorFileError: the store cannot be read.
        VerificationError: tensors of `direction` are not what its manifest says, or the store gives back other bytes.
        UsageError: no such codec; `MissingDependencyError` where it is not installed.
    """
    rows = direction.manifest.tensors
    text = direction.manifest.canonical_bytes().decode()
    write_zarr_payload(store, path.strip("/"), rows, _Hashed(direction).fill, manifest=text, codec=codec)
    with open_zarr_direction(store, path) as written:
        problems = verify_direction(written)
    if problems:
        raise VerificationError("the store gave back other bytes", where=str(store), details=problems)


class _Hashed:
    """The components of a direction, each hashed while it is read from start to end."""

    def __init__(self, direction: Direction) -> None:
        self._direction = direction
        self._digest = sha256()

    def fill(self, row: TensorRecord, part: ComponentRecord, start: int, out: NDArray[np.float32]) -> None:
        payload = self._direction.payload
        key = component_key(row, part.component, adapter=payload.adapter)
        payload.read_into(key, start, out)
        self._digest = self._digest if start else sha256()
        self._digest.update(out.data)
        if start + out.size == payload.specs[key].numel and self._digest.hexdigest() != part.sha256:
            raise VerificationError(
                f"{row.name}: the bytes of {part.component} are not those that the manifest names",
                where=self._direction.label,
                hint="copy the artifact again from its source",
            )


class _StoreFiles:
    """A group in a zarr store as the files of an artifact; the manifest is a file that only its attributes hold."""

    folder: Path | None = None

    def __init__(self, store: Store, path: str, label: str, manifest: str) -> None:
        self.label = label
        self._store, self._path, self._manifest = store, path, manifest

    def names(self) -> frozenset[str]:
        """The files of an artifact folder with this payload."""
        from wsmerge.registry.payloads.zarr_keys import list_keys  # noqa: PLC0415 - imports zarr

        return frozenset({MANIFEST_FILE, *(f"{ZARR_FOLDER}/{key}" for key in list_keys(self._store, self._path))})

    def open(self, name: str) -> RangeFile:
        """File `name`, to be read by range.

        Raises:
            TensorFileError: it is not there.
        """
        from wsmerge.registry.payloads.zarr_keys import StoredFile, joined  # noqa: PLC0415 - imports zarr

        if name == MANIFEST_FILE:
            data = self._manifest.encode()
            return MemoryFile(f"{self.label}/{name}", len(data), lambda: data)
        return StoredFile(self._store, joined(self._path, name.removeprefix(f"{ZARR_FOLDER}/")), self.label)
