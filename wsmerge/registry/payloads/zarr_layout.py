"""How a zarr payload is laid out: the folder, the names of its arrays, chunks and shards. Nothing here needs zarr.

    direction.zarr/zarr.json            a zarr v3 group; `attributes.wsmerge.manifest` is the text of direction.json, and the
                                        metadata of all arrays stand beside it, so that one read opens the payload
    direction.zarr/ARRAY/zarr.json      one array a component; `attributes.wsmerge` names its tensor and component
    direction.zarr/ARRAY/c.0.0          its data: one file, or one a shard

ARRAY is `TENSOR.delta`, `TENSOR.lora_A` or `TENSOR.lora_B`. Names are flat: a group a module would add a file to each.
Bytes of the name other than ASCII letters, digits, `.`, `_` and `-` are written `=2F`, as is a leading `_` or `.`; of a
name that then has more than 200 characters, the first 120 are kept, and the SHA-256 of the whole follows.

A chunk is a run of elements that lie back to back, about 1 MiB: what one range of a merge decodes. An array of several
chunks is sharded, one shard up to 64 MiB of elements: a writer holds about four times that in memory. Every chunk is
written, also where it holds zeros alone, so that a missing file is a fault; and ends with its CRC32C.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

__all__ = [
    "ATTRIBUTE",
    "CHUNK_BYTES",
    "METADATA_FILE",
    "SHARD_BYTES",
    "ZARR_FOLDER",
    "Chunking",
    "Slab",
    "array_name",
    "chunking_of",
    "slabs",
]

ZARR_FOLDER: Final = "direction.zarr"
METADATA_FILE: Final = "zarr.json"
ATTRIBUTE: Final = "wsmerge"
CHUNK_BYTES: Final = 1 << 20
SHARD_BYTES: Final = 64 << 20
_PLAIN: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
_MAX_NAME: Final = 200
_KEPT: Final = 120

Shape = tuple[int, ...]
Selection = tuple[int | slice, ...]


def array_name(key: str) -> str:
    """The name in the group of the array with the key `TENSOR.COMPONENT`; no two keys have the same."""
    data = key.encode("utf-8", "surrogatepass")
    name = "".join(
        chr(byte) if byte in _PLAIN and (place or byte not in b"._") else f"={byte:02X}"
        for place, byte in enumerate(data)
    )
    return name if len(name) <= _MAX_NAME else f"{name[:_KEPT]}={hashlib.sha256(data).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Chunking:
    """Shapes of an array's chunks and shards; no shards where there is one chunk, or none."""

    chunk: Shape
    shard: Shape | None

    @property
    def written(self) -> Shape:
        """The shape of what one file holds."""
        return self.shard or self.chunk


def chunking_of(
    shape: Shape, itemsize: int, *, chunk_bytes: int = CHUNK_BYTES, shard_bytes: int = SHARD_BYTES
) -> Chunking:
    """The chunks and shards that the writer gives an array of `shape`."""
    if not math.prod(shape):
        return Chunking(tuple(max(1, length) for length in shape), None)
    chunk = _run(shape, chunk_bytes // itemsize)
    shard = _run(shape, max(shard_bytes, chunk_bytes) // itemsize)
    whole = tuple(-(-length // part) * part for length, part in zip(shard, chunk, strict=True))
    return Chunking(chunk, None if whole == chunk else whole)


def _run(shape: Shape, most: int) -> Shape:
    """The shape of equal blocks of about `most` elements at most, each of which lies back to back in memory."""
    inner = 1
    run: list[int] = []
    for length in reversed(shape):
        count = -(-length // max(1, most // inner))  # blocks along this axis
        run.append(-(-length // count))
        inner *= length
    return tuple(reversed(run))


@dataclass(frozen=True, slots=True)
class Slab:
    """A part of an array whose elements lie back to back: elements `start` to `stop`, which `selection` selects."""

    start: int
    stop: int
    selection: Selection
    shape: Shape


def slabs(shape: Shape, block: Shape, start: int, stop: int, *, most: int = 0) -> Iterator[Slab]:
    """The parts of an array that hold its elements `start` to `stop`, in order, each made of whole blocks.

    Args:
        shape: of the array.
        block: of the blocks of its grid. Of ours each is a slab; of other grids a slab is a row of blocks.
        start: the first element, row-major.
        stop: the one after the last.
        most: blocks that are wanted whole are one slab together, up to so many elements.
    """
    if not shape:
        yield Slab(0, 1, (), ())
        return
    axis = next((axis for axis, length in enumerate(block) if length > 1), len(shape) - 1)
    row = math.prod(shape[axis + 1 :])
    outer = shape[axis] * row
    position = start
    while position < stop:
        number, offset = divmod(position, outer)
        first = offset // row // block[axis] * block[axis]
        begin = number * outer + first * row
        wanted = min(most, stop - begin) // row // block[axis] if begin == position else 0
        last = min(first + max(1, wanted) * block[axis], shape[axis])
        slab = Slab(
            begin,
            number * outer + last * row,
            (*_unravelled(number, shape[:axis]), slice(first, last)),
            (last - first, *shape[axis + 1 :]),
        )
        yield slab
        position = slab.stop


def _unravelled(number: int, shape: Shape) -> Shape:
    """The indices of row-major element `number` of an array of `shape`."""
    indices: list[int] = []
    for length in reversed(shape):
        number, index = divmod(number, length)
        indices.append(index)
    return tuple(reversed(indices))
