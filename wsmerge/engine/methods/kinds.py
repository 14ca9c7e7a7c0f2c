"""The work dtype as the compiled loops know it: a number, and rounding to it outside of them."""

from __future__ import annotations

from typing import Final

import numpy as np

from wsmerge.core.dtypes import BF16, F16, DType, from_float32, to_float32

__all__ = ["EXACT", "KIND_BF16", "KIND_F16", "kind_of", "narrowed"]

EXACT: Final = 0
KIND_BF16: Final = 1
KIND_F16: Final = 2

_NARROW: Final = {KIND_BF16: BF16, KIND_F16: F16}


def kind_of(dtype: DType) -> int:
    """The number by which the loops know the work dtype `dtype` (float32 where it is none of the two narrow ones)."""
    if dtype is BF16:
        return KIND_BF16
    return KIND_F16 if dtype is F16 else EXACT


def narrowed(kind: int, value: float) -> float:
    """A Python number as the work dtype holds it: rounded to float32, then to the work dtype, as torch does."""
    with np.errstate(over="ignore"):  # too large a number is infinite in the dtype, as in torch
        exact = np.array([value], np.float64).astype(np.float32)
    dtype = _NARROW.get(kind)
    return float(exact[0]) if dtype is None else float(to_float32(from_float32(exact, dtype), dtype)[0])
