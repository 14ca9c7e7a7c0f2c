"""Which elements lie exactly at a trim threshold, found from the inputs alone with numpy.

mergekit keeps a fixed number of elements of each delta by sorting magnitudes. Where the smallest that is kept and the
largest that is dropped are equal, which of the equal ones are kept is up to the sort. Only such elements may differ.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tests.mergekit.oracle import Stored, read_tensors, values_of

__all__ = ["ambiguous_breadcrumbs", "ambiguous_ties", "ambiguous_variance", "only_ambiguous_differ"]

_NUMPY = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32}

Mask = NDArray[np.bool_]


def delta_of(tensor: Stored, base: Stored) -> NDArray[np.float64]:
    """tensor - base, rounded to the dtype of both."""
    # float64 holds the exact difference of two values of up to 16 bits, and float32 differences are taken in float32.
    if base.dtype == "F32":
        return (values_of(tensor).astype(np.float32) - values_of(base).astype(np.float32)).astype(np.float64)
    return (values_of(tensor) - values_of(base)).astype(_NUMPY[base.dtype]).astype(np.float64)


def ambiguous_ties(delta: NDArray[np.float64], density: float) -> Mask:
    """Elements whose magnitude is the threshold of `magnitude`, where the threshold cuts through equal ones."""
    keep = max(1, int(density * delta.size))
    return _cut(np.abs(delta), delta.size - keep)


def ambiguous_breadcrumbs(delta: NDArray[np.float64], density: float, gamma: float) -> Mask:
    """Elements at either threshold of `magnitude_outliers`."""
    kept = int(density * delta.size)
    bottom = max(0, delta.size - kept - int(gamma * delta.size))
    size = np.abs(delta)
    return _cut(size, bottom) | _cut(size, bottom + kept)


def ambiguous_variance(variance: NDArray[np.float64], density: float) -> Mask:
    """Elements at the threshold of sce's selection by variance."""
    keep = int(np.count_nonzero(variance) * density)
    return _cut(variance, variance.size - keep)


def _cut(values: NDArray[np.float64], dropped: int) -> Mask:
    """Elements equal to the value at which an ascending order is cut after `dropped`, if both sides have it."""
    if not 0 < dropped < values.size:
        return np.zeros(values.shape, bool)
    ordered = np.sort(values, axis=None)
    if ordered[dropped - 1] != ordered[dropped]:
        return np.zeros(values.shape, bool)
    return np.asarray(values == ordered[dropped])


def only_ambiguous_differ(ours: Path, theirs: Path, ambiguous: Callable[[str], Mask]) -> tuple[int, int]:
    """Hold that elements differ only where `ambiguous` (of a tensor's name) allows it.

    Returns:
        The number of elements that differ and the number that might.
    """
    left, right = read_tensors(ours), read_tensors(theirs)
    assert {name: item[:2] for name, item in left.items()} == {name: item[:2] for name, item in right.items()}
    differ, might = 0, 0
    for name, tensor in left.items():
        allowed = ambiguous(name)
        unequal: NDArray[Any] = tensor.bits != right[name].bits
        assert not np.any(unequal & ~allowed), f"{name}: elements that are not at a threshold differ"
        differ += int(np.count_nonzero(unequal))
        might += int(np.count_nonzero(allowed))
    return differ, might
