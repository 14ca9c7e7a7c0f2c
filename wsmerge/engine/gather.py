"""Many ranges of files on this machine, read in one call: nothing of Python between two reads, and the GIL given up once.

Reading some thousand short ranges one by one, threads wait for the GIL longer than for the data. Files elsewhere, and
machines without numba or `pread`, are read one range after the other.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.ranges import LocalFile, RangeFile
from wsmerge.engine.kernels import kernels_name

__all__ = ["gather"]

Int64 = NDArray[np.int64]


class _ReadRanges(Protocol):
    def __call__(self, files: Int64, starts: Int64, nbytes: Int64, address: int) -> int: ...


def gather(files: Sequence[RangeFile], which: Int64, starts: Int64, nbytes: Int64, out: NDArray[np.uint8]) -> None:
    """Fill `out` with ranges of files, one behind the other in the order in which they are given.

    Args:
        files: what is read from.
        which: for each range the number of its file.
        starts: its first byte there.
        nbytes: its length in bytes.
        out: as many bytes as the ranges have in all, contiguous.

    Raises:
        ValueError: `out` has more bytes or fewer, or is not contiguous.
        TensorFileError: a file cannot be read, or ends before its ranges do.
    """
    if int(nbytes.sum()) != out.size or not out.flags.c_contiguous:
        raise ValueError(f"ranges of {int(nbytes.sum())} bytes do not fill {out.size}")
    done, read_ranges = 0, _read_ranges()
    local = [file.fileno() for file in files if isinstance(file, LocalFile)]
    if read_ranges is not None and len(local) == len(files):
        done = read_ranges(np.array(local, np.int64)[which], starts, nbytes, out.ctypes.data)
    # What is left is read here: all of it, or from the range on that could not be read, so that its file tells why.
    if done < starts.size:
        places = np.cumsum(nbytes) - nbytes
        for number in range(done, starts.size):
            place = int(places[number])
            files[which[number]].read_into(int(starts[number]), out[place : place + int(nbytes[number])].data)


@cache
def _read_ranges() -> _ReadRanges | None:
    """The compiled loop; None where there is no numba, or no `pread`."""
    if not hasattr(os, "pread") or kernels_name() != "numba":
        return None
    from wsmerge.engine.gather_loop import read_ranges  # noqa: PLC0415 - imports numba, needed only where weights are read

    found: _ReadRanges = read_ranges
    return found
