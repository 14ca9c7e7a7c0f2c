"""Evaluation files: what a sweep found of one version of a direction, to lie beside it.

`evaluations/NAME.json` names the version by its digest, so that it says which bytes were measured wherever it goes:

    {"schema": "wsmerge.evaluation/v1", "name": ..., "version_digest": ..., "direction": "sycophancy@1.0.0",
     "base": ..., "k": -2.0, "results": {"sycophancy": 0.31, "sycophancy at k = 0": 0.62, ...}}

Results are of the test items, at the strength that was picked on validation and at k = 0. The file of a direction that was
given as a folder is written there; of any other, whose artifact never changes, into the sweep's folder.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wsmerge.errors import OutputError
from wsmerge.registry import Direction
from wsmerge.registry.evaluations import EVALUATION_SCHEMA, EVALUATIONS_FOLDER
from wsmerge.steering.sweep.results import Picked, SweepResult

__all__ = ["write_evaluations"]


def write_evaluations(result: SweepResult, name: str, directions: Mapping[str, Direction], out: Path) -> list[Path]:
    """Write an evaluation file for every direction that a method uses alone; return their paths.

    Args:
        result: the sweep.
        name: of the evaluation, and of each file.
        directions: by the references that the sweep file has.
        out: the sweep's folder.

    Raises:
        OutputError: the file system refuses.
    """
    written = []
    picks = {picked.method: picked for picked in result.picks}
    for method in result.config.methods:
        weights = list((method.weights or {}).items())
        if len(weights) != 1 or weights[0][1] != 1.0:
            continue
        reference = weights[0][0]
        direction = directions[reference]
        beside = reference.startswith(("./", "../", "/", "~")) and direction.files.folder is not None
        folder = direction.path if beside else out / EVALUATIONS_FOLDER / direction.label.replace("/", "--")
        path = folder / EVALUATIONS_FOLDER / f"{name}.json" if beside else folder / f"{name}.json"
        fields = _fields(result, name, direction, picks[method.name])
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(fields, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot be written: {error.strerror}", where=str(path)) from error
        written.append(path)
    return written


def _fields(result: SweepResult, name: str, direction: Direction, picked: Picked) -> dict[str, Any]:
    return {
        "schema": EVALUATION_SCHEMA,
        "name": name,
        "version_digest": direction.digest,
        "direction": direction.manifest.label,
        "base": direction.manifest.base.model,
        "k": picked.strength,
        "results": {
            **_results(result, picked.method, picked.strength, ""),
            **_results(result, picked.method, 0.0, " at k = 0"),
        },
    }


def _results(result: SweepResult, method: str, strength: float, suffix: str) -> dict[str, float]:
    point = result.point(method, strength, "test")
    figures = point.figures if point is not None else {}
    return {
        f"{name}{suffix}": figure.value.value for name, figure in figures.items() if math.isfinite(figure.value.value)
    }
