"""Writing a zarr payload into any zarr store, a shard at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.dtypes import F32
from wsmerge.errors import OutputError
from wsmerge.registry.payloads.zarr_codecs import Codec, Packing, check_codec, packing_of, quiet_codecs
from wsmerge.registry.payloads.zarr_layout import (
    ATTRIBUTE,
    METADATA_FILE,
    Chunking,
    Slab,
    array_name,
    chunking_of,
    slabs,
)
from wsmerge.registry.payloads.zarr_metadata import encode_metadata, with_manifest
from wsmerge.registry.records import ComponentRecord, TensorRecord
from wsmerge.registry.store_failures import store_writing

if TYPE_CHECKING:
    from zarr.abc.store import Store

__all__ = ["write_zarr_payload"]

Fill = Callable[[TensorRecord, ComponentRecord, int, NDArray[np.float32]], None]

_SEPARATOR: Final[dict[str, Any]] = {"name": "default", "separator": "."}


def write_zarr_payload(
    store: Store,
    path: str,
    rows: Iterable[TensorRecord],
    fill: Fill,
    *,
    manifest: str,
    codec: Codec = "auto",
) -> None:
    """Write the components of `rows` as a group; its `zarr.json` comes last, so what is not whole does not open.

    Args:
        store: any zarr store that can be written.
        path: of the group in the store, empty for its root.
        rows: of the manifest.
        fill: writes elements of a row's component, from one on, into an array; called in order, each element once.
        manifest: the text of `direction.json`.
        codec: how chunks are packed; see `zarr_codecs`.

    Raises:
        OutputError: there is a zarr group already, or the store cannot be written.
        TensorFileError: the store cannot be read.
        UsageError: no such codec; `MissingDependencyError` where it is not installed.
    """
    from wsmerge.registry.payloads.zarr_keys import get_bytes, joined, put_bytes  # noqa: PLC0415 - imports zarr

    check_codec(codec)
    place = joined(path, METADATA_FILE)
    if get_bytes(store, place) is not None:
        raise OutputError("is there already", where=f"{store}: {place}", hint="choose another place, or remove it")
    members: dict[str, Any] = {}
    with store_writing(f"{store}: {path}"):
        with quiet_codecs():
            for row in rows:
                for part in row.components:
                    name = array_name(f"{row.name}.{part.component}")
                    members[name] = _write_array(store, joined(path, name), _Filling(row, part, fill), codec)
        put_bytes(store, place, encode_metadata(_group(members, manifest)))


class _Filling:
    """One component, given slab by slab. The first, which is asked for twice, is kept."""

    def __init__(self, row: TensorRecord, part: ComponentRecord, fill: Fill) -> None:
        self.row, self.part, self._fill = row, part, fill
        self._first: NDArray[np.float32] | None = None

    def slab(self, slab: Slab) -> NDArray[np.float32]:
        if slab.start == 0 and self._first is not None:
            first, self._first = self._first, None
            return first
        values = np.empty(slab.shape, np.float32)
        self._fill(self.row, self.part, slab.start, values.reshape(-1))
        if slab.start == 0:
            self._first = values
        return values


def _write_array(store: Store, path: str, filling: _Filling, codec: Codec) -> dict[str, Any]:
    """Write one array and return its metadata, which go out last."""
    from zarr import Array  # noqa: PLC0415 - slow to import
    from zarr.storage import StorePath  # noqa: PLC0415 - as above

    from wsmerge.registry.payloads.zarr_keys import clear, joined, put_bytes  # noqa: PLC0415 - imports zarr

    shape = filling.part.shape
    chunking = chunking_of(shape, F32.itemsize)
    parts = list(slabs(shape, chunking.written, 0, math.prod(shape)))
    sample = _sample(filling.slab(parts[0]), math.prod(chunking.chunk)) if parts else np.empty(0, np.float32)
    fields = _metadata(filling, chunking, packing_of(codec, sample))
    clear(store, path)  # of what a write that was cut off has left
    array = Array.from_dict(StorePath(store, path), fields).with_config({"write_empty_chunks": True})
    for slab in parts:
        array[slab.selection] = filling.slab(slab)
    put_bytes(store, joined(path, METADATA_FILE), encode_metadata(fields))
    return fields


def _metadata(filling: _Filling, chunking: Chunking, packing: Packing) -> dict[str, Any]:
    """What zarr itself makes of them; made in memory, since in the store it would make a group above the array too."""
    import zarr  # noqa: PLC0415 - slow to import
    from zarr.storage import MemoryStore  # noqa: PLC0415 - as above

    from wsmerge.registry.payloads.zarr_keys import get_bytes  # noqa: PLC0415 - imports zarr

    store = MemoryStore()
    zarr.create_array(
        store,
        shape=filling.part.shape,
        dtype=F32.recipe_name,
        chunks=chunking.chunk,
        shards=chunking.shard,
        filters=None,
        compressors=packing.compressors,
        serializer=packing.serializer,
        fill_value=0.0,
        attributes={ATTRIBUTE: {"tensor": filling.row.name, "component": filling.part.component}},
        chunk_key_encoding=_SEPARATOR,
    )
    fields: dict[str, Any] = json.loads(get_bytes(store, METADATA_FILE) or b"{}")
    return fields


def _sample(values: NDArray[np.float32], most: int) -> NDArray[np.float32]:
    """A chunk's worth of elements from the middle."""
    flat = values.reshape(-1)
    start = max(0, (flat.size - most) // 2)
    return flat[start : start + most]


def _group(members: dict[str, Any], manifest: str) -> dict[str, Any]:
    fields = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {},
        "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": members},
    }
    return with_manifest(fields, manifest)
