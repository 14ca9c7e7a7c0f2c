"""What changed between two directions: fields of the manifest, tensors, and for each how far the deltas point apart.

cosine = <left, right> / (|left| |right|), norm ratio = |right| / |left|, both over float64 sums. Pairs of low-rank deltas
are compared by their factors, without a dense matrix; others by blocks of rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from wsmerge.registry.direction import Direction
from wsmerge.registry.records import TensorRecord

__all__ = ["Difference", "FieldChange", "TensorChange", "compare_directions"]

_BLOCK_ELEMENTS: Final = 1 << 20
# Computed from the tensors, or shown as tensors.
_NOT_COMPARED: Final = {"tensors", "norm", "layers", "modules"}


@dataclass(frozen=True, slots=True)
class FieldChange:
    """A field of the manifest, with its JSON values; None where it is absent."""

    field: str
    left: Any
    right: Any


@dataclass(frozen=True, slots=True)
class TensorChange:
    """A tensor whose delta is not stored by the same bytes.

    Attributes:
        cosine: of the two deltas; NaN where shapes differ or one of them is zero.
        norm_ratio: right norm over left norm; NaN where the left one is zero.
    """

    name: str
    cosine: float
    norm_ratio: float
    left_shape: tuple[int, ...]
    right_shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """What changed from one direction to another; tensors by name, sorted."""

    left: str
    right: str
    fields: tuple[FieldChange, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[TensorChange, ...]
    unchanged: int

    @property
    def same_tensors(self) -> bool:
        """Whether the content digests are equal."""
        return not (self.added or self.removed or self.changed)


def compare_directions(left: Direction, right: Direction) -> Difference:
    """What changed from `left` to `right`."""
    before = {row.name: row for row in left.manifest.tensors}
    after = {row.name: row for row in right.manifest.tensors}
    shared = sorted(set(before) & set(after))
    changed = [name for name in shared if not _same_bytes(before[name], after[name])]
    return Difference(
        left=left.label,
        right=right.label,
        fields=tuple(_changed_fields(left.manifest.fields(), right.manifest.fields())),
        added=tuple(sorted(set(after) - set(before))),
        removed=tuple(sorted(set(before) - set(after))),
        changed=tuple(_change(left, right, before[name], after[name]) for name in changed),
        unchanged=len(shared) - len(changed),
    )


def _same_bytes(left: TensorRecord, right: TensorRecord) -> bool:
    return left.shape == right.shape and list(left.content_rows()) == list(right.content_rows())


def _changed_fields(left: Mapping[str, Any], right: Mapping[str, Any]) -> Iterator[FieldChange]:
    """Fields that differ; those of an object one by one, as `base.model`."""
    for key in sorted((set(left) | set(right)) - _NOT_COMPARED):
        old, new = left.get(key), right.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            for change in _changed_fields(old, new):
                yield FieldChange(f"{key}.{change.field}", change.left, change.right)
        elif old != new:
            yield FieldChange(key, old, new)


def _change(left: Direction, right: Direction, before: TensorRecord, after: TensorRecord) -> TensorChange:
    ratio = after.norm / before.norm if before.norm else math.nan
    cosine = math.nan
    if before.shape == after.shape and before.norm and after.norm:
        # Rounding may end a hair outside.
        cosine = max(-1.0, min(1.0, _inner(left, right, before.name) / (before.norm * after.norm)))
    return TensorChange(before.name, cosine, ratio, before.shape, after.shape)


def _inner(left: Direction, right: Direction, name: str) -> float:
    if left.rank(name) is not None and right.rank(name) is not None:
        return left.low_rank(name).inner(right.low_rank(name))
    blocks = zip(_blocks(left, name), _blocks(right, name), strict=True)
    return sum(float(first @ second) for first, second in blocks)


def _blocks(direction: Direction, name: str) -> Iterator[NDArray[np.float64]]:
    """The elements of a delta in order, a whole number of rows (of the first dimension) a block."""
    shape = direction.shapes[name]
    rows = shape[0] if shape else 1
    width = math.prod(shape[1:])
    step = max(1, _BLOCK_ELEMENTS // max(1, width))
    factors = direction.low_rank(name) if direction.rank(name) is not None else None
    for row in range(0, rows, step):
        count = min(step, rows - row)
        if factors is not None:
            block = factors.b[row : row + count].astype(np.float64) @ factors.a.astype(np.float64)
            yield block.ravel()
        else:
            out = np.empty(count * width, np.float32)
            direction.read_dense(name, row * width, out)
            yield out.astype(np.float64)
