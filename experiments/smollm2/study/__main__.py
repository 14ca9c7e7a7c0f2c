"""The study on SmolLM2-135M-Instruct: the paper's experiments from data to figures, in one command.

    python -m experiments.smollm2.study --out study-output [--quick] [--only PART [--seed N]]

Makes the data, trains directions and fine-tunes, monitors, sweeps, and writes `report/` with plots. What is done is
skipped, so the same command goes on after Ctrl-C or a kill. With `--only` and `--seed` parts are done side by side: two
processes with OMP_NUM_THREADS=1 each take less time than one with two threads. `times/` has what each part took.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from platformdirs import user_cache_path

from experiments.smollm2.study.data import DIRECTIONS, write_data
from experiments.smollm2.study.monitoring import monitor_runs
from experiments.smollm2.study.report import TIMES_FOLDER, write_report
from experiments.smollm2.study.settings import FULL, QUICK, Amounts
from experiments.smollm2.study.sweeps import run_sweeps
from experiments.smollm2.study.training import train_directions, train_fine_tunes
from wsmerge.registry import open_registry
from wsmerge.steering.embedded import embedded_model

PARTS: Final = ("directions", "fine-tunes", "monitoring", "sweeps", "report")
BY_SEED: Final = ("directions", "fine-tunes", "sweeps")


def main() -> None:
    """Run the study, or what is left of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("study-output"), help="folder for everything that is made")
    parser.add_argument("--quick", action="store_true", help="a few rows and steps: shows that all parts run")
    parser.add_argument("--only", choices=PARTS, help="one part; those before it must be there")
    parser.add_argument("--seed", type=int, action="append", help="with --only: this seed alone; again for more")
    parser.add_argument("--report", type=Path, help="folder of the report; OUT/report if not given")
    arguments = parser.parse_args()
    amounts = QUICK if arguments.quick else FULL
    if arguments.seed:
        if arguments.only not in BY_SEED:
            parser.error(f"--seed is for --only {', '.join(BY_SEED)}")
        amounts = replace(amounts, seeds=tuple(arguments.seed))
    parts = [arguments.only] if arguments.only else PARTS
    run(arguments.out, amounts, arguments.report or arguments.out / "report", parts)


def run(out: Path, amounts: Amounts, report: Path, parts: Sequence[str]) -> None:
    """Run the parts in turn."""
    base = embedded_model(user_cache_path("wsmerge"), progress=say)
    store = open_registry(out / "store")
    write_data(out / "data", amounts)
    todo: dict[str, Callable[[], None]] = {
        "directions": lambda: train_directions(out, base, store, amounts, say),
        "fine-tunes": lambda: train_fine_tunes(out, base, amounts, say),
        "monitoring": lambda: monitor_runs(out, base, DIRECTIONS, store, amounts, say),
        "sweeps": lambda: run_sweeps(out, base, store, amounts, say),
        "report": lambda: write_report(out, report, amounts),
    }
    for part in parts:
        with timed(out, part):
            todo[part]()
    if "report" in parts:
        say(f"report in {report}")


@contextmanager
def timed(out: Path, part: str) -> Iterator[None]:
    """Write down the seconds that a part takes, of the clock and of all cores, whether it ends or is stopped."""
    clock, processor = time.monotonic(), _processor_seconds()
    try:
        yield
    finally:
        # One file a process, since several may work on one study.
        file = out / TIMES_FOLDER / f"{part}-{time.time_ns()}.json"
        told = {"clock_s": time.monotonic() - clock, "processor_s": _processor_seconds() - processor}
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(told) + "\n", encoding="utf-8")


def _processor_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def say(line: str) -> None:
    """Tell what begins now."""
    print(time.strftime("%H:%M:%S"), line, flush=True)


if __name__ == "__main__":
    main()
