"""Whether a tensor is made of the rows of others, and if so of which: found by making it of row numbers.

A row is what the last axis spans. Stand-ins of the sources, with one column and then with two, hold

    r * columns + j        r: number of the row among all rows of all sources;  j: column

If making the tensor of them gives its own shape with as many columns, holding whole rows, then its rows are the sources'.
Other numbers that are put through as well tell an operation on values, which would change them, from a change of places.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.tensors import TensorSpec
from wsmerge.errors import CheckpointError

__all__ = ["RowMap", "row_map"]

_Make = Callable[[Mapping[str, Callable[[], Any]]], Any]


@dataclass(frozen=True)
class RowMap:
    """Runs of stored bytes that follow each other in the tensor that is made.

    Attributes:
        starts: the byte of the made tensor at which each run begins, ascending from 0.
        sources: the tensor that each run is read from.
        firsts: the byte of that tensor at which the run begins.
    """

    starts: tuple[int, ...]
    sources: tuple[str, ...]
    firsts: tuple[int, ...]

    def pieces(self, start: int, count: int) -> Iterator[tuple[str, int, slice]]:
        """For each piece of the bytes `start` to `start + count`: its tensor, the first byte there, its place among them."""
        done = 0
        run = bisect_right(self.starts, start) - 1
        while done < count:
            at = start + done
            end = self.starts[run + 1] if run + 1 < len(self.starts) else start + count
            size = min(end, start + count) - at
            yield self.sources[run], self.firsts[run] + at - self.starts[run], slice(done, done + size)
            done += size
            run += 1


def row_map(sources: Mapping[str, TensorSpec], made: TensorSpec, make: _Make) -> RowMap | None:
    """Which rows of `sources` the tensor `made` consists of, None where it does not consist of whole rows.

    Args:
        sources: the tensors that it is made of.
        made: the name, dtype and shape that result.
        make: makes it of torch tensors, given as functions that return them.
    """
    columns = made.shape[-1] if made.shape else 0
    if not columns or any(spec.shape[-1:] != (columns,) or spec.dtype != made.dtype for spec in sources.values()):
        return None
    try:
        rows = _rows(sources, made, make)
    except (CheckpointError, ValueError):
        return None
    if rows is None:
        return None
    names = list(sources)
    bounds = np.cumsum([0, *(prod(spec.shape[:-1]) for spec in sources.values())])
    owners = np.searchsorted(bounds, rows, side="right") - 1
    starts = np.flatnonzero(np.r_[True, (np.diff(rows) != 1) | (np.diff(owners) != 0)])
    nbytes = columns * made.dtype.itemsize
    return RowMap(
        starts=tuple((starts * nbytes).tolist()),
        sources=tuple(names[owner] for owner in owners[starts].tolist()),
        firsts=tuple(((rows[starts] - bounds[owners[starts]]) * nbytes).tolist()),
    )


def _rows(sources: Mapping[str, TensorSpec], made: TensorSpec, make: _Make) -> NDArray[np.int64] | None:
    one = _put_through(sources, made, make, columns=1, scale=1)
    two = _put_through(sources, made, make, columns=2, scale=1)
    other = _put_through(sources, made, make, columns=1, scale=-3)
    if one is None or two is None or other is None:
        return None
    rows = one[:, 0]
    total = sum(prod(spec.shape[:-1]) for spec in sources.values())
    is_moved = np.array_equal(two, rows[:, None] * 2 + [0, 1]) and np.array_equal(other, one * -3)
    return rows if is_moved and rows.size and rows.min() >= 0 and rows.max() < total else None


def _put_through(
    sources: Mapping[str, TensorSpec], made: TensorSpec, make: _Make, *, columns: int, scale: int
) -> NDArray[np.int64] | None:
    import torch  # noqa: PLC0415 - slow to load; only a converted tensor needs it

    stand_ins: dict[str, Callable[[], Any]] = {}
    first = 0
    for name, spec in sources.items():
        shape = (*spec.shape[:-1], columns)
        stand_in = (torch.arange(first, first + prod(shape)) * scale).reshape(shape)
        stand_ins[name] = partial(torch.clone, stand_in)
        first += prod(shape)
    found = make(stand_ins)
    if found is None or tuple(found.shape) != (*made.shape[:-1], columns) or found.dtype != torch.int64:
        return None
    return np.asarray(found.contiguous()).reshape(-1, columns)
