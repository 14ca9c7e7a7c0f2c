"""What a sweep has measured so far, so that a killed one goes on where it stopped.

JSON Lines. The first line has the digest of all that decides a figure; each other line is one finished point, with every
item of every figure. A line is on the disk before the next point begins, so a kill loses at most one point.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from wsmerge.core.closing import Closing
from wsmerge.errors import OutputError, UsageError
from wsmerge.steering.sweep.items import Split
from wsmerge.steering.sweep.samples import Samples

__all__ = ["JOURNAL_FILE", "Journal", "PointKey"]

JOURNAL_FILE: Final = "journal.jsonl"


@dataclass(frozen=True, slots=True)
class PointKey:
    """Which point of a sweep.

    Attributes:
        method: its label; `base` and `fine-tune` for the models that methods are compared with.
        strength: k.
        split: which items.
        layer: of a layer that is tried out, its number.
    """

    method: str
    strength: float
    split: Split
    layer: int | None = None


class Journal(Closing):
    """The journal of one output folder: what is there is read, the rest appended. A context manager.

    Args:
        folder: the sweep's folder; made if missing.
        digest: of all that decides a figure.
        restart: begin anew, whatever is there.

    Raises:
        UsageError: another sweep was begun in the folder.
        OutputError: the folder cannot be written, or its journal is damaged.
    """

    def __init__(self, folder: Path, digest: str, *, restart: bool = False) -> None:
        self._path = folder / JOURNAL_FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if restart or not self._path.exists():
                self._path.write_bytes(b"")
            lines = self._whole_lines()
            self.points = self._points(lines, digest)
            self._file = self._path.open("ab")
        except OSError as error:
            raise OutputError(f"cannot be written: {error.strerror}", where=str(self._path)) from error
        if not lines:
            self._append({"sweep": digest})

    def add(self, key: PointKey, figures: dict[str, Samples]) -> None:
        """Write down a finished point."""
        self._append({**asdict(key), "figures": {name: samples.to_json() for name, samples in figures.items()}})
        self.points[key] = figures

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _whole_lines(self) -> list[bytes]:
        """The lines that were written to their end; what a kill left of another is cut off."""
        data = self._path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(self._path, len(whole))
        return whole.splitlines()

    def _points(self, lines: list[bytes], digest: str) -> dict[PointKey, dict[str, Samples]]:
        try:
            rows = [json.loads(line) for line in lines]
            if rows and rows[0]["sweep"] != digest:
                raise UsageError(
                    "another sweep was begun here: its file, its items, its directions or its model were others",
                    where=str(self._path),
                    hint="choose another folder, or begin anew with --restart",
                )
            return {
                PointKey(row["method"], row["strength"], row["split"], row["layer"]): {
                    name: Samples.from_json(fields) for name, fields in row["figures"].items()
                }
                for row in rows[1:]
            }
        except (ValueError, KeyError, TypeError) as error:
            raise OutputError(
                "the journal is damaged", where=str(self._path), hint="begin anew with --restart"
            ) from error

    def _append(self, row: dict[str, object]) -> None:
        try:
            self._file.write(json.dumps(row).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OutputError(f"cannot be written: {error.strerror}", where=str(self._path)) from error
