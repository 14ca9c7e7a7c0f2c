"""The compiled loops of the methods on deltas, and of those that are elementwise.

Every operation rounds to the work dtype as torch does on the CPU; sums over the inputs begin at +0, add in order, and
round once.

    delta     = narrow(x - base)
    scaled    = narrow(delta * w)
    mixed     = narrow(sum_j scaled_j)
    consensus: only scaled_j with the sign of sum_j scaled_j count (0 counts as +), in `mixed` and in the divisor
    out       = narrow(base + narrow(narrow(mixed / divisor) * lambda))
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wsmerge.engine.methods.loops import compiled, fused, narrow

__all__ = ["agree", "blend", "combine", "nearswap", "scale", "subtract"]

Float32 = NDArray[np.float32]

# Elements of a strip: the sums of a strip stay in the first-level cache while the inputs pass by.
STRIP = 2048


@compiled
def subtract(kind: int, x: Float32, base: Float32) -> None:
    """Subtract in place. With a third array, which might be `x`, the loop would not become vector code."""
    for i in range(x.size):
        x[i] = narrow(kind, x[i] - base[i])


@compiled
def scale(kind: int, x: Float32, factor: np.float32) -> None:
    """Multiply in place."""
    for i in range(x.size):
        x[i] = narrow(kind, x[i] * factor)


@compiled
def _finish(kind: int, factor: np.float32, base: Float32, total: Float32) -> None:
    if factor != np.float32(1):
        for i in range(total.size):
            total[i] = narrow(kind, narrow(kind, total[i]) * factor)
    for i in range(total.size):
        total[i] = narrow(kind, base[i] + narrow(kind, total[i]))


@compiled
def combine(kind: int, rows: Float32, base: Float32, terms: Float32, out: Float32) -> None:
    """Write base + lambda * sum_j w_j * rows_j / divisor.

    Args:
        kind: the work dtype.
        rows: deltas x elements.
        base: the elements of the base.
        terms: one weight a delta, then the divisor, then lambda; 1 stands for no operation.
        out: the merged elements.
    """
    count = rows.shape[0]
    divisor, factor = terms[count], terms[count + 1]
    for start in range(0, base.size, STRIP):
        stop = min(start + STRIP, base.size)
        total = out[start:stop]
        total[:] = np.float32(0)
        for j in range(count):
            row, weight = rows[j, start:stop], terms[j]
            for i in range(total.size):
                total[i] += narrow(kind, row[i] * weight)
        if divisor != np.float32(1):
            for i in range(total.size):
                total[i] = narrow(kind, narrow(kind, total[i]) / divisor)
        _finish(kind, factor, base[start:stop], total)


@compiled
def agree(kind: int, rows: Float32, base: Float32, terms: Float32, out: Float32) -> None:
    """As `combine`, with the sign consensus; `rows` is overwritten.

    Args:
        kind: the work dtype.
        rows: deltas x elements.
        base: the elements of the base.
        terms: one weight a delta, then 1 to divide by the sum of the weights that agree (0 not to), then lambda.
        out: the merged elements.
    """
    count = rows.shape[0]
    normalised, factor = terms[count] != np.float32(0), terms[count + 1]
    sums = np.empty(STRIP, np.float32)
    shares = np.empty(STRIP, np.float32)
    for start in range(0, base.size, STRIP):
        stop = min(start + STRIP, base.size)
        total, sign, share = out[start:stop], sums[: stop - start], shares[: stop - start]
        sign[:] = np.float32(0)
        for j in range(count):
            row, weight = rows[j, start:stop], terms[j]
            for i in range(total.size):
                scaled = narrow(kind, row[i] * weight)
                row[i] = scaled
                sign[i] += scaled
        total[:] = np.float32(0)
        share[:] = np.float32(0)
        for j in range(count):
            row, weight = rows[j, start:stop], terms[j]
            for i in range(total.size):
                # Without branches, for vector code. A NaN may count or not: the sum is NaN then.
                kept = ((row[i] > np.float32(0)) == (sign[i] >= np.float32(0))) & (row[i] != np.float32(0))
                mask = np.float32(1) if kept else np.float32(0)
                total[i] += row[i] * mask  # a product, since infinity and NaN times 0 are NaN here as there
                share[i] += weight * mask
        if normalised:
            for i in range(total.size):
                divisor = narrow(kind, share[i])
                divisor = np.float32(1) if divisor == np.float32(0) else divisor
                total[i] = narrow(kind, narrow(kind, total[i]) / divisor)
        _finish(kind, factor, base[start:stop], total)


@compiled
def blend(kind: int, values: Float32, terms: Float32, out: Float32) -> None:
    """Write sum_i w_i * values_i / divisor: float32 with fused products, rounded once.

    Args:
        kind: the work dtype.
        values: inputs x elements.
        terms: one weight an input, then the divisor; 1 stands for no division.
        out: the merged elements.
    """
    count = values.shape[0]
    divisor = terms[count]
    for start in range(0, out.size, STRIP):
        stop = min(start + STRIP, out.size)
        total = out[start:stop]
        total[:] = np.float32(0)
        for j in range(count):
            row, weight = values[j, start:stop], terms[j]
            for i in range(total.size):
                total[i] = fused(row[i], weight, total[i])
        for i in range(total.size):
            total[i] = narrow(kind, total[i] / divisor)


@compiled
def nearswap(kind: int, a: Float32, b: Float32, terms: Float32, out: Float32) -> None:
    """Write weight * b + (1 - weight) * a, weight = clamp(t / max(|a - b|, floor), 0, 1).

    Args:
        kind: the work dtype.
        a: the elements of the base.
        b: the elements of the other input.
        terms: t in float32, and the floor in the work dtype.
        out: the merged elements.
    """
    t, floor = terms[0], terms[1]
    zero, one = np.float32(0), np.float32(1)
    for i in range(out.size):
        distance = narrow(kind, abs(a[i] - b[i]))
        # Comparisons with NaN are false, so that NaN stays; `max` and `min` do not promise that.
        distance = floor if distance < floor else distance  # noqa: FURB136 - see above
        weight = narrow(kind, narrow(kind, one / distance) * t)
        weight = zero if weight < zero else weight  # noqa: FURB136 - see above
        weight = one if weight > one else weight  # noqa: FURB136 - see above
        rest = narrow(kind, one - weight)
        out[i] = narrow(kind, narrow(kind, weight * b[i]) + narrow(kind, rest * a[i]))
