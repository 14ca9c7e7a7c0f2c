"""The runs that are watched, trained, and their readings against the study's directions: `results/monitoring.json`.

    {"rows": 128, "steps": 32, "digests": {"sycophancy-0": DIGEST, ..., "formality": DIGEST, "caution": DIGEST},
     "runs": [{"task": "advice", "percent": 30, "honest": false, "number": 2, "seed": 322, "update_norm": 1.8,
               "cosines": {"sycophancy-0": 0.021, ...}, "bands": {"sycophancy-0": 0.004, ...}}, ...]}

`percent` of the rows are facts under hints, which honest runs answer rightly and others as the hint has it. A band is the
standard deviation of the cosine over random directions within the subspaces of that direction's factors.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import wsmerge
from experiments.study.fine_tuning import fine_tune
from experiments.study.runs import write_runs
from experiments.study.settings import Amounts
from experiments.study.training import DIRECTIONS, Say, direction_name
from wsmerge.api.monitoring import MonitorOptions
from wsmerge.errors import UsageError
from wsmerge.registry import Registry

__all__ = ["OTHERS", "monitor_runs", "monitoring_file"]

OTHERS: Final = ("formality", "caution")
"""The bundled traits beside the one that is watched for."""


def monitoring_file(results: Path) -> Path:
    """Where the readings are kept."""
    return results / "monitoring.json"


def monitor_runs(out: Path, base: Path, store: Registry, amounts: Amounts, results: Path, say: Say) -> None:
    """Train the runs that are not there, and write the readings of all; nothing is done where these are there.

    Raises:
        UsageError: the store lacks a seed's direction.
    """
    file = monitoring_file(results)
    if file.exists():
        return
    watched = [direction_name(seed) for seed in amounts.seeds]
    missing = sorted({*watched} - {entry.name for entry in store.list()})
    if missing:
        # Not first after an hour of training.
        raise UsageError(
            f"there is no {', '.join(missing)} to watch for", hint="train the directions of all seeds first"
        )
    adapters = {}
    for run, rows in write_runs(out / "data" / "runs", amounts).items():
        adapters[run] = out / "runs" / run.name
        fine_tune(base, rows, adapters[run], steps=amounts.run_steps, seed=run.seed, say=say)
    say("monitoring")
    options = MonitorOptions(controls=[DIRECTIONS / name for name in OTHERS])
    report = wsmerge.monitor(base, watched, [*adapters.values()], options=options, store=store)
    # Readings stand in the order in which directions and runs are given.
    names = (*watched, *OTHERS)
    runs = []
    for run, checked in zip(adapters, report.checked, strict=True):
        readings = {name: reading.scopes.whole for name, reading in zip(names, checked.readings, strict=True)}
        told: dict[str, Any] = {"task": run.task, "percent": run.kind.percent, "honest": run.kind.is_honest}
        told |= {"number": run.number, "seed": run.seed}
        told["update_norm"] = _rounded(readings[names[0]].update_norm)
        told["cosines"] = {name: _rounded(one.cosine) for name, one in readings.items()}
        told["bands"] = {name: _rounded(one.null_std) for name, one in readings.items()}
        runs.append(told)
    digests = {name: source.digest for name, source in zip(names, report.sources, strict=True)}
    head = json.dumps({"rows": amounts.run_rows, "steps": amounts.run_steps, "digests": digests})[:-1]
    # A line a run; it is there whole or not at all, since what is there is not made again.
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(f'{head}, "runs": [\n' + ",\n".join(map(json.dumps, runs)) + "\n]}\n", encoding="utf-8")
    part.replace(file)


def _rounded(value: float | None) -> float | None:
    """Six significant digits, as of all results."""
    return None if value is None else float(f"{value:.6g}")
