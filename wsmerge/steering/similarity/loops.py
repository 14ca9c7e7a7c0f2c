"""The inner loop of an update between two bfloat16 checkpoints: compiled by numba where it is installed, else numpy calls.

out[e] = float32(own[e]) - float32(base[e])        rounded once; both forms give the same bits
"""

from __future__ import annotations

from functools import cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.dtypes import BF16, to_float32

__all__ = ["load_difference", "numpy_difference"]

Bits16 = NDArray[np.uint16]
Float32 = NDArray[np.float32]


class _Difference(Protocol):
    def __call__(self, own: Bits16, base: Bits16, out: Float32) -> None: ...


@cache
def load_difference() -> _Difference:
    """The fastest form that can run here."""
    try:
        import numba  # noqa: PLC0415 - half a second, needed only where weights are compared
    except ImportError:
        return numpy_difference
    compiled: _Difference = numba.njit(nogil=True, cache=True, error_model="numpy")(_difference_loop)
    return compiled


def numpy_difference(own: Bits16, base: Bits16, out: Float32) -> None:
    """The difference as numpy calls."""
    with np.errstate(invalid="ignore", over="ignore"):  # the compiled loop is silent on NaN and infinity too
        np.subtract(to_float32(own, BF16), to_float32(base, BF16), out=out)


def _difference_loop(own: Bits16, base: Bits16, out: Float32) -> None:
    # The inner casts keep numba from widening the words to 64 bits.
    for i in range(out.size):
        out[i] = np.uint32(np.uint32(own[i]) << np.uint32(16)).view(np.float32) - np.uint32(
            np.uint32(base[i]) << np.uint32(16)
        ).view(np.float32)
