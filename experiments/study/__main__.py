"""The study on SmolLM2-135M-Instruct, second edition, in one command; `PLAN.md` says what is done and why.

    python -m experiments.study --out study-output [--quick] [--only PART [--seed N]]

Trains directions, sweeps, and gathers what came of it in `results/`, from which `report/` is written. What is done is
skipped, so the same command goes on after Ctrl-C or a kill; a sweep whose result lies in `results/` is not run again, and the
repository has those of the run that its report tells of. With `--only` and `--seed` parts are done side by side: two processes
with OMP_NUM_THREADS=1 each take less time than one with two threads.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Final

from platformdirs import user_cache_path

from experiments.study.monitoring import monitor_runs
from experiments.study.parts import PARTS_SEEDS, parts_seeds, run_parts
from experiments.study.repair import run_repair
from experiments.study.report import write_report
from experiments.study.results import RESULTS, gather
from experiments.study.settings import FULL, QUICK, Amounts
from experiments.study.sweeps import run_sweeps
from experiments.study.training import train_directions
from wsmerge.registry import open_registry
from wsmerge.steering.embedded import embedded_model

PARTS: Final = ("directions", "sweeps", "repair", "monitoring", "parts", "report")
BY_SEED: Final = ("directions", "sweeps", "repair", "parts")


def main() -> None:
    """Run the study, or what is left of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("study-output"), help="folder for everything that is made")
    parser.add_argument("--quick", action="store_true", help="a few rows and steps: shows that all parts run")
    parser.add_argument("--only", choices=PARTS, help="one part; those before it must be there")
    parser.add_argument("--seed", type=int, action="append", help="with --only: this seed alone; again for more")
    parser.add_argument("--results", type=Path, help=f"folder of the results; {RESULTS} or, if quick, OUT/results")
    parser.add_argument("--report", type=Path, help="folder of the report; beside the results if not given")
    arguments = parser.parse_args()
    amounts = QUICK if arguments.quick else FULL
    if arguments.seed:
        if arguments.only not in BY_SEED:
            parser.error(f"--seed is for --only {', '.join(BY_SEED)}")
        amounts = replace(amounts, seeds=tuple(arguments.seed))
        if arguments.only == "parts" and parts_seeds(amounts) != amounts.seeds:
            parser.error(f"parts are of the seeds {', '.join(map(str, PARTS_SEEDS))}")
    results = arguments.results or (arguments.out / "results" if arguments.quick else RESULTS)
    parts = [arguments.only] if arguments.only else PARTS
    run(arguments.out, amounts, results, arguments.report or results.parent / "report", parts)


def run(out: Path, amounts: Amounts, results: Path, report: Path, parts: Sequence[str]) -> None:
    """Run the parts in turn."""
    base = embedded_model(user_cache_path("wsmerge"), progress=say)
    store = open_registry(out / "store")

    def sweep() -> None:
        for name, seed in run_sweeps(out, base, store, amounts, results, say):
            gather(out, name, seed, results)

    todo: dict[str, Callable[[], None]] = {
        "directions": lambda: train_directions(out, base, store, amounts, say),
        "sweeps": sweep,
        "repair": lambda: run_repair(out, base, store, amounts, results, say),
        "monitoring": lambda: monitor_runs(out, base, store, amounts, results, say),
        "parts": lambda: run_parts(out, base, store, amounts, results, say),
        "report": lambda: write_report(results, report, amounts),
    }
    for part in parts:
        # Writing the page is no part of the budget that the page tells.
        with nullcontext() if part == "report" else timed(results, part):
            todo[part]()
    if "report" in parts:
        say(f"report in {report}")


@contextmanager
def timed(results: Path, part: str) -> Iterator[None]:
    """Write down the seconds that a part takes, of the clock and of all cores, whether it ends or is stopped."""
    clock, processor = time.monotonic(), _processor_seconds()
    try:
        yield
    finally:
        # One file a process, since several may work on one study.
        file = results / "times" / f"{part}-{time.time_ns()}.json"
        told = {"clock_s": time.monotonic() - clock, "processor_s": _processor_seconds() - processor}
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(told) + "\n", encoding="utf-8")


def _processor_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def say(line: str) -> None:
    """Tell what begins now."""
    print(time.strftime("%H:%M:%S"), line, flush=True)


if __name__ == "__main__":
    main()
