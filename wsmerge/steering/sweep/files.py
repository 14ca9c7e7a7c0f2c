"""A sweep's results as files: `sweep.json` with everything, `sweep.csv` with a row a figure, and plots."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from wsmerge.errors import OutputError
from wsmerge.steering.bootstrap import Interval
from wsmerge.steering.sweep.results import Point, SweepResult

__all__ = ["CSV_FILE", "JSON_FILE", "results_json", "write_results"]

JSON_FILE: Final = "sweep.json"
CSV_FILE: Final = "sweep.csv"
_COLUMNS: Final = (
    "method", "k", "kl_aimed_at", "layer", "split", "figure", "role", "value", "low", "high",
    "change", "change_low", "change_high",
)  # fmt: skip


def write_results(result: SweepResult, out: Path, *, plots: bool = True) -> list[Path]:
    """Write the results into the folder `out`, with plots where they are wanted and matplotlib is installed; return what was written.

    Raises:
        OutputError: the file system refuses.
    """
    try:
        (out / JSON_FILE).write_text(
            json.dumps(results_json(result), indent=1, allow_nan=False) + "\n", encoding="utf-8"
        )
        with (out / CSV_FILE).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(_COLUMNS)
            writer.writerows(row for point in result.points for row in _rows(point, result.layers))
        written = [out / JSON_FILE, out / CSV_FILE]
        if plots and importlib.util.find_spec("matplotlib") is not None:
            from wsmerge.steering.sweep.plots import write_plots  # noqa: PLC0415 - an extra

            written += write_plots(result, out)
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror}", where=str(out)) from error
    return written


def results_json(result: SweepResult) -> dict[str, Any]:
    """The results as JSON has them; what is not finite is null."""
    return {
        "settings": result.config.model_dump(mode="json", by_alias=True, exclude_none=True),
        "target": result.config.target,
        "reference": result.reference,
        "picks": [
            {**asdict(picked), "change": None if picked.change is None else _edges(picked.change)}
            for picked in result.picks
        ],
        "unmeasured": {method: list(left) for method in result.methods if (left := result.unmeasured(method))},
        "layers": dict(result.layers),
        "notes": list(result.notes),
        "compared_on": result.shown,
        "comparisons": [{**asdict(one), "difference": _edges(one.difference)} for one in result.comparisons],
        "points": [
            {
                "method": point.key.method,
                "k": point.key.strength,
                **({"kl_aimed_at": list(point.aimed)} if point.aimed else {}),
                "split": point.key.split,
                "figures": {
                    name: {
                        "role": figure.role,
                        "kind": figure.kind,
                        **_edges(figure.value),
                        "change": _edges(figure.change),
                    }
                    for name, figure in point.figures.items()
                },
            }
            for point in result.points
        ],
    }


def _edges(interval: Interval) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in asdict(interval).items()}


def _rows(point: Point, layers: Mapping[str, int]) -> Iterator[tuple[object, ...]]:
    key = point.key
    for name, figure in point.figures.items():
        value, change = figure.value, figure.change
        yield (
            key.method, key.strength, " ".join(map(str, point.aimed)), layers.get(key.method, ""), key.split, name,
            figure.role, value.value, value.low, value.high, change.value, change.low, change.high,
        )  # fmt: skip
