"""Reading tensors and deltas a few MB at a time: values, comparisons and digests with flat memory."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.digest import ContentRow, content_digest
from wsmerge.core.dtypes import F64, to_float32
from wsmerge.core.tensors import DeltaSource, TensorSpec

__all__ = ["READ_BYTES", "delta_values", "digest_tensors", "has_equal_values", "is_same_delta", "tensor_values"]

READ_BYTES: Final = 8 << 20
_BLOCK_ELEMENTS: Final = 1 << 18

Float64Array = NDArray[np.float64]


class _Tensors(Protocol):
    """What is read from: a `Source`, or one tensor file."""

    @property
    def specs(self) -> Mapping[str, TensorSpec]: ...

    def read_into(self, name: str, start: int, out: memoryview) -> None: ...


def tensor_values(source: _Tensors, name: str, start: int, count: int) -> Float64Array:
    """Elements `start` to `start + count` of a float tensor, row-major, exact in float64; shape (count,).

    Raises:
        CheckpointError: the tensor's dtype holds no float values.
    """
    dtype = source.specs[name].dtype
    bits = _stored(source, name, start, count)
    return bits.astype(np.float64) if dtype is F64 else to_float32(bits, dtype).astype(np.float64)


def has_equal_values(left: _Tensors, left_name: str, right: _Tensors, right_name: str) -> bool:
    """Whether two tensors have one shape and equal elements; reads up to the first block that differs.

    Equal bytes of one dtype are equal, NaN included. Otherwise float tensors are compared by value, whatever their
    dtypes, and others are unequal.
    """
    spec, other = left.specs[left_name], right.specs[right_name]
    if spec.shape != other.shape:
        return False
    comparable = spec.dtype.is_float and other.dtype.is_float
    if spec.dtype is not other.dtype and not comparable:
        return False
    for start in range(0, spec.numel, _BLOCK_ELEMENTS):
        count = min(_BLOCK_ELEMENTS, spec.numel - start)
        if spec.dtype is other.dtype:
            one, two = _stored(left, left_name, start, count), _stored(right, right_name, start, count)
            if one.tobytes() == two.tobytes():
                continue
        if not comparable or not np.array_equal(
            tensor_values(left, left_name, start, count), tensor_values(right, right_name, start, count)
        ):
            return False
    return True


def digest_tensors(source: _Tensors, progress: Callable[[int, int], None] | None = None) -> str:
    """Content digest of all tensors of a checkpoint or adapter (component `weight`); reads every byte.

    Args:
        source: what to read.
        progress: called with bytes read and bytes in all.
    """
    total, done = sum(spec.nbytes for spec in source.specs.values()), 0
    rows: list[ContentRow] = []
    buffer = memoryview(bytearray(READ_BYTES))
    for name, spec in source.specs.items():
        digest = hashlib.sha256()
        for start in range(0, spec.nbytes, READ_BYTES):
            view = buffer[: spec.nbytes - start]
            source.read_into(name, start, view)
            digest.update(view)
            done += len(view)
            if progress is not None:
                progress(done, total)
        rows.append(ContentRow(name, "weight", spec.dtype.name, spec.shape, digest.hexdigest()))
    return content_digest(rows)


def delta_values(source: DeltaSource, name: str, start: int, count: int) -> Float64Array:
    """Elements `start` to `start + count` of a delta, row-major, in float64; shape (count,)."""
    if source.rank(name) is None:
        dense = np.empty(count, np.float32)
        source.read_dense(name, start, dense)
        return dense.astype(np.float64)
    return source.low_rank(name).elements(start, count)


def is_same_delta(source: DeltaSource, first: str, second: str) -> bool:
    """Whether `source` holds the same delta for two names: equal factors, or equal elements.

    Equal products of different factors count as different, as they do in digests.
    """
    shape = source.shapes[first]
    if shape != source.shapes[second] or source.rank(first) != source.rank(second):
        return False
    if source.rank(first) is not None:
        one, two = source.low_rank(first), source.low_rank(second)
        return np.array_equal(one.b, two.b) and np.array_equal(one.a, two.a)
    numel = math.prod(shape)
    blocks = ((start, min(_BLOCK_ELEMENTS, numel - start)) for start in range(0, numel, _BLOCK_ELEMENTS))
    return all(
        np.array_equal(delta_values(source, first, *block), delta_values(source, second, *block)) for block in blocks
    )


def _stored(source: _Tensors, name: str, start: int, count: int) -> NDArray[Any]:
    dtype = source.specs[name].dtype
    data = bytearray(count * dtype.itemsize)
    source.read_into(name, start * dtype.itemsize, memoryview(data))
    return np.frombuffer(data, dtype.storage)
