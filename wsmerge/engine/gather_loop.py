"""The compiled loop of `gather`; imported only where ranges are read, since it imports numba."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba.core import types
from numpy.typing import NDArray

from wsmerge.engine.methods.loops import compiled

__all__ = ["read_ranges"]

Int64 = NDArray[np.int64]

_pread: Any = types.ExternalFunction("pread", types.intp(types.intc, types.uintp, types.uintp, types.int64))
"""POSIX: ssize_t pread(int file, void *address, size_t bytes, off_t start)."""


@compiled
def read_ranges(files: Int64, starts: Int64, nbytes: Int64, address: int) -> int:
    """Read ranges to one behind the other in memory; returns how many, fewer where one could not be read whole.

    Args:
        files: file descriptor of each.
        starts: first byte of each in its file.
        nbytes: bytes of each.
        address: where the first of them goes; the memory has room for all.
    """
    for number in range(files.size):
        done = 0
        while done < nbytes[number]:
            got = _pread(
                numba.intc(files[number]),
                numba.uintp(address + done),
                numba.uintp(nbytes[number] - done),
                starts[number] + done,
            )
            if got <= 0:
                return number
            done += got
        address += done
    return int(files.size)
