"""Every fine-tune's checkpoints against every direction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import wsmerge
from experiments.smollm2.study.settings import Amounts
from experiments.smollm2.study.training import Say, direction_name, fine_tune_names
from wsmerge.api.monitoring import MonitorOptions
from wsmerge.registry import Registry

__all__ = ["MONITOR_FILE", "monitor_runs"]

MONITOR_FILE: Final = "monitor.json"
CONTROLS: Final = ("formality", "caution")
"""Bundled directions of style, trained with other settings."""


def monitor_runs(out: Path, base: Path, directions: Path, store: Registry, amounts: Amounts, say: Say) -> None:
    """Write the readings of every checkpoint against the directions of each seed: one row a checkpoint and direction."""
    file = out / MONITOR_FILE
    if file.exists():
        return
    runs = [
        (name, seed)
        for seed in amounts.seeds
        for name in fine_tune_names(amounts, seed)
        if not name.startswith("joint")
    ]
    folders = {str(out / "runs" / name): (name, seed) for name, seed in runs}
    rows: list[dict[str, Any]] = []
    for seed in amounts.seeds:
        say(f"monitoring with the directions of seed {seed}")
        options = MonitorOptions(
            controls=[
                direction_name("sycophancy", seed),
                direction_name("refusal", seed),
                *(directions / name for name in CONTROLS),
            ]
        )
        report = wsmerge.monitor(base, [direction_name("contrary", seed)], list(folders), options=options, store=store)
        for row in report.rows():
            if row["scope"] in {"all", "without embeddings"}:
                run, run_seed = folders[str(Path(row["checkpoint"]).parent)]
                rows.append({**row, "checkpoint": run, "run_seed": run_seed, "direction_seed": seed})
    file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
