"""Sums over a whole tensor that do not depend on how it is cut, and the ratio by which a masked delta is rescaled.

    ratio = sum|delta| / sum|masked delta|, 1 where either is below 1e-7

Element i is added in float64 to lane i mod LANES, in order; the lanes are added last.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from wsmerge.engine.methods.kinds import EXACT, KIND_BF16, narrowed

__all__ = ["Norm", "Product", "norm_ratio"]

Float32 = NDArray[np.float32]

_LEAST = 1e-7


class Product:
    """The inner product of two tensors that come in chunks."""

    def __init__(self) -> None:
        from wsmerge.engine.methods.loops import LANES  # noqa: PLC0415 - loads numba

        self._lanes = np.zeros(LANES, np.float64)

    def add(self, first: int, x: Float32, y: Float32) -> None:
        """Add the products of the elements `first`, `first + 1`, ..."""
        from wsmerge.engine.methods.loops import add_product  # noqa: PLC0415 - loads numba

        add_product(first, x, y, self._lanes)

    @property
    def total(self) -> float:
        """The sum so far."""
        return float(self._lanes.sum())


class Norm:
    """The sum of magnitudes of a tensor that comes in chunks."""

    def __init__(self) -> None:
        from wsmerge.engine.methods.loops import LANES  # noqa: PLC0415 - loads numba

        self._lanes = np.zeros(LANES, np.float64)

    def add(self, first: int, x: Float32) -> None:
        """Add the magnitudes of the elements `first`, `first + 1`, ..."""
        from wsmerge.engine.methods.loops import add_absolute  # noqa: PLC0415 - loads numba

        add_absolute(first, x, self._lanes)

    @property
    def total(self) -> float:
        """The sum so far."""
        return float(self._lanes.sum())


def norm_ratio(kind: int, before: float, after: float) -> float:
    """What a masked delta is multiplied by to have its norm back.

    bfloat16 norms and their ratio are rounded to bfloat16, as the work dtype of mergekit's masks has it; the others are
    float32.
    """
    work = KIND_BF16 if kind == KIND_BF16 else EXACT
    before, after, least = (narrowed(work, value) for value in (before, after, _LEAST))
    if before < least or after < least:
        return 1.0
    if not (math.isfinite(before) and math.isfinite(after)):
        return math.nan if math.isnan(before) or math.isnan(after) or math.isinf(after) else math.inf
    return narrowed(work, before / after)
