"""The study on SmolLM2-135M-Instruct: the paper's experiments from data to figures, in one command.

    python -m experiments.smollm2.study --out study-output [--quick]

Makes the data, trains directions and fine-tunes, sweeps, monitors, and writes `report/` with plots. What is done is
skipped, so the same command goes on after Ctrl-C or a kill. `times.json` adds up what each part took.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from platformdirs import user_cache_path

from experiments.smollm2.study.data import DIRECTIONS, write_data
from experiments.smollm2.study.monitoring import monitor_runs
from experiments.smollm2.study.report import write_report
from experiments.smollm2.study.settings import FULL, QUICK, Amounts
from experiments.smollm2.study.sweeps import run_sweeps
from experiments.smollm2.study.training import train_directions, train_fine_tunes
from wsmerge.registry import open_registry
from wsmerge.steering.embedded import embedded_model


def main() -> None:
    """Run the study, or what is left of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("study-output"), help="folder for everything that is made")
    parser.add_argument("--quick", action="store_true", help="a few rows and steps: shows that all parts run")
    parser.add_argument("--report", type=Path, help="folder of the report; OUT/report if not given")
    arguments = parser.parse_args()
    run(arguments.out, QUICK if arguments.quick else FULL, arguments.report or arguments.out / "report")


def run(out: Path, amounts: Amounts, report: Path) -> None:
    """Run every part in turn."""
    base = embedded_model(user_cache_path("wsmerge"), progress=say)
    store = open_registry(out / "store")
    write_data(out / "data", amounts)
    with timed(out, "training of directions"):
        train_directions(out, base, store, amounts, say)
    with timed(out, "training of fine-tunes"):
        train_fine_tunes(out, base, amounts, say)
    with timed(out, "monitoring"):
        monitor_runs(out, base, DIRECTIONS, store, amounts, say)
    with timed(out, "sweeps"):
        run_sweeps(out, base, store, amounts, say)
    write_report(out, report, amounts)
    say(f"report in {report}")


@contextmanager
def timed(out: Path, part: str) -> Iterator[None]:
    """Add the seconds that a part takes, of the clock and of all cores, to `times.json`, whether it ends or is stopped."""
    clock, processor = time.monotonic(), _processor_seconds()
    try:
        yield
    finally:
        file = out / "times.json"
        times = json.loads(file.read_bytes()) if file.exists() else {}
        before = times.get(part, {"clock_s": 0.0, "processor_s": 0.0})
        times[part] = {
            "clock_s": before["clock_s"] + time.monotonic() - clock,
            "processor_s": before["processor_s"] + _processor_seconds() - processor,
        }
        file.write_text(json.dumps(times, indent=1) + "\n", encoding="utf-8")


def _processor_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def say(line: str) -> None:
    """Tell what begins now."""
    print(time.strftime("%H:%M:%S"), line, flush=True)


if __name__ == "__main__":
    main()
