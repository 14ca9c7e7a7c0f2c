"""What do the two payloads of a direction cost: bytes, files, and seconds to write and to read?

    python -m benchmarks.payloads [--size 0.1B] [--repeats 5] [--codecs auto pcodec] [--folder DIR]

Directions over the linear layers of a Llama-shaped model, all in float32:

    low-rank    factors of rank 32
    dense       normal values
    bf16        differences of two bfloat16 checkpoints
    sparse      of normal values the largest fifth; the others are exactly 0, as TIES leaves them

Times are medians, with the files in the page cache. `layer` reads the tensors of one layer after opening the artifact.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.synthetic import SIZES, make_direction, shapes_of
from wsmerge.core.deltas import LowRankDelta
from wsmerge.core.digest import structure_digest
from wsmerge.core.dtypes import BF16, from_float32, to_float32
from wsmerge.core.tensors import BaseIdentity
from wsmerge.registry import About, Direction, open_direction_folder, write_direction
from wsmerge.registry.convert import convert_direction, payload_bytes
from wsmerge.registry.payloads import Codec, check_codec, payload_files

KINDS: Final = ("low-rank", "dense", "bf16", "sparse")
_COLUMNS: Final = ("direction", "payload", "MB", "ratio", "files", "write s", "open s", "read s", "layer s")
_SAMPLE: Final = 1 << 20


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="0.1B")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--codecs", nargs="+", type=check_codec, default=["auto"], help="of the zarr payload")
    parser.add_argument("--folder", type=Path, default=None, help="where inputs and outputs are made")
    arguments = parser.parse_args()
    print("{:<10} {:<12} {:>8} {:>6} {:>6} {:>8} {:>8} {:>8} {:>8}".format(*_COLUMNS))
    for kind in KINDS:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            measure(kind, arguments.size, Path(folder), arguments.repeats, arguments.codecs)


def measure(kind: str, size: str, folder: Path, repeats: int, codecs: list[Codec]) -> None:
    """Write one direction in every form, and print a line for each."""
    plain = folder / "safetensors"
    seconds = _seconds(lambda: _write(kind, size, plain))
    whole = _report(kind, "safetensors", plain, seconds, repeats, None)
    for codec in codecs:
        target = folder / f"zarr-{codec}"
        with open_direction_folder(plain) as direction:
            seconds = _seconds(lambda: convert_direction(direction, target, "zarr", codec=codec).close())  # noqa: B023 - runs at once
        _report(kind, f"zarr {codec}", target, seconds, repeats, whole)


def _write(kind: str, size: str, folder: Path) -> None:
    if kind == "low-rank":
        make_direction(folder, size)
    else:
        write_direction(folder, _DenseDirection(kind, size), About(name=kind, kind="task_vector")).close()


def _report(kind: str, payload: str, folder: Path, write_s: float, repeats: int, whole: int | None) -> int:
    with open_direction_folder(folder) as direction:
        held, files = payload_bytes(direction.files), len(payload_files(direction.files))
    times = [
        statistics.median(_seconds(lambda: _read(folder, wanted)) for _ in range(repeats))  # noqa: B023 - runs at once
        for wanted in (_nothing, _everything, _one_layer)
    ]
    print(
        f"{kind:<10} {payload:<12} {held / 1e6:8.1f} {(whole or held) / held:6.2f} {files:6} {write_s:8.2f} "
        f"{times[0]:8.4f} {times[1]:8.3f} {times[2]:8.4f}",
        flush=True,
    )
    return held


def _read(folder: Path, wanted: Callable[[str], bool]) -> None:
    with open_direction_folder(folder) as direction:
        for name in direction.shapes:
            if wanted(name):
                _read_tensor(direction, name)


def _read_tensor(direction: Direction, name: str) -> None:
    if direction.rank(name) is not None:
        direction.low_rank(name)
        return
    count = math.prod(direction.shapes[name])
    block = np.empty(1 << 18, np.float32)
    for start in range(0, count, block.size):
        direction.read_dense(name, start, block[: count - start])


def _nothing(_name: str) -> bool:
    return False


def _everything(_name: str) -> bool:
    return True


def _one_layer(name: str) -> bool:
    return ".layers.3." in name


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


class _DenseDirection:
    """A dense direction over every linear layer; no two tensors are alike."""

    def __init__(self, kind: str, size: str) -> None:
        shapes = shapes_of(size)
        self.label, self.digest = kind, ""
        self.base = BaseIdentity(f"synthetic-{size}", structure_digest(shapes.items()), "0" * 64, {})
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: shape for name, shape in shapes.items() if name.endswith("_proj.weight")
        }
        self._numbers = {name: number for number, name in enumerate(self.shapes)}
        self._ranks: Mapping[str, int] = {}  # every delta is dense
        self._sample = _values(kind)

    def rank(self, name: str) -> int | None:
        return self._ranks.get(name)

    def low_rank(self, name: str) -> LowRankDelta:
        raise NotImplementedError

    def read_dense(self, name: str, start: int, out: NDArray[np.float32]) -> None:
        places = np.arange(start + 7919 * self._numbers[name], start + 7919 * self._numbers[name] + out.size)
        np.take(self._sample, places, mode="wrap", out=out)


def _values(kind: str) -> NDArray[np.float32]:
    generator = np.random.default_rng(0)
    values = generator.standard_normal(_SAMPLE).astype(np.float32) * np.float32(0.001)
    if kind == "sparse":
        return np.where(np.abs(values) >= np.quantile(np.abs(values), 0.8), values, 0).astype(np.float32)
    if kind == "bf16":
        weights = generator.standard_normal(_SAMPLE).astype(np.float32) * np.float32(0.02)
        tuned, base = (to_float32(from_float32(item, BF16), BF16) for item in (weights + values, weights))
        return tuned - base
    return values


if __name__ == "__main__":
    main()
