"""The zarr payload, read by ranges of elements from any zarr store."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from threading import local
from typing import TYPE_CHECKING, Any, Final

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

_MOST_IN_SHARD: Final = 1 << 22
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
        _, chunks = self._arrays[key]
        shape = self._specs[key].shape
        for slab in slabs(shape, chunks, start, start + out.size, most=_AT_ONCE):
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
            values: Any = self._arrays[key][0][slab.selection]
        except WsmergeError:
            raise
        except Exception as error:
            # Damaged bytes fail with whatever the checksum or the next instruction of a decompressor fails with.
            raise TensorFileError(
                f"elements {slab.start} to {slab.stop} of {key} are damaged: {error}", where=self.label, hint=_DAMAGED
            ) from error
        return np.asarray(values, np.float32).reshape(-1)


def _opened(array: ArrayMetadata, store: Store, path: str, label: str) -> tuple[Array[Any], tuple[int, ...]]:
    """The array as zarr reads it, and the shape of its chunks."""
    from zarr.storage import StorePath  # noqa: PLC0415 - zarr is slow to import

    from wsmerge.registry.payloads.zarr_bfloat16 import register_bfloat16  # noqa: PLC0415 - imports zarr
    from wsmerge.registry.payloads.zarr_bounds import bounded_codecs  # noqa: PLC0415 - imports zarr

    register_bfloat16()
    try:
        fields = array.fields | {"codecs": bounded_codecs(array.fields.get("codecs"))}
        opened = _made(fields, StorePath(store, path))
        _check_chunks(array, opened.chunks, opened.shards)
    except ValueError as error:
        raise TensorFileError(
            f"zarr cannot take the metadata of {array.spec.name}: {error}", where=label, hint=_DAMAGED
        ) from error
    return opened, opened.chunks


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


def _check_chunks(array: ArrayMetadata, chunk: tuple[int, ...], shard: tuple[int, ...] | None) -> None:
    """Refuse a grid whose parts take more memory than a reader can be asked for, before any of them is read."""
    itemsize, shape = array.spec.dtype.itemsize, array.spec.shape
    if len(chunk) != len(shape) or not all(chunk):
        raise ValueError(f"its chunks {list(chunk)} do not make {list(shape)}")
    first = next(iter(slabs(shape, chunk, 0, 1)), None) if array.spec.numel else None
    needed = max(math.prod(chunk), first.stop - first.start if first else 0) * itemsize
    if needed > _MOST_BYTES:
        raise ValueError(
            f"its chunks {list(chunk)} take {needed:,} bytes to read one element, and {_MOST_BYTES:,} is the most; "
            "write it again in smaller ones"
        )
    count = math.prod(whole // part for whole, part in zip(shard, chunk, strict=True)) if shard else 1
    if count > _MOST_IN_SHARD:
        raise ValueError(f"its shards hold {count:,} chunks, and {_MOST_IN_SHARD:,} is the most")
