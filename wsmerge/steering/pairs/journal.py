"""What has been made so far, as JSON Lines that are appended and synced: a kill loses at most the line it cuts.

    samples.jsonl              {"of": DIGEST}      what decides the samples: model and settings
                               {"key": "q0/plus/1/4/0b9c2f61", "text": "...", "tokens": 31, "finished": true}
    verdicts-0123abcd.jsonl    {"of": DIGEST}      the samples' digest, and what decides the scores
                               {"key": "q0/plus/1/4/0b9c2f61", "score": 85.0}

A key ends with a digest of question and system prompt, so that an edited one is asked anew and the others are kept. A score
is null where the judge gave none that can be read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from wsmerge.core.closing import Closing
from wsmerge.core.files import make_folder
from wsmerge.core.opening import MAX_ROWS_BYTES, parse_json, read_whole
from wsmerge.errors import OutputError, UsageError

__all__ = ["Journal"]


class Journal(Closing):
    """One such file: what is there is read, the rest appended. A context manager.

    Args:
        path: the file; made if missing.
        digest: of all that decides its rows.

    Attributes:
        rows: by key.

    Raises:
        UsageError: the rows of the file came of something else.
        OutputError: the file cannot be written, or is damaged.
    """

    def __init__(self, path: Path, digest: str) -> None:
        self.path = path
        self.rows: dict[str, dict[str, Any]] = {}
        try:
            make_folder(path.parent)
            begun = self._read(digest)
            self._file = path.open("ab" if begun else "wb")
        except OSError as error:
            raise OutputError(f"cannot be written: {error.strerror}", where=str(path)) from error
        if not begun:
            self._write([{"of": digest}])

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Append rows whose keys are not there yet; they are on the disk afterwards."""
        fresh = [row for row in rows if row["key"] not in self.rows]
        self._write(fresh)
        self.rows |= {row["key"]: row for row in fresh}

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read(self, digest: str) -> bool:
        """Take over the whole lines of the file; what a kill left of another is cut off. False where there are none."""
        data = read_whole(self.path, limit=MAX_ROWS_BYTES) if self.path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        if not whole:
            return False
        try:
            head, *rows = (parse_json(line) for line in whole.splitlines())
            same = head["of"] == digest
            found = {row["key"]: row for row in rows}
        except (ValueError, KeyError, TypeError) as error:
            raise OutputError("is damaged", where=str(self.path), hint="delete it to begin anew") from error
        if not same:
            raise UsageError(
                "came of another model, or of other settings",
                where=str(self.path),
                hint="choose another folder, or delete this file",
            )
        os.truncate(self.path, len(whole))
        self.rows = found
        return True

    def _write(self, rows: Iterable[dict[str, Any]]) -> None:
        try:
            self._file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OutputError(f"cannot be written: {error.strerror}", where=str(self.path)) from error
