"""Writing the safetensors payload of a direction, in one pass and with flat memory.

Dense deltas go through one buffer of a few MB; of a low-rank delta the two factors are held, never their product.
Digests, norms (sums of squares in float64) and the check for NaN and infinity are taken on the bytes as they go out.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.deltas import LowRankDelta
from wsmerge.core.dtypes import F32
from wsmerge.core.tensor_file import encode_header
from wsmerge.core.tensors import DeltaSource, TensorSpec
from wsmerge.errors import DirectionError, NonFiniteError, Problems
from wsmerge.registry.payloads.adapter_config import adapter_config
from wsmerge.registry.payloads.keys import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    INDEX_FILE,
    NATIVE_FILE,
    component_keys,
)
from wsmerge.registry.payloads.payload import BLOCK_BYTES
from wsmerge.registry.records import BaseRecord, ComponentRecord, Layout, TensorRecord, adapter_obstacle, factor_shapes

__all__ = ["MAX_SHARD_BYTES", "write_payload"]

MAX_SHARD_BYTES: Final = 5_000_000_000
_UNHASHED: Final = "0" * 64


def write_payload(
    folder: Path,
    source: DeltaSource,
    base: BaseRecord,
    layouts: Mapping[str, Layout],
    *,
    modules: Mapping[str, str | None] = MappingProxyType({}),
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> tuple[TensorRecord, ...]:
    """Write the deltas of `source` into the existing `folder` and return their rows, sorted by name.

    Args:
        folder: where the files go; they are flushed, not synced.
        source: the deltas; each is read once, in the order of names.
        base: for `adapter_config.json`, and for which tensors are tied.
        layouts: orientation of the factors of low-rank deltas; `linear` where a name is absent.
        modules: what PEFT adapts for low-rank deltas; see `TensorRecord.module`.
        max_shard_bytes: above this the native payload is sharded; a tensor is never split, nor an adapter.

    Raises:
        DirectionError: no deltas, or shapes, ranks or layouts that do not go together.
        NonFiniteError: naming every tensor that holds NaN or infinity.
    """
    rows = _plan(source, layouts, modules)
    adapter = adapter_obstacle(rows, base) is None
    shards = [rows] if adapter else _shards(rows, max_shard_bytes)
    problems = Problems()
    written: dict[str, list[TensorRecord]] = {}
    for number, shard in enumerate(shards, 1):
        file = ADAPTER_FILE if adapter else _shard_name(number, len(shards))
        written[file] = _write_shard(folder / file, source, shard, problems, adapter=adapter)
    problems.raise_if_any(NonFiniteError, "deltas are not finite", where=source.label, hint="the fine-tune diverged")
    if adapter:
        _write_json(folder / ADAPTER_CONFIG_FILE, adapter_config(rows, base))
    elif len(shards) > 1:
        _write_json(folder / INDEX_FILE, _index(written))
    return tuple(row for shard in written.values() for row in shard)


def _plan(source: DeltaSource, layouts: Mapping[str, Layout], modules: Mapping[str, str | None]) -> list[TensorRecord]:
    """Rows with everything but digests and norms, which writing fills in."""
    problems = Problems()
    rows = []
    for name, shape in sorted(source.shapes.items()):
        rank = source.rank(name)
        if rank is None:
            rows.append(_row(name, tuple(shape), {"delta": tuple(shape)}))
        elif rank < 1 or len(shape) != 2:
            problems.add(f"{name}: factors of rank {rank} for a delta of shape {list(shape)}")
        else:
            layout = layouts.get(name, "linear")
            factored = {"rank": rank, "layout": layout} | ({"module": modules[name]} if name in modules else {})
            rows.append(_row(name, tuple(shape), factor_shapes(shape, rank, layout), factored))
    for name in sorted(set(layouts) - set(source.shapes)):
        problems.add(f"{name}: has a layout and no delta")
    if not source.shapes:
        problems.add("there is not one delta")
    problems.raise_if_any(DirectionError, "cannot be written as a direction", where=source.label)
    return rows


def _row(
    name: str,
    shape: tuple[int, ...],
    parts: Mapping[str, tuple[int, ...]],
    factored: Mapping[str, Any] = MappingProxyType({}),
) -> TensorRecord:
    components = [
        {"component": part, "dtype": F32.name, "shape": part_shape, "sha256": _UNHASHED}
        for part, part_shape in parts.items()
    ]
    return TensorRecord.model_validate(
        {
            "name": name,
            "representation": "low_rank" if factored else "dense",
            "shape": shape,
            "norm": 0.0,
            "components": tuple(components),
            **factored,
        }
    )


def _shards(rows: Iterable[TensorRecord], max_shard_bytes: int) -> list[list[TensorRecord]]:
    shards: list[list[TensorRecord]] = [[]]
    filled = 0
    for row in rows:
        size = sum(F32.itemsize * math.prod(part.shape) for part in row.components)
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(row)
        filled += size
    return shards


def _shard_name(number: int, count: int) -> str:
    return NATIVE_FILE if count == 1 else f"direction-{number:05}-of-{count:05}.safetensors"


def _write_shard(
    path: Path, source: DeltaSource, rows: Sequence[TensorRecord], problems: Problems, *, adapter: bool
) -> list[TensorRecord]:
    specs = [TensorSpec(key, F32, part.shape) for key, _, part in component_keys(rows, adapter=adapter)]
    with path.open("xb") as file:
        file.write(encode_header(specs, {"format": "pt"}))
        return [_write_row(file, source, row, problems) for row in rows]


@dataclass(slots=True)
class _Written:
    """What is known of one array once it is out: its digest, sum of squares, and whether all of it is finite."""

    sha256: str
    square_sum: float
    finite: bool


def _write_row(file: IO[bytes], source: DeltaSource, row: TensorRecord, problems: Problems) -> TensorRecord:
    if row.low_rank:
        factors = _factors_as_stored(source, row)
        written = [_write_array(file, [factors[part.component]]) for part in row.components]
        norm = _norm_of_factors(factors) if all(array.finite for array in written) else 0.0
    else:
        written = [_write_array(file, _dense_blocks(source, row))]
        norm = math.sqrt(written[0].square_sum) if written[0].finite else 0.0
    if not all(array.finite for array in written):
        problems.add(f"{row.name}: holds NaN or infinity")
    parts = [
        part.model_copy(update={"sha256": array.sha256}) for part, array in zip(row.components, written, strict=True)
    ]
    return row.model_copy(update={"norm": norm, "components": tuple[ComponentRecord, ...](parts)})


def _factors_as_stored(source: DeltaSource, row: TensorRecord) -> dict[str, NDArray[np.float32]]:
    """`lora_A` and `lora_B` in PEFT's orientation, rounded once to float32."""
    delta = source.low_rank(row.name)
    if (delta.shape, delta.rank) != (row.shape, row.rank):
        raise DirectionError(
            f"factors make {list(delta.shape)} of rank {delta.rank}; {list(row.shape)} of rank {row.rank} was announced",
            where=f"{source.label}: {row.name}",
        )
    if row.layout != "linear":
        delta = delta.transposed()
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is refused by name
        return {
            "lora_A": np.ascontiguousarray(delta.a, np.float32),
            "lora_B": np.ascontiguousarray(delta.b, np.float32),
        }


def _norm_of_factors(factors: Mapping[str, NDArray[np.float32]]) -> float:
    return LowRankDelta(factors["lora_B"], factors["lora_A"]).norm()


def _dense_blocks(source: DeltaSource, row: TensorRecord) -> Iterator[NDArray[np.float32]]:
    count = math.prod(row.shape)
    buffer = np.empty(min(count, BLOCK_BYTES // F32.itemsize), np.float32)
    for start in range(0, count, max(1, buffer.size)):
        block = buffer[: count - start]
        source.read_dense(row.name, start, block)
        yield block


def _write_array(file: IO[bytes], blocks: Iterable[NDArray[np.float32]]) -> _Written:
    digest = hashlib.sha256()
    square_sum = 0.0
    finite = True
    for block in blocks:
        values = block.astype(F32.storage, copy=False)  # little-endian, as both the file and the digest want it
        digest.update(values.data)
        file.write(values.data)
        flat = values.ravel().astype(np.float64)
        finite = finite and bool(np.isfinite(flat).all())
        square_sum += float(flat @ flat)
    return _Written(digest.hexdigest(), square_sum, finite)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    # Insertion order is kept: PEFT tries patterns in the order of the file.
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _index(written: Mapping[str, Sequence[TensorRecord]]) -> dict[str, Any]:
    weight_map = {key: file for file, rows in written.items() for key, _, _ in component_keys(rows, adapter=False)}
    total = sum(F32.itemsize * math.prod(p.shape) for rows in written.values() for row in rows for p in row.components)
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
