"""What a sweep has measured so far, so that a killed one goes on where it stopped.

JSON Lines. The first line has the digest of all that decides a figure; each other line names a point:

    {"sweep": DIGEST}
    {POINT, "figures": {NAME: ...}}                             the point is finished; every item of every figure
    {POINT, "measure": NAME, "answers": ["...", ...], "cut": [2]}  what the model answered, and which were cut, by item
    {POINT, "measure": NAME, "item": 3, "score": 85.0}          what a judge said of one answer, in the judge's own unit
    {POINT, "measure": NAME, "figures": {...}}                  this measure is finished, and the point is not

with `"method": "weights", "strength": -1.0, "split": "test", "layer": null, "only": null` for POINT. A line is on the disk before work
goes on, so a kill loses at most the measure that is being taken, and a judge that fails no answer and no score.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from wsmerge.core.closing import Closing
from wsmerge.core.opening import MAX_ROWS_BYTES, parse_json, read_whole
from wsmerge.errors import OutputError, UsageError
from wsmerge.steering.sweep.items import Split
from wsmerge.steering.sweep.samples import Samples

__all__ = ["JOURNAL_FILE", "Figures", "Journal", "Notes", "PointKey"]

JOURNAL_FILE: Final = "journal.jsonl"

Figures: TypeAlias = dict[str, Samples]
"""By what is added to the measure's name, or by their whole names."""


@dataclass(frozen=True, slots=True)
class PointKey:
    """Which point of a sweep.

    Attributes:
        method: its label; `base` and `fine-tune` for the models that methods are compared with.
        strength: k.
        split: which items.
        layer: the number of a layer that is tried out, or was chosen; results name a chosen one by the method instead.
        only: where one figure alone was measured, since a strength was sought by it, its name.
    """

    method: str
    strength: float
    split: Split
    layer: int | None = None
    only: str | None = None


class Notes:
    """What is known of one measure at a point that is not finished.

    Args:
        write: called with what is to be written down; None to keep it in memory alone.

    Attributes:
        answers: the model's, in the order of the items; None before they are made.
        cut: numbers of the answers that were cut at `max_new_tokens`.
        scores: a judge's, by the item's place.
        figures: by what is added to the measure's name; None before the measure is finished.
    """

    def __init__(self, write: Callable[[dict[str, object]], None] | None = None) -> None:
        self._write = write
        self.answers: list[str] | None = None
        self.cut: list[int] = []
        self.scores: dict[int, float] = {}
        self.figures: Figures | None = None

    def keep_answers(self, answers: Sequence[str], cut: Sequence[int] = ()) -> None:
        """Keep the answers to all items, and the numbers of those that were cut."""
        self._add({"answers": list(answers), "cut": list(cut)})

    def keep_score(self, item: int, score: float) -> None:
        """Keep the score of one answer."""
        self._add({"item": item, "score": score})

    def keep_figures(self, figures: Mapping[str, Samples]) -> None:
        """Keep what the measure came to."""
        self._add({"figures": _figures_json(figures)})

    def take(self, row: Mapping[str, Any]) -> None:
        """Take over what a line says."""
        if "answers" in row:
            self.answers, self.cut = row["answers"], row["cut"]
        elif "score" in row:
            self.scores[row["item"]] = row["score"]
        else:
            self.figures = _figures(row["figures"])

    def _add(self, row: dict[str, object]) -> None:
        if self._write is not None:
            self._write(row)
        self.take(row)


class Journal(Closing):
    """The journal of one output folder: what is there is read, the rest appended. A context manager.

    Args:
        folder: the sweep's folder; made if missing.
        digest: of all that decides a figure.
        restart: begin anew, whatever is there.

    Raises:
        UsageError: another sweep was begun in the folder.
        OutputError: the folder cannot be written, or its journal is damaged.

    Attributes:
        points: the figures of the finished points.
    """

    def __init__(self, folder: Path, digest: str, *, restart: bool = False) -> None:
        self._path = folder / JOURNAL_FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if restart or not self._path.exists():
                self._path.write_bytes(b"")
            lines = self._whole_lines()
            self.points: dict[PointKey, Figures] = {}
            self._notes: dict[tuple[PointKey, str], Notes] = {}
            self._read(lines, digest)
            self._file = self._path.open("ab")
        except OSError as error:
            raise OutputError(f"cannot be written: {error.strerror}", where=str(self._path)) from error
        if not lines:
            self._append({"sweep": digest})

    def add(self, key: PointKey, figures: Figures) -> None:
        """Write down a finished point."""
        self._append({**asdict(key), "figures": _figures_json(figures)})
        self._finish(key, figures)

    def notes(self, key: PointKey, measure: str) -> Notes:
        """What is known of one measure at a point that is not finished."""
        if (key, measure) not in self._notes:
            self._notes[key, measure] = Notes(lambda row: self._append({**asdict(key), "measure": measure, **row}))
        return self._notes[key, measure]

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _whole_lines(self) -> list[bytes]:
        """The lines that were written to their end; what a kill left of another is cut off."""
        data = read_whole(self._path, limit=MAX_ROWS_BYTES)
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(self._path, len(whole))
        return whole.splitlines()

    def _read(self, lines: list[bytes], digest: str) -> None:
        try:
            rows = [parse_json(line) for line in lines]
            if rows and rows[0]["sweep"] != digest:
                raise UsageError(
                    "another sweep was begun here: its file, its items, its directions or its model were others",
                    where=str(self._path),
                    hint="choose another folder, or begin anew with --restart",
                )
            for row in rows[1:]:
                self._take(row)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise OutputError(
                "the journal is damaged", where=str(self._path), hint="begin anew with --restart"
            ) from error

    def _take(self, row: dict[str, Any]) -> None:
        key = PointKey(row["method"], row["strength"], row["split"], row["layer"], row.get("only"))
        if "measure" in row:
            self.notes(key, row["measure"]).take(row)
        else:
            self._finish(key, _figures(row["figures"]))

    def _finish(self, key: PointKey, figures: Figures) -> None:
        self.points[key] = figures
        for known in [one for one in self._notes if one[0] == key]:
            del self._notes[known]

    def _append(self, row: dict[str, object]) -> None:
        try:
            self._file.write(json.dumps(row).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OutputError(f"cannot be written: {error.strerror}", where=str(self._path)) from error


def _figures(fields: Mapping[str, Any]) -> Figures:
    return {name: Samples.from_json(one) for name, one in fields.items()}


def _figures_json(figures: Mapping[str, Samples]) -> dict[str, object]:
    return {name: samples.to_json() for name, samples in figures.items()}
