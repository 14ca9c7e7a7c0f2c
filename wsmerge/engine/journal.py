"""What a merge has written so far, so that a killed one goes on where it stopped.

One JSON line a block, in block order: the SHA-256 of the block's file up to and including it, and the moments
and the NaN of its pieces. On resuming, the written blocks are read again and believed only as far as the digests agree; a file that a power
cut left with holes is found that way.

OUT.partial has a name that anybody can foresee, also in a folder that others may write to. So each line carries an HMAC
under a key that only the user can read (`wsmerge/journal.key` in the user's folder for state, made at the first merge):
a line that another user wrote is not believed.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import platformdirs

from wsmerge.core.files import create_synced
from wsmerge.core.opening import MAX_ROWS_BYTES, parse_json, read_whole
from wsmerge.engine.arithmetic import Moments
from wsmerge.engine.hashing import BaseHasher
from wsmerge.engine.layout import Block
from wsmerge.engine.non_finite import NonFinite
from wsmerge.engine.plan import MergePlan
from wsmerge.engine.sink import ShardFiles, output_failure

__all__ = ["JOURNAL_FILE", "Journal", "JournalLine", "is_journal", "is_resumable"]

JOURNAL_FILE: Final = "journal.jsonl"
_HEAD_START: Final = b'{"plan": "'
_KEY_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class JournalLine:
    """One finished block."""

    block: int
    sha256: str
    moments: Mapping[int, Moments]
    non_finite: Mapping[int, NonFinite]


class Journal:
    """The journal of one output folder: replays what is there, then appends."""

    def __init__(self, folder: Path, plan: MergePlan) -> None:
        self._path = folder / JOURNAL_FILE
        self._plan = plan
        self._hash = hashlib.sha256()
        self._shard = 0
        self.blocks_done = 0
        self.shard_digests: dict[str, str] = {}
        self._key = _journal_key() or secrets.token_bytes(_KEY_BYTES)  # else nobody can go on with it
        self._lines = _read_lines(self._path, plan.digest, self._key)
        # The old lines stay until they are replayed: a merge that is killed while it resumes loses nothing.
        self._fresh = folder / f"{JOURNAL_FILE}.new"
        try:
            self._fresh.unlink(missing_ok=True)
            self._file = self._fresh.open("x", encoding="utf-8")
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
            self.append(block, memoryview(data), line.moments, line.non_finite)
            yield line

    def append(
        self,
        block: Block,
        data: memoryview,
        moments: Mapping[int, Moments],
        non_finite: Mapping[int, NonFinite],
    ) -> None:
        """Note that `block` was written with `data`; blocks come in order."""
        running = self._running(block)
        running.update(data)
        digest = running.hexdigest()
        self._write(
            {
                "block": block.number,
                "sha256": digest,
                "moments": {str(tensor): values.tolist() for tensor, values in moments.items()},
                "non_finite": {str(tensor): counts.to_list() for tensor, counts in non_finite.items()},
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
            signed = {**line, "mac": _mac(self._key, self._plan.digest, line)}
            self._file.write(json.dumps(signed) + "\n")
            self._file.flush()
        except OSError as error:
            raise output_failure(error, self._path) from error


def is_journal(path: Path) -> bool:
    """Whether a merge, of whatever plan, wrote the file at `path`, or began to."""
    try:
        head, ended, _ = read_whole(path, limit=MAX_ROWS_BYTES).partition(b"\n")
    except OSError:
        return False
    if not ended:  # killed while it wrote the first line; a power cut may leave zeros
        head = head.rstrip(b"\0")
        return _HEAD_START.startswith(head[: len(_HEAD_START)])
    fields = _parse(head)
    return fields is not None and "plan" in fields


def is_resumable(folder: Path, plan: MergePlan) -> bool:
    """Whether `folder` holds the beginning of this very merge, and nothing that another user or a link put there."""
    key = _journal_key()
    if key is None or not all(map(_is_own_file, folder.rglob("*"))):
        return False
    return bool(_read_lines(folder / JOURNAL_FILE, plan.digest, key))


def _read_lines(path: Path, plan_digest: str, key: bytes) -> list[JournalLine]:
    try:
        data = read_whole(path, limit=MAX_ROWS_BYTES)
    except OSError:
        return []
    # A power cut can leave anything in a file; what this user's merge did not write ends the journal.
    head, *rest = data.split(b"\n")
    if _signed(head, plan_digest, key) != {"plan": plan_digest}:
        return []
    lines: list[JournalLine] = []
    for text in rest:
        fields = _signed(text, plan_digest, key)
        if fields is None or "block" not in fields:
            break  # the line that was being written when the merge was killed; what follows it, if anything, is garbage
        moments = {int(tensor): np.array(values) for tensor, values in fields["moments"].items()}
        non_finite = {int(tensor): NonFinite(*counts) for tensor, counts in fields["non_finite"].items()}
        lines.append(JournalLine(fields["block"], fields["sha256"], moments, non_finite))
    return lines


def _signed(text: bytes, plan_digest: str, key: bytes) -> dict[str, Any] | None:
    """The fields of a line that was written under `key` for this plan."""
    fields = _parse(text)
    mac = fields.pop("mac", None) if fields is not None else None
    if fields is None or not isinstance(mac, str) or not mac.isascii():
        return None
    return fields if hmac.compare_digest(mac, _mac(key, plan_digest, fields)) else None


def _mac(key: bytes, plan_digest: str, line: Mapping[str, Any]) -> str:
    return hmac.new(key, f"{plan_digest} {json.dumps(line, sort_keys=True)}".encode(), "sha256").hexdigest()


def _parse(text: bytes) -> dict[str, Any] | None:
    try:
        fields = parse_json(text)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) else None


def _journal_key() -> bytes | None:
    """The user's secret, made where there is none; None where it cannot be kept, or others can read it."""
    path = platformdirs.user_state_path("wsmerge") / "journal.key"
    with contextlib.suppress(OSError):
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
            create_synced(fresh, secrets.token_bytes(_KEY_BYTES), mode=0o600)
            try:
                path.hardlink_to(fresh)  # whole or not there; where another process was first, its key is the key
            finally:
                fresh.unlink()
    with contextlib.suppress(OSError):
        status = path.stat()
        if status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            key = read_whole(path)
            return key if len(key) == _KEY_BYTES else None
    return None


def _is_own_file(path: Path) -> bool:
    """Whether nothing but this user's merge put `path` into its folder: no link, by whatever name, no other owner."""
    status = path.lstat()
    if status.st_uid != os.geteuid():
        return False
    return stat.S_ISDIR(status.st_mode) or (stat.S_ISREG(status.st_mode) and status.st_nlink == 1)


def _rehash_inputs(plan: MergePlan, block: Block, base_hasher: BaseHasher) -> None:
    for piece in plan.shards[block.shard].pieces(block):
        tensor = plan.tensors[piece.tensor]
        first = piece.start // tensor.spec.dtype.itemsize
        count = piece.nbytes // tensor.spec.dtype.itemsize
        stored = tensor.step.inputs[0].tensor
        data = bytearray(count * tensor.held.itemsize)
        stored.read_into(first * tensor.held.itemsize, memoryview(data))
        base_hasher.update(piece.tensor, memoryview(data))
