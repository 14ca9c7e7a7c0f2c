"""A tensor whose rows along the vocabulary axis come from other tensors, read by range.

    out[r] = donors[source[r]][row[r]]                     where source[r] >= 0
             0                                             where source[r] is ZERO
             round(sum of the owners' rows / owners)       where source[r] is AVERAGE, rounding after every operation
             mean of out[0 : named]                        where source[r] is PADDING, as torch.mean gives it

`out` has shape (outer, rows, width): the dimensions before the vocabulary axis, the axis, and those after it. Rows are
first brought to one dtype: the recipe's, else the one that all donors promote to, as in mergekit.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.dtypes import BF16, F64, DType, from_float32, to_float32
from wsmerge.core.tensors import StoredName, TensorInput, TensorSpec

__all__ = ["AVERAGE", "PADDING", "ZERO", "RowMap", "RowsInput"]

Bits = NDArray[Any]

ZERO: Final = -1
AVERAGE: Final = -2
PADDING: Final = -3
_BLOCK_ELEMENTS: Final = 1 << 16
# A mean in slabs of columns has the bits of the whole one where slabs begin where torch's vectors do, and none is narrow.
_SLAB_UNIT: Final = 64
_SLAB_ELEMENTS: Final = 1 << 24


@dataclass(frozen=True, slots=True)
class RowMap:
    """Where each row of a tensor comes from.

    Attributes:
        source: donor of each row, or ZERO, AVERAGE or PADDING; int16, shape (rows,). Padding rows come last.
        row: row of the donor; int64, shape (rows,); not read where there is no donor.
        averages: the owners of each averaged row, as (donor, row), in the order of summing.
    """

    source: NDArray[np.int16]
    row: NDArray[np.int64]
    averages: Mapping[int, tuple[tuple[int, int], ...]]

    @property
    def named(self) -> int:
        """Number of rows before the padding, over which its mean is taken."""
        return int(np.count_nonzero(self.source != PADDING))


class RowsInput:
    """Implements `TensorInput` over rows of other tensors, which differ in nothing but dtype and number of rows.

    Args:
        own: the tensor that this one stands for; it gives label and name.
        donors: the tensors that rows come from.
        rows: where each row comes from.
        dtype: of the result, to which donors' values are rounded before anything else.
        axis: the vocabulary axis.
    """

    def __init__(
        self,
        own: TensorInput,
        donors: Sequence[TensorInput],
        rows: RowMap,
        *,
        dtype: DType,
        axis: int = 0,
    ) -> None:
        shape = own.spec.shape
        self._label = own.label
        self._made_of = tuple(part for tensor in (own, *donors) for part in tensor.made_of)
        self._spec = TensorSpec(own.spec.name, dtype, (*shape[:axis], len(rows.source), *shape[axis + 1 :]))
        self._donors, self._rows, self._axis = tuple(donors), rows, axis
        self._outer, self._width = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
        self._starts = _run_starts(rows)
        self._ends = np.append(self._starts[1:], len(rows.source))
        self._lock = threading.Lock()
        self._padding: Bits | None = None

    @property
    def label(self) -> str:
        """The label of the tensor that this one stands for."""
        return self._label

    @property
    def spec(self) -> TensorSpec:
        """Name, dtype and shape."""
        return self._spec

    @property
    def made_of(self) -> tuple[StoredName, ...]:
        """The tensor that it stands for, and those that rows come from."""
        return self._made_of

    def read_into(self, start: int, out: memoryview) -> None:
        """Fill `out` with the bytes from byte `start` on; both are multiples of the element size."""
        dtype = self._spec.dtype
        target: Bits = np.frombuffer(out, dtype.storage)
        first, block = start // dtype.itemsize, len(self._rows.source) * self._width
        done = 0
        while done < target.size:
            outer, begin = divmod(first + done, block)
            count = min(block - begin, target.size - done)
            self._fill(outer, begin, target[done : done + count])
            done += count

    def _fill(self, outer: int, begin: int, target: Bits) -> None:
        """Write elements `begin`, `begin + 1`, ... of block `outer`, one run of rows at a time."""
        end, width = begin + target.size, self._width
        run = int(np.searchsorted(self._starts, begin // width, "right")) - 1
        at = begin
        while at < end:
            stop = min(int(self._ends[run]) * width, end)
            self._fill_run(int(self._starts[run]), outer, at, target[at - begin : stop - begin])
            at, run = stop, run + 1

    def _fill_run(self, first_row: int, outer: int, at: int, target: Bits) -> None:
        """Write elements of one run, which begins at row `first_row`; `at` is the first element in the block."""
        source, within = int(self._rows.source[first_row]), at - first_row * self._width
        if source >= 0:
            self._copy(source, outer, int(self._rows.row[first_row]) * self._width + within, target)
        elif source == ZERO:
            target[:] = 0
        elif source == AVERAGE:
            self._average(self._rows.averages[first_row], outer, within, target)
        else:
            target[:] = self._padding_rows()[outer][(at + np.arange(target.size)) % self._width]

    def _copy(self, donor: int, outer: int, begin: int, target: Bits) -> None:
        """Write elements of a donor, `begin` counted within its block `outer`, in the result's dtype."""
        tensor = self._donors[donor]
        stored, dtype = tensor.spec.dtype, self._spec.dtype
        first = outer * tensor.spec.shape[self._axis] * self._width + begin
        if stored is dtype:
            tensor.read_into(first * stored.itemsize, target.data.cast("B"))
            return
        for done in range(0, target.size, _BLOCK_ELEMENTS):
            part = target[done : done + _BLOCK_ELEMENTS]
            held = np.empty(part.size, stored.storage)
            tensor.read_into((first + done) * stored.itemsize, held.data.cast("B"))
            part[:] = _converted(held, stored, dtype)

    def _average(self, owners: Sequence[tuple[int, int]], outer: int, within: int, target: Bits) -> None:
        """Write the owners' average as mergekit takes it: summed from zero, divided, rounded after each operation."""
        dtype = self._spec.dtype
        total: Bits = np.zeros(target.size, dtype.storage)
        held = np.empty(target.size, dtype.storage)
        for donor, row in owners:
            self._copy(donor, outer, row * self._width + within, held)
            total = _rounded(_exact(total, dtype) + _exact(held, dtype), dtype)
        target[:] = _rounded(_exact(total, dtype) / len(owners), dtype)

    def _padding_rows(self) -> Bits:
        """The padding row of each block, shape (outer, width); computed by whoever asks first."""
        with self._lock:
            if self._padding is None:
                self._padding = self._mean()
            return self._padding

    def _mean(self) -> Bits:
        shape = self._spec.shape
        if self._outer > 1 or self._width < 2 * _SLAB_UNIT:
            rest = (*shape[: self._axis], *shape[self._axis + 1 :])
            return _torch_mean(self._columns(0, self._width).reshape(-1, *rest), self._spec.dtype).reshape(
                self._outer, self._width
            )
        unit = max(_SLAB_ELEMENTS // max(self._rows.named, 1) // _SLAB_UNIT, 1) * _SLAB_UNIT
        bounds = [*range(0, self._width - unit + 1, unit)] or [0]
        slabs = zip(bounds, [*bounds[1:], self._width], strict=True)
        means = [_torch_mean(self._columns(first, last)[:, 0], self._spec.dtype) for first, last in slabs]
        return np.concatenate(means)[None]

    def _columns(self, first: int, last: int) -> Bits:
        """Columns of all rows before the padding; shape (rows, outer, columns)."""
        named, width = self._rows.named, self._width
        found: Bits = np.empty((named, self._outer, last - first), self._spec.dtype.storage)
        step = max(_BLOCK_ELEMENTS // width, 1)
        held: Bits = np.empty((step, width), self._spec.dtype.storage)
        for outer in range(self._outer):
            for row in range(0, named, step):
                part = held[: min(step, named - row)]
                self._fill(outer, row * width, part.reshape(-1))
                found[row : row + len(part), outer] = part[:, first:last]
        return found


def _run_starts(rows: RowMap) -> NDArray[np.int64]:
    """First row of each run: rows that follow each other in one donor, or that need none. Averages stand alone."""
    source, row = rows.source, rows.row
    follows = source[1:] == source[:-1]
    follows &= (source[1:] < 0) | (row[1:] == row[:-1] + 1)
    follows &= source[1:] != AVERAGE
    return np.append(0, np.flatnonzero(~follows) + 1)


def _converted(bits: Bits, dtype: DType, to: DType) -> Bits:
    """Elements of one float dtype as another, rounded as torch does: from float64 by way of float32."""
    if dtype is to:
        return bits
    if to is F64:
        return to_float32(bits, dtype).astype(F64.storage)
    return from_float32(to_float32(bits, dtype), to)


def _exact(bits: Bits, dtype: DType) -> Bits:
    """Values as float32, or float64 where the dtype is that: what torch computes in."""
    return bits if dtype is F64 else to_float32(bits, dtype)


def _rounded(values: Bits, dtype: DType) -> Bits:
    return values if dtype is F64 else from_float32(values, dtype)


def _torch_mean(rows: Bits, dtype: DType) -> Bits:
    """`torch.mean` over the first axis, in `dtype`."""
    import torch  # noqa: PLC0415 - heavy, and needed only where the vocabulary is padded

    if dtype is BF16:
        mean = torch.from_numpy(rows.view(np.int16)).view(torch.bfloat16).mean(dim=0)
        return np.asarray(mean.view(torch.int16).numpy().view(BF16.storage))
    return np.asarray(torch.from_numpy(rows).mean(dim=0).numpy())
