"""The zarr payload, read by ranges of elements from any zarr store."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from threading import local
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.tensors import TensorSpec
from wsmerge.errors import TensorFileError, WsmergeError
from wsmerge.registry.payloads.payload import Payload
from wsmerge.registry.payloads.zarr_codecs import quiet_codecs
from wsmerge.registry.payloads.zarr_layout import METADATA_FILE, Slab, slabs
from wsmerge.registry.payloads.zarr_metadata import ArrayMetadata, manifest_of, parse_arrays, parse_group

if TYPE_CHECKING:
    from zarr import Array
    from zarr.abc.store import Store
    from zarr.storage import StorePath

__all__ = ["ZarrPayload"]

_AT_ONCE: Final = 4 << 20
"""Elements that are decoded at once, at most, where so many are asked for; zarr decodes their chunks in parallel."""

_MOST_BYTES: Final = 256 << 20
"""Of elements that have to be decoded to have one of them."""

_CHUNKS_AT_ONCE: Final = 1 << 10
"""Chunks that are decoded at once, at most, where so many are asked for; zarr takes 2.5 KB of memory for each."""

_MOST_CHUNKS: Final = 1 << 16
"""In a shard, and to be decoded to have one element."""

_DAMAGED: Final = "copy the artifact again from its source"


class ZarrPayload(Payload):
    """The arrays of a zarr group.

    Chunks are decoded when an element of theirs is asked for. Each thread keeps the last one, about 1 MiB, since a merge
    asks for it piece by piece.

    Args:
        store: any zarr store.
        path: of the group in the store, empty for its root.
        label: how messages name the payload.
        owned: whether `store` is closed with the payload; else it is the caller's to close.

    Raises:
        TensorFileError: there is no such group, or its metadata are damaged; every array is named.
        MissingDependencyError: a codec is not installed.
    """

    def __init__(self, store: Store, path: str, label: str, *, owned: bool = False) -> None:
        from wsmerge.registry.payloads.zarr_keys import (  # noqa: PLC0415 - zarr is slow to import
            get_bytes,
            joined,
            list_keys,
        )
        from wsmerge.registry.payloads.zarr_stores import ChunkStore  # noqa: PLC0415 - as above

        self.label = label
        self._store, self._path = store, path
        self._owned = store if owned else None
        data = get_bytes(store, joined(path, METADATA_FILE))
        if data is None:
            raise TensorFileError(f"has no {METADATA_FILE}", where=label, hint=_DAMAGED)
        self.group = parse_group(data, f"{label}/{METADATA_FILE}")

        def each() -> dict[str, bytes]:
            keys = [key for key in list_keys(store, path) if key.endswith(f"/{METADATA_FILE}")]
            found = {key.removesuffix(f"/{METADATA_FILE}"): get_bytes(store, joined(path, key)) for key in keys}
            return {name: data for name, data in found.items() if data is not None}

        self._metadata = parse_arrays(self.group, each, label)
        self._specs = {key: array.spec for key, array in self._metadata.items()}
        opened = ChunkStore(store, label)
        self._arrays = {
            key: _opened(array, opened, joined(path, array.name), label) for key, array in self._metadata.items()
        }
        self._recent = local()

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Dtype and shape of each key."""
        return self._specs

    @property
    def manifest_text(self) -> str | None:
        """The manifest that the group's attributes hold, None where there is none."""
        return manifest_of(self.group)

    def contradictions(self, manifest: str) -> Iterator[str]:
        """A manifest in the attributes that is another; an array whose own metadata are not those that the group has."""
        from wsmerge.registry.payloads.zarr_keys import get_bytes, joined, list_keys  # noqa: PLC0415 - as above

        if self.manifest_text not in (None, manifest):
            yield f"{self.label}: the manifest in its attributes is not direction.json"
        suffix = f"/{METADATA_FILE}"
        arrays = {array.name: array.fields for array in self._metadata.values()}
        present = {key.removesuffix(suffix) for key in list_keys(self._store, self._path) if key.endswith(suffix)}
        for name in sorted(present | set(arrays)):
            try:
                own = json.loads(get_bytes(self._store, joined(self._path, name + suffix)) or b"null")
            except (ValueError, RecursionError):
                own = None
            if name not in arrays or own != arrays[name]:
                yield f"{self.label}/{name}{suffix}: is not what the group's {METADATA_FILE} says of this array"

    def fill(self, key: str, start: int, out: NDArray[np.float32]) -> None:
        """Fill `out` with the elements of array `key` from element `start` on.

        Raises:
            TensorFileError: a chunk is missing, or its bytes are damaged.
        """
        flat = out.reshape(-1)
        array = self._arrays[key]
        most = min(_AT_ONCE, array.finest * _CHUNKS_AT_ONCE)
        for slab in slabs(self._specs[key].shape, array.array.chunks, start, start + out.size, most=most):
            first, last = max(start, slab.start), min(start + out.size, slab.stop)
            part = flat[first - start : last - start]
            if part.size == slab.stop - slab.start:
                part[:] = self._decoded(key, slab)
            else:
                part[:] = self._kept(key, slab)[first - slab.start : last - slab.start]

    def close(self) -> None:
        """Let go of the chunks that are kept, and close the store if it is owned."""
        self._arrays = {}
        self._recent = local()
        if self._owned is not None:
            self._owned.close()

    def _kept(self, key: str, slab: Slab) -> NDArray[np.float32]:
        place, values = getattr(self._recent, "slab", (None, None))
        if place != (key, slab.start) or values is None:
            values = self._decoded(key, slab)
            self._recent.slab = ((key, slab.start), values)
        return values

    def _decoded(self, key: str, slab: Slab) -> NDArray[np.float32]:
        try:
            values: Any = self._arrays[key].array[slab.selection]
        except WsmergeError:
            raise
        except Exception as error:
            # Damaged bytes fail with whatever the checksum or the next instruction of a decompressor fails with.
            raise TensorFileError(
                f"elements {slab.start} to {slab.stop} of {key} are damaged: {error}", where=self.label, hint=_DAMAGED
            ) from error
        return np.asarray(values, np.float32).reshape(-1)


class _Opened(NamedTuple):
    """An array as zarr reads it.

    Attributes:
        array: zarr's.
        finest: elements of a chunk, of the innermost ones where shards lie within chunks.
    """

    array: Array[Any]
    finest: int


def _opened(array: ArrayMetadata, store: Store, path: str, label: str) -> _Opened:
    from zarr.storage import StorePath  # noqa: PLC0415 - zarr is slow to import

    from wsmerge.registry.payloads.zarr_bfloat16 import register_bfloat16  # noqa: PLC0415 - imports zarr
    from wsmerge.registry.payloads.zarr_bounds import (  # noqa: PLC0415 - imports zarr
        bounded_codecs,
        chunks_within,
    )

    register_bfloat16()
    try:
        fields = array.fields | {"codecs": bounded_codecs(array.fields.get("codecs"))}
        opened = _made(fields, StorePath(store, path))
        metadata: Any = opened.metadata
        finest = _check_chunks(array, opened.chunks, opened.shards, chunks_within(metadata.codecs))
    except (ValueError, NotImplementedError) as error:  # the latter of a grid that is not regular
        raise TensorFileError(
            f"zarr cannot take the metadata of {array.spec.name}: {error}", where=label, hint=_DAMAGED
        ) from error
    return _Opened(opened, finest)


def _made(fields: Mapping[str, Any], place: StorePath) -> Array[Any]:
    from zarr import Array  # noqa: PLC0415 - zarr is slow to import

    with quiet_codecs():
        try:
            return Array.from_dict(place, dict(fields))
        except WsmergeError:  # a dtype whose package is missing
            raise
        except Exception as error:
            # A stranger's metadata fail with whatever the next instruction of zarr fails with.
            raise ValueError(f"{type(error).__name__}: {error}") from error


def _check_chunks(
    array: ArrayMetadata, chunk: tuple[int, ...], shard: tuple[int, ...] | None, within: Sequence[tuple[int, ...]]
) -> int:
    """The elements of an innermost chunk.

    Raises:
        ValueError: parts of the grid take more memory than a reader can be asked for; told before any is read.
    """
    itemsize, shape = array.spec.dtype.itemsize, array.spec.shape
    if len(chunk) != len(shape) or not all(length > 0 for part in (chunk, *within) for length in part):
        raise ValueError(f"its chunks {list(chunk)} do not make {list(shape)}")
    first = next(iter(slabs(shape, chunk, 0, 1)), None) if array.spec.numel else None
    elements = max(math.prod(chunk), first.stop - first.start if first else 0)
    if elements * itemsize > _MOST_BYTES:
        raise ValueError(
            f"its chunks {list(chunk)} take {elements * itemsize:,} bytes to read one element, and {_MOST_BYTES:,} is the "
            "most; write it again in smaller ones"
        )
    finest = min(math.prod(part) for part in (chunk, *within))
    count = max(elements, math.prod(shard or chunk)) // finest
    if count > _MOST_CHUNKS:
        raise ValueError(f"{count:,} chunks are in one shard or read for one element, and {_MOST_CHUNKS:,} is the most")
    return finest
