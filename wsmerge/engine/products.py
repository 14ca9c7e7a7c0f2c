"""The compiled loops of low-rank products; imported only where weights are computed, since it imports numba.

    out[e] = sum_r b[e // columns, r] * a[r, e % columns]

Each element starts at zero and takes one fused multiply-add a rank, r ascending, so it is the same however the work is
cut. Four rows and four ranks a pass keep sums and factors in registers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from wsmerge.engine.methods.loops import compiled
from wsmerge.engine.methods.loops import fused as _fused

__all__ = ["low_rank"]

Float32 = NDArray[np.float32]

fused = cast("Callable[..., Any]", _fused)  # numba's types show the function that makes the code, not the one called


@compiled
def low_rank(b: Float32, a: Float32, first: int, out: Float32) -> None:
    """Write elements `first`, `first + 1`, ... of b @ a, row-major, into `out`.

    Args:
        b: rows x rank, C-contiguous.
        a: rank x columns, C-contiguous.
        first: element of the product.
        out: its length says how many elements.
    """
    columns = a.shape[1]
    done = 0
    while done < out.size:
        row, column = (first + done) // columns, (first + done) % columns
        if column == 0 and out.size - done >= 4 * columns:
            count = 4 * columns
            _four_rows(b, a, row, out[done : done + count])
        else:
            count = min(columns - column, out.size - done)
            _part_of_row(b, a, row, column, out[done : done + count])
        done += count


@compiled
def _four_rows(b: Float32, a: Float32, row: int, out: Float32) -> None:
    """The whole rows `row` to `row + 3`."""
    columns = a.shape[1]
    rank = b.shape[1]
    out0, out1 = out[:columns], out[columns : 2 * columns]
    out2, out3 = out[2 * columns : 3 * columns], out[3 * columns :]
    out[:] = np.float32(0)
    for r in range(0, rank - 3, 4):
        a0, a1, a2, a3 = a[r], a[r + 1], a[r + 2], a[r + 3]
        b00, b01, b02, b03 = b[row, r], b[row, r + 1], b[row, r + 2], b[row, r + 3]
        b10, b11, b12, b13 = b[row + 1, r], b[row + 1, r + 1], b[row + 1, r + 2], b[row + 1, r + 3]
        b20, b21, b22, b23 = b[row + 2, r], b[row + 2, r + 1], b[row + 2, r + 2], b[row + 2, r + 3]
        b30, b31, b32, b33 = b[row + 3, r], b[row + 3, r + 1], b[row + 3, r + 2], b[row + 3, r + 3]
        for j in range(columns):
            x0, x1, x2, x3 = a0[j], a1[j], a2[j], a3[j]
            out0[j] = fused(b03, x3, fused(b02, x2, fused(b01, x1, fused(b00, x0, out0[j]))))
            out1[j] = fused(b13, x3, fused(b12, x2, fused(b11, x1, fused(b10, x0, out1[j]))))
            out2[j] = fused(b23, x3, fused(b22, x2, fused(b21, x1, fused(b20, x0, out2[j]))))
            out3[j] = fused(b33, x3, fused(b32, x2, fused(b31, x1, fused(b30, x0, out3[j]))))
    for r in range(rank - rank % 4, rank):
        _add_rank(b[row, r], a[r], out0)
        _add_rank(b[row + 1, r], a[r], out1)
        _add_rank(b[row + 2, r], a[r], out2)
        _add_rank(b[row + 3, r], a[r], out3)


@compiled
def _part_of_row(b: Float32, a: Float32, row: int, column: int, out: Float32) -> None:
    """Row `row` from `column` on, as many elements as `out` holds."""
    rank = b.shape[1]
    end = column + out.size
    out[:] = np.float32(0)
    for r in range(0, rank - 3, 4):
        a0, a1, a2, a3 = a[r, column:end], a[r + 1, column:end], a[r + 2, column:end], a[r + 3, column:end]
        b0, b1, b2, b3 = b[row, r], b[row, r + 1], b[row, r + 2], b[row, r + 3]
        for j in range(out.size):
            out[j] = fused(b3, a3[j], fused(b2, a2[j], fused(b1, a1[j], fused(b0, a0[j], out[j]))))
    for r in range(rank - rank % 4, rank):
        _add_rank(b[row, r], a[r, column:end], out)


@compiled
def _add_rank(factor: np.float32, a: Float32, out: Float32) -> None:
    for j in range(out.size):
        out[j] = fused(factor, a[j], out[j])
