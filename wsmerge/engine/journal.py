"""What a merge has written so far, so that a killed one goes on where it stopped.

One JSON line a block, in block order: the SHA-256 of the block's file up to and including it, and the moments of its
pieces. On resuming, the written blocks are read again and believed only as far as the digests agree; a file that a power
cut left with holes is found that way.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from wsmerge.engine.arithmetic import Moments
from wsmerge.engine.hashing import BaseHasher
from wsmerge.engine.layout import Block
from wsmerge.engine.plan import MergePlan
from wsmerge.engine.sink import ShardFiles, output_failure

__all__ = ["JOURNAL_FILE", "Journal", "JournalLine", "is_journal", "is_resumable"]

JOURNAL_FILE: Final = "journal.jsonl"


@dataclass(frozen=True, slots=True)
class JournalLine:
    """One finished block."""

    block: int
    sha256: str
    moments: Mapping[int, Moments]


class Journal:
    """The journal of one output folder: replays what is there, then appends."""

    def __init__(self, folder: Path, plan: MergePlan) -> None:
        self._path = folder / JOURNAL_FILE
        self._plan = plan
        self._hash = hashlib.sha256()
        self._shard = 0
        self.blocks_done = 0
        self.shard_digests: dict[str, str] = {}
        self._lines = _read_lines(self._path, plan.digest)
        # The old lines stay until they are replayed: a merge that is killed while it resumes loses nothing.
        self._fresh = folder / f"{JOURNAL_FILE}.new"
        try:
            self._file = self._fresh.open("w", encoding="utf-8")
        except OSError as error:
            raise output_failure(error, self._fresh) from error
        self._write({"plan": plan.digest})

    def replay(
        self, plan: MergePlan, files: ShardFiles, blocks: Sequence[Block], base_hasher: BaseHasher
    ) -> Iterator[JournalLine]:
        """The blocks of an earlier run that are still what it wrote; stops at the first that is not."""
        yield from self._replayed(plan, files, blocks, base_hasher)
        self._fresh.replace(self._path)

    def _replayed(
        self, plan: MergePlan, files: ShardFiles, blocks: Sequence[Block], base_hasher: BaseHasher
    ) -> Iterator[JournalLine]:
        hash_base = plan.is_steering
        for line, block in zip(self._lines, blocks, strict=False):
            data = files.read(block)
            running = self._running(block).copy()
            running.update(data)
            if line.block != block.number or running.hexdigest() != line.sha256:
                return
            if hash_base:
                _rehash_inputs(plan, block, base_hasher)
            self.append(block, memoryview(data), line.moments)
            yield line

    def append(self, block: Block, data: memoryview, moments: Mapping[int, Moments]) -> None:
        """Note that `block` was written with `data`; blocks come in order."""
        running = self._running(block)
        running.update(data)
        digest = running.hexdigest()
        self._write(
            {
                "block": block.number,
                "sha256": digest,
                "moments": {str(tensor): values.tolist() for tensor, values in moments.items()},
            }
        )
        self.blocks_done = block.number + 1
        self.shard_digests[self._plan.shards[block.shard].file] = digest

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _running(self, block: Block) -> Any:  # noqa: ANN401 - hashlib's type has no public name
        if block.shard != self._shard:
            self._shard = block.shard
            self._hash = hashlib.sha256()
        return self._hash

    def _write(self, line: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError as error:
            raise output_failure(error, self._path) from error


def is_journal(path: Path) -> bool:
    """Whether a merge, of whatever plan, wrote the file at `path`."""
    if not path.is_file():
        return False
    head = _parse(path.read_bytes().partition(b"\n")[0].decode("utf-8", errors="replace"))
    return head is not None and set(head) == {"plan"}


def is_resumable(folder: Path, plan: MergePlan) -> bool:
    """Whether `folder` holds the beginning of this very merge."""
    return bool(_read_lines(folder / JOURNAL_FILE, plan.digest))


def _read_lines(path: Path, plan_digest: str) -> list[JournalLine]:
    if not path.exists():
        return []
    # A power cut can leave anything in a file; what does not read as a line ends the journal.
    head, *rest = path.read_bytes().decode("utf-8", errors="replace").split("\n")
    if _parse(head) != {"plan": plan_digest}:
        return []
    lines: list[JournalLine] = []
    for text in rest:
        fields = _parse(text)
        if fields is None or fields.keys() != {"block", "sha256", "moments"}:
            break  # the line that was being written when the merge was killed; what follows it, if anything, is garbage
        moments = {int(tensor): np.array(values) for tensor, values in fields["moments"].items()}
        lines.append(JournalLine(fields["block"], fields["sha256"], moments))
    return lines


def _parse(text: str) -> dict[str, Any] | None:
    try:
        fields = json.loads(text)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) else None


def _rehash_inputs(plan: MergePlan, block: Block, base_hasher: BaseHasher) -> None:
    for piece in plan.shards[block.shard].pieces(block):
        tensor = plan.tensors[piece.tensor]
        first = piece.start // tensor.spec.dtype.itemsize
        count = piece.nbytes // tensor.spec.dtype.itemsize
        stored = tensor.step.inputs[0].tensor
        data = bytearray(count * tensor.held.itemsize)
        stored.read_into(first * tensor.held.itemsize, memoryview(data))
        base_hasher.update(piece.tensor, memoryview(data))
