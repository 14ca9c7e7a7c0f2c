"""How long do mergekit and wsmerge take for the same recipe, and how much memory and disk?

    python -m benchmarks.mergekit_speed [--small] [--recipes ties linear] [--rounds 3] [--folder DIR]

A base and three fine-tunes (0.4 B parameters, bfloat16; with --small 20 M), and two LoRA adapters of rank 32 on all
linear layers. Each recipe runs as a process of its own, `mergekit-yaml` and `python -m wsmerge merge` in turn,
`--rounds` times; the table shows medians of wall time and the highest peak. Before, mergekit's options are tried on one
recipe, and the fastest are used for all. Both sides read from the page cache, and the disk is synced before each run.

Memory is resident memory less file mappings (RssAnon + RssShmem of /proc), sampled every 10 ms.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.synthetic import make_adapter, make_checkpoint, make_fine_tune

BUILT_IN = ("--no-write-model-card", "--no-copy-tokenizer", "--random-seed", "1")
"""Given to mergekit always: there is no tokenizer to copy."""

CANDIDATES: Sequence[tuple[str, ...]] = (
    (),
    ("--lazy-unpickle",),
    ("--low-cpu-memory",),
    ("--async-write",),
    ("--num-threads", str(os.cpu_count())),
    ("--lazy-unpickle", "--low-cpu-memory", "--async-write", "--num-threads", str(os.cpu_count())),
)


class Measured(NamedTuple):
    """One run: wall time in seconds, peak resident memory less file mappings in bytes, files and bytes written."""

    wall_s: float
    peak_bytes: int
    files: int
    written_bytes: int


_NEVER = Measured(math.inf, 0, 0, 0)


def main() -> None:
    """Make the inputs, run both sides and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="inputs of 20 M parameters, to try the benchmark itself")
    parser.add_argument("--recipes", nargs="+", default=None, help="names of recipes; all where left out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", nargs="+", choices=["mergekit", "wsmerge"], default=["mergekit", "wsmerge"])
    parser.add_argument("--folder", type=Path, default=None, help="where inputs and outputs are made")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        work = Path(folder)
        recipes = write_recipes(work, "20M" if arguments.small else "0.4B")
        chosen = arguments.recipes or list(recipes)
        options = best_options(work, recipes["task_arithmetic"]) if "mergekit" in arguments.sides else ()
        if "wsmerge" in arguments.sides:
            for name in chosen:
                run_wsmerge(work, recipes[name])  # compiles the kernels, fills the page cache
        print_head()
        for name in chosen:
            found: dict[str, list[Measured]] = {side: [] for side in arguments.sides}
            for _ in range(arguments.rounds):
                for side, runs in found.items():
                    runs.append(
                        run_mergekit(work, recipes[name], options)
                        if side == "mergekit"
                        else run_wsmerge(work, recipes[name])
                    )
            print_row(name, found)


def write_recipes(work: Path, size: str) -> dict[str, Path]:
    """Make the inputs under `work`, and a file for each recipe."""
    base = make_checkpoint(work / "base", size)
    tuned = [make_fine_tune(base, work / f"tuned{seed}", seed=seed) for seed in (1, 2, 3)]
    adapters = [make_adapter(work / f"adapter{seed}", size, seed=seed) for seed in (1, 2)]
    three = [(model, {"weight": weight, "density": 0.5}) for model, weight in zip(tuned, (0.5, 0.3, 0.2), strict=True)]
    weights = [(model, {"weight": settings["weight"]}) for model, settings in three]
    lora = [(f"{base}+{adapter}", {"weight": weight}) for adapter, weight in zip(adapters, (1.0, -0.5), strict=True)]
    texts: dict[str, dict[str, Any]] = {
        "task_arithmetic": _recipe("task_arithmetic", weights, base_model=base),
        "linear": _recipe("linear", weights),
        "slerp": _recipe("slerp", [(base, {}), (tuned[0], {})], base_model=base, parameters={"t": 0.4}),
        "ties": _recipe("ties", three, base_model=base),
        "dare_ties": _recipe("dare_ties", three, base_model=base),
        "passthrough": _recipe("passthrough", [(tuned[0], {})]),
        "lora": _recipe("task_arithmetic", lora, base_model=base),
    }
    paths = {name: work / f"{name}.yml" for name in texts}
    for name, values in texts.items():
        paths[name].write_text(json.dumps(values))  # JSON is YAML
    return paths


def _recipe(method: str, sources: Sequence[tuple[Path | str, Mapping[str, float]]], **top: Any) -> dict[str, Any]:  # noqa: ANN401 - keys of the recipe
    models = [{"model": str(model), "parameters": dict(parameters)} for model, parameters in sources]
    extra = {key: str(value) if isinstance(value, Path) else value for key, value in top.items()}
    return {"merge_method": method, "models": models, "dtype": "bfloat16", **extra}


def best_options(work: Path, recipe: Path) -> tuple[str, ...]:
    """The fastest of mergekit's candidate options on `recipe`, of two interleaved runs each, with a warm page cache."""
    run_mergekit(work, recipe, ())
    times: dict[tuple[str, ...], Measured] = {}
    for options in [*CANDIDATES, *CANDIDATES]:
        times[options] = min(run_mergekit(work, recipe, options), times.get(options, _NEVER))
    for options, found in times.items():
        print(
            f"mergekit-yaml {' '.join(options) or '(defaults)'}: {found.wall_s:.2f} s, {found.peak_bytes / 1e6:.0f} MB"
        )
    return min(times, key=lambda options: times[options].wall_s)


def run_mergekit(work: Path, recipe: Path, options: Sequence[str]) -> Measured:
    """Run `mergekit-yaml`; adapters are merged into a cache that is empty each time, as in a first run."""
    program = Path(sys.executable).with_name("mergekit-yaml")
    cache = ["--lora-merge-cache", str(work / "scratch/cache")]
    return measure(work, [str(program), str(recipe), str(work / "scratch/out"), *BUILT_IN, *cache, *options])


def run_wsmerge(work: Path, recipe: Path) -> Measured:
    """Run `wsmerge merge`."""
    return measure(work, [sys.executable, "-m", "wsmerge", "merge", str(recipe), str(work / "scratch/out")])


def measure(work: Path, command: Sequence[str]) -> Measured:
    """Run `command`, which writes under `work/scratch` alone; temporary files count too.

    Raises:
        SystemExit: it failed.
    """
    scratch = work / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    (scratch / "tmp").mkdir(parents=True)
    os.sync()
    environment = {**os.environ, "TMPDIR": str(scratch / "tmp"), "HF_HUB_OFFLINE": "1"}
    # An installed package has its bytecode, so a clone shall keep its own.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with (work / "log").open("wb") as log:
        started = time.monotonic()
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)  # noqa: S603 - fixed programs
        peak = 0
        while process.poll() is None:
            peak = max(peak, _resident(process.pid))
            time.sleep(0.01)
        wall_s = time.monotonic() - started
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{(work / 'log').read_text()[-3000:]}")
    files = [path for path in scratch.rglob("*") if path.is_file()]
    return Measured(wall_s, peak, len(files), sum(path.stat().st_size for path in files))


def _resident(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    fields = dict(line.split(":", 1) for line in lines if line.startswith(("RssAnon", "RssShmem")))
    return sum(int(value.split()[0]) * 1024 for value in fields.values())


def print_head() -> None:
    """Print the names of the columns."""
    columns = f"{'median s':>9} {'min s':>7} {'peak MB':>8} {'files':>6} {'MB':>7}"
    print(f"\n{'recipe':16} {'side':9} {columns} {'faster':>7}")


def print_row(name: str, found: Mapping[str, Sequence[Measured]]) -> None:
    """Print a line for each side; the last column is how many times faster wsmerge is."""
    medians = {side: statistics.median(run.wall_s for run in runs) for side, runs in found.items()}
    for side, runs in found.items():
        faster = f"{medians['mergekit'] / medians['wsmerge']:6.1f}x" if side == "wsmerge" and len(medians) == 2 else ""
        print(
            f"{name:16} {side:9} {medians[side]:9.2f} {min(run.wall_s for run in runs):7.2f}"
            f" {max(run.peak_bytes for run in runs) / 1e6:8.0f} {runs[-1].files:6} {runs[-1].written_bytes / 1e6:7.0f} {faster}",
            flush=True,
        )


if __name__ == "__main__":
    main()
