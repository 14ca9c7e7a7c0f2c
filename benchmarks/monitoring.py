"""What does monitoring a checkpoint against ten low-rank directions cost, next to reading the checkpoint once?

    python -m benchmarks.monitoring --folder DIR [--size 1.5B] [--ranks 1 4 16 64] [--repeats 3] [--directions 10]
        [--samples 0.02 0.01 0.005] [--sampled-only]

A Llama-shaped bfloat16 checkpoint, its base, and directions over every linear layer, made in --folder and removed again.
Times of the exact way are the least of the repeats, with as many threads as the monitor has:

    read        the checkpoint's bytes into reused buffers of 1 MiB, files in the page cache
    read cold   the same after the kernel was told to drop the file from its cache
    update      checkpoint and base read, their difference and its norm: the monitor with no direction's tensors
    monitor     all of it: the directions read, hashed and multiplied too
    monitor cold  the same with checkpoint and base dropped from the cache

`CPU s` is processor time of `monitor`, all threads together, which other work on the machine changes less than the wall
time. `Gflop` is of the products with the directions' factors.

Then samples of the rows (`--sample`), warm, each run after a read of the checkpoint; times are medians of pairs:

    read        as above
    open        the directions opened: their manifests parsed, the payloads' headers read; once a command or a training
    monitor     everything else that the command does, with the directions open
    / read      quartiles of the ratio of monitor to the read before it; and with `open`
    error       root mean square, over directions and --seeds seeds, of estimated cosine less exact cosine; and the same of
                the standard errors that the estimates name
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.synthetic import SIZES, make_checkpoint, make_direction, make_fine_tune
from wsmerge.api.monitoring import MonitorOptions, monitor
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.registry import Direction, open_direction_folder
from wsmerge.steering.similarity.products import inner_products
from wsmerge.steering.similarity.update import BaseBlocks, Update
from wsmerge.steering.similarity.vectors import lay_together

_BLOCK_BYTES: Final = 1 << 20

Figures = NDArray[np.float64]


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where inputs are made, and removed again")
    parser.add_argument("--size", choices=list(SIZES), default="1.5B")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--directions", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--samples", type=float, nargs="*", default=[0.02, 0.01, 0.005])
    parser.add_argument("--seeds", type=int, default=5, help="of samples, for their error")
    parser.add_argument("--sampled-only", action="store_true", help="no times of the exact way")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        base = make_checkpoint(Path(folder) / "base", given.size)
        tuned = make_fine_tune(base, Path(folder) / "checkpoint-100")
        os.sync()  # what is not on the disk yet cannot be dropped from the cache
        made = {rank: _directions(Path(folder), rank, given) for rank in given.ranks}
        if not given.sampled_only:
            reading = _report_reading(base, tuned, given.repeats, given.threads)
            for rank in given.ranks:
                _report_rank(rank, made[rank], reading, given)
        if given.samples:
            _report_samples(Path(folder), made, given)


def _directions(folder: Path, rank: int, given: argparse.Namespace) -> list[Path]:
    return [
        make_direction(folder / f"rank-{rank}-{number}", given.size, rank=rank, seed=number)
        for number in range(given.directions)
    ]


def _report_reading(base: Path, tuned: Path, repeats: int, threads: int) -> tuple[float, float]:
    """Print what reading takes; returns seconds of reading the checkpoint warm and cold."""
    warm = _least(repeats, lambda: _read(tuned, threads))
    cold = _least(repeats, lambda: _read(tuned, threads), before=lambda: _drop(tuned))
    _read(tuned, threads)
    _read(base, threads)
    update = _least(repeats, lambda: _update_norm(base, tuned, threads))
    with Checkpoint(tuned) as checkpoint:
        size = checkpoint.nbytes / 1e9
    print(f"{size:.2f} GB, {threads} threads; read {warm:.3f} s ({size / warm:.1f} GB/s), read cold {cold:.2f} s")
    print(f"update {update:.3f} s = {update / warm:.2f} x read", flush=True)
    head = ("rank", "monitor s", "/ read", "/ cold", "/ update", "cold s", "/ cold", "CPU s", "Gflop", "Gflop/s")
    print("{:>5} {:>10} {:>7} {:>7} {:>9} {:>7} {:>7} {:>7} {:>8} {:>8}".format(*head))
    return warm, cold


def _report_rank(
    rank: int, directions: Sequence[Path], reading: tuple[float, float], given: argparse.Namespace
) -> None:
    folder = directions[0].parent
    base, tuned = folder / "base", folder / "checkpoint-100"
    options = MonitorOptions(threads=given.threads)

    def work() -> None:
        monitor(base, directions, [tuned], options=options)

    def drop() -> None:
        _drop(base)
        _drop(tuned)

    work()  # compiles the kernels and fills the page cache
    spent = _processor_s(work)
    os.sync()
    warm = _least(given.repeats, work)
    cold = _least(given.repeats, work, before=drop)
    with Checkpoint(base) as checkpoint, open_direction_folder(directions[0]) as direction:
        numel = sum(checkpoint.specs[name].numel for name in direction.shapes)
    gflop = 2 * numel * rank * given.directions / 1e9
    update = _least(1, lambda: _update_norm(base, tuned, given.threads))
    print(
        f"{rank:>5} {warm:10.2f} {warm / reading[0]:7.2f} {warm / reading[1]:7.2f} {warm / update:9.2f} {cold:7.2f} "
        f"{cold / reading[1]:7.2f} {spent:7.2f} {gflop:8.0f} {gflop / warm:8.0f}",
        flush=True,
    )


def _report_samples(folder: Path, made: Mapping[int, Sequence[Path]], given: argparse.Namespace) -> None:
    head = ("rank", "sample", "read s", "open s", "monitor s", "/ read", "with open", "error", "named")
    print("{:>5} {:>7} {:>7} {:>7} {:>10} {:>16} {:>10} {:>9} {:>9}".format(*head))
    for rank, paths in made.items():
        with ExitStack() as stack:
            opened = [stack.enter_context(open_direction_folder(path)) for path in paths]
            opening = median(_timed(lambda: _open_and_close(paths)) for _ in range(given.repeats))  # noqa: B023 - called at once
            exact = _cosines(folder, opened, MonitorOptions(threads=given.threads))[0]
            for share in given.samples:
                _report_sample(folder, opened, (rank, share, opening), exact, given)


def _report_sample(
    folder: Path,
    opened: Sequence[Direction],
    case: tuple[int, float, float],
    exact: Figures,
    given: argparse.Namespace,
) -> None:
    rank, share, opening = case
    options = [MonitorOptions(threads=given.threads, sample=share, seed=seed) for seed in range(given.seeds)]
    found = [_cosines(folder, opened, item) for item in options]
    pairs = []
    for _ in range(given.repeats):
        before = _timed(lambda: _read(folder / "checkpoint-100", given.threads))
        pairs.append((before, _timed(lambda: _cosines(folder, opened, options[0]))))
    read, spent = (median(times) for times in zip(*pairs, strict=True))
    low, middle, high = np.quantile([after / before for before, after in pairs], [0.25, 0.5, 0.75])
    error, named = (
        float(np.sqrt(np.mean(np.square(values))))
        for values in ([cosines - exact for cosines, _ in found], [errors for _, errors in found])
    )
    ratios = f"{low:.2f} {middle:.2f} {high:.2f}"
    print(
        f"{rank:>5} {share:>7g} {read:7.3f} {opening:7.3f} {spent:10.3f} {ratios:>16} {(spent + opening) / read:10.2f} "
        f"{error:9.2e} {named:9.2e}",
        flush=True,
    )


def _cosines(folder: Path, directions: Sequence[Direction], options: MonitorOptions) -> tuple[Figures, Figures]:
    """The cosine with each direction, and its standard error: 0 without a sample."""
    report = monitor(folder / "base", directions, [folder / "checkpoint-100"], options=options)
    readings = report.checked[0].readings
    return (
        np.array([reading.value("cosine") for reading in readings]),
        np.array([reading.standard_error("cosine") or 0.0 for reading in readings]),
    )


def _open_and_close(paths: Sequence[Path]) -> None:
    for path in paths:
        open_direction_folder(path).close()


def _read(folder: Path, threads: int) -> None:
    """Read every byte of the tensors by the reader that the monitor has."""
    with Checkpoint(folder) as checkpoint:
        pieces = [
            (name, start, min(spec.nbytes, start + 16 * _BLOCK_BYTES))
            for name, spec in checkpoint.specs.items()
            for start in range(0, spec.nbytes, 16 * _BLOCK_BYTES)
        ]

        def read(mine: Sequence[tuple[str, int, int]]) -> None:
            buffer = memoryview(bytearray(_BLOCK_BYTES))
            for name, first, end in mine:
                for start in range(first, end, _BLOCK_BYTES):
                    checkpoint.read_into(name, start, buffer[: end - start])

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(read, [pieces[number::threads] for number in range(threads)]))


def _update_norm(base: Path, tuned: Path, threads: int) -> None:
    with Checkpoint(base) as checkpoint, Update(tuned, BaseBlocks(checkpoint)) as update:
        gram = inner_products(lay_together([update]), [(0, 0)], threads=threads)
    if not np.sqrt(gram.values.sum()):
        raise SystemExit("the checkpoint does not differ from its base")


def _drop(folder: Path) -> None:
    with (folder / "model.safetensors").open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _processor_s(work: Callable[[], None]) -> float:
    """Processor seconds of `work`, of all threads."""
    begun = os.times()
    work()
    ended = os.times()
    return ended.user - begun.user + ended.system - begun.system


def _timed(work: Callable[[], object]) -> float:
    """Seconds of `work`, without collecting what ran before it left behind."""
    gc.collect()
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _least(repeats: int, work: Callable[[], None], before: Callable[[], None] | None = None) -> float:
    """Seconds of the quickest of some runs of `work`."""
    times = []
    for _ in range(repeats):
        if before is not None:
            before()
        times.append(_timed(work))
    return min(times)


if __name__ == "__main__":
    main()
