"""Merges killed at every step on the disk, in a process of their own; run as `python -m tests.engine.killed_merges FOLDER HOW`.

Prints one JSON document: for each death what stood at OUT, and what the same merge made of it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from tests.kills import kills
from tests.sources import random_direction
from wsmerge.engine import output
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.engine.merge import MergeJob, run_merge
from wsmerge.engine.plan import PlannedDirection, PlanOptions, plan_steering
from wsmerge.engine.sidecars import OutputFiles


def merge(folder: Path, k: float, *, overwrite: bool) -> int:
    with Checkpoint(folder / "base") as checkpoint:
        direction = random_direction({name: spec.shape for name, spec in checkpoint.specs.items()}, rank=2)
        planned = [PlannedDirection(direction, dict.fromkeys(direction.shapes, k))]
        plan = plan_steering(checkpoint, planned, options=PlanOptions(block_bytes=1 << 20, threads=1))
        job = MergeJob(folder / "out", {}, "acme/base", OutputFiles(plan.base.path), overwrite=overwrite)
        return run_merge(plan, job).resumed_bytes


def standing(folder: Path) -> str | None:
    weights = folder / "out" / "model.safetensors"
    return hashlib.sha256(weights.read_bytes()).hexdigest() if weights.exists() else None


def outcomes(folder: Path, how: str) -> list[dict[str, Any]]:
    overwrite = how != "new"
    if how == "renames":
        setattr(output, "exchange", lambda _one, _other: False)  # noqa: B010 - its name is not exported there
    merge(folder, -1.0, overwrite=True)
    old = standing(folder)
    shutil.rmtree(folder / "out")
    found: list[dict[str, Any]] = []

    def prepare() -> None:
        shutil.rmtree(folder / "out", ignore_errors=True)
        if overwrite:
            merge(folder, -1.0, overwrite=True)

    prepare()
    for _ in kills(lambda: merge(folder, 0.5, overwrite=overwrite), more=((output, "exchange"),)):
        left = standing(folder)
        resumed = 0
        if left in (None, old) or overwrite:
            resumed = merge(folder, 0.5, overwrite=overwrite)
        found.append({"left": "old" if left == old else left, "after": standing(folder), "resumed": resumed})
        found[-1]["beside"] = sorted(path.name for path in folder.iterdir() if path.name not in ("base", "out"))
        found[-1]["mode"] = oct((folder / "out").stat().st_mode & 0o777)
        prepare()
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(outcomes(Path(sys.argv[1]), sys.argv[2])))
