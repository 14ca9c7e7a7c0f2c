"""Does a merge's memory stay flat, and under what its plan states?

    python -m benchmarks.memory [--sizes 0.1B 1.5B] [--folder DIR]

Merges two rank-32 directions into Llama-shaped checkpoints of several sizes, each in a process of its own, and samples
that process' resident memory less file mappings (RssAnon + RssShmem of /proc) every 5 ms.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.synthetic import SIZES, make_checkpoint, make_direction


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["0.1B", "1.5B"])
    parser.add_argument("--folder", type=Path, default=None, help="where inputs and outputs are made")
    arguments = parser.parse_args()
    print(f"{'size':>6} {'input MB':>9} {'peak MB':>8} {'stated MB':>9} {'wall s':>7}")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for size in arguments.sizes:
            found = measure(size, Path(folder))
            print(
                f"{size:>6} {found.input_bytes / 1e6:9.0f} {found.peak_bytes / 1e6:8.0f} {found.stated_bytes / 1e6:9.0f}"
                f" {found.wall_s:7.2f}",
                flush=True,
            )


class Measured(NamedTuple):
    """One merge: bytes of the base, peak resident memory less file mappings, what the plan stated, wall time."""

    input_bytes: int
    peak_bytes: int
    stated_bytes: int
    wall_s: float


def measure(size: str, folder: Path) -> Measured:
    """Make a base of `size` and two directions in `folder`, and merge them in a process of its own."""
    base = make_checkpoint(folder / size, size)
    directions = [make_direction(folder / f"{size}-direction-{seed}", size, seed=seed) for seed in (1, 2)]
    recipe = folder / f"{size}.yml"
    entries = [{"direction": str(item), "weight": weight} for item, weight in zip(directions, (1.5, -0.5), strict=True)]
    recipe.write_text(json.dumps({"base_model": str(base), "directions": entries}))
    wsmerge = [sys.executable, "-m", "wsmerge"]
    plan = subprocess.run([*wsmerge, "plan", str(recipe), "--json"], check=True, capture_output=True)  # noqa: S603
    stated = json.loads(plan.stdout)["peak_bytes"]
    merge = [*wsmerge, "merge", str(recipe), str(folder / f"{size}-out")]
    _peak_of(merge)  # the first run compiles the kernels and fills the page cache
    peak_bytes, wall_s = _peak_of([*merge, "--overwrite"])
    return Measured((base / "model.safetensors").stat().st_size, peak_bytes, stated, wall_s)


def _peak_of(command: list[str]) -> tuple[int, float]:
    """Peak resident memory less file mappings, in bytes, and wall time, in seconds, of `command`."""
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
    peak = 0
    while process.poll() is None:
        peak = max(peak, _resident(process.pid))
        time.sleep(0.005)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return peak, time.monotonic() - started


def _resident(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    fields = dict(line.split(":", 1) for line in lines if line.startswith(("RssAnon", "RssShmem")))
    return sum(int(value.split()[0]) * 1024 for value in fields.values())


if __name__ == "__main__":
    main()
