"""Where every byte of the output goes, before one is written.

Headers are encoded first and padded to a page, so each shard's data starts on a page and every offset is known. Within a
shard, tensors of wider dtypes come first: all offsets are then multiples of their element size.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Final, NamedTuple

from wsmerge.core.tensor_file import PAGE_BYTES, encode_header
from wsmerge.core.tensors import TensorSpec

__all__ = ["INDEX_FILE", "Block", "OutputShard", "Piece", "blocks_of", "index_json", "lay_out"]

INDEX_FILE: Final = "model.safetensors.index.json"


class Piece(NamedTuple):
    """The part of one tensor that lies in a block: `nbytes` from its byte `start`, at byte `at` of the block."""

    tensor: int
    start: int
    nbytes: int
    at: int


class Block(NamedTuple):
    """A range of one output file: `nbytes` from byte `offset` of shard `shard`."""

    number: int
    shard: int
    offset: int
    nbytes: int


@dataclass(frozen=True)
class OutputShard:
    """One output file.

    Attributes:
        file: its name.
        specs: its tensors, back to back.
        first: position of its first tensor among all output tensors.
    """

    file: str
    specs: tuple[TensorSpec, ...]
    first: int

    @cached_property
    def header(self) -> bytes:
        """Length and header as they are written, a whole number of pages."""
        return encode_header(self.specs, {"format": "pt"}, align_bytes=PAGE_BYTES)

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate((spec.nbytes for spec in self.specs), initial=len(self.header)))

    @property
    def file_bytes(self) -> int:
        """Size of the file."""
        return self._ends[-1]

    def pieces(self, block: Block) -> Iterator[Piece]:
        """The parts of tensors that lie in `block`, in order."""
        end = block.offset + block.nbytes
        index = max(0, bisect_right(self._ends, block.offset) - 1)
        while index < len(self.specs) and self._ends[index] < end:
            begin = self._ends[index]
            low, high = max(begin, block.offset), min(self._ends[index + 1], end)
            if low < high:
                yield Piece(self.first + index, low - begin, high - low, low - block.offset)
            index += 1


def lay_out(specs: Sequence[TensorSpec], max_shard_bytes: int) -> list[OutputShard]:
    """Fill shards with `specs` in the given order; a shard holds `max_shard_bytes` at most, or one larger tensor."""
    groups: list[list[TensorSpec]] = [[]]
    filled = 0
    for spec in specs:
        if groups[-1] and filled + spec.nbytes > max_shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(spec)
        filled += spec.nbytes
    shards: list[OutputShard] = []
    first = 0
    for number, group in enumerate(groups, start=1):
        file = "model.safetensors" if len(groups) == 1 else f"model-{number:05}-of-{len(groups):05}.safetensors"
        shards.append(OutputShard(file, tuple(sorted(group, key=lambda spec: -spec.dtype.itemsize)), first))
        first += len(group)
    return shards


def blocks_of(shards: Sequence[OutputShard], block_bytes: int) -> list[Block]:
    """All shards cut into blocks that start at multiples of `block_bytes`, in the order in which they are written."""
    cuts = [
        (number, offset, min(block_bytes, shard.file_bytes - offset))
        for number, shard in enumerate(shards)
        for offset in range(0, shard.file_bytes, block_bytes)
    ]
    return [Block(number, *cut) for number, cut in enumerate(cuts)]


def index_json(shards: Sequence[OutputShard]) -> bytes:
    """The index that a sharded checkpoint has beside its files."""
    weight_map = {spec.name: shard.file for shard in shards for spec in shard.specs}
    total = sum(spec.nbytes for shard in shards for spec in shard.specs)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return json.dumps(index, indent=2).encode() + b"\n"
