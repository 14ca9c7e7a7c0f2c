"""model_stock in precise steps: the mean of the inputs, drawn towards the base by how much their deltas agree.

c   = mean cosine of all pairs of deltas        float64 inner products
t   = n c / (1 + (n - 1) c), 0 where the denominator is below 1e-6
out = t * mean of the inputs + (1 - t) * base
"""

from __future__ import annotations

import math
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray

from wsmerge.engine.methods.deltas import delta_chunks
from wsmerge.engine.methods.kinds import EXACT
from wsmerge.engine.methods.norms import Product
from wsmerge.engine.methods.step import MergeStep, StepReader

__all__ = ["ModelStock"]

Float32 = NDArray[np.float32]

_LEAST = 1e-6


class ModelStock:
    """Model stock with one angle for the whole tensor."""

    def prepare(self, step: MergeStep, reader: StepReader) -> Float32:
        """The coefficient of each input, and a divisor of 1; reads the inputs once."""
        count = len(step.non_base)
        products = {pair: Product() for pair in combinations_with_replacement(range(count), 2)}
        for first, rows in delta_chunks(step, reader, range(count)):
            for (i, j), product in products.items():
                product.add(first, rows[i], rows[j])
        norms = [math.sqrt(products[i, i].total) for i in range(count)]
        cosines = [
            min(max(product.total / max(norms[i] * norms[j], _LEAST), -1.0), 1.0)
            for (i, j), product in products.items()
            if i != j
        ]
        cosine = sum(cosines) / len(cosines)
        denominator = 1 + (count - 1) * cosine
        t = 0.0 if abs(denominator) < _LEAST else count * cosine / denominator
        return np.array([*(1 - t if item.is_base else t / count for item in step.inputs), 1.0], np.float32)

    def compute(self, step: MergeStep, prepared: Float32, first: int, values: Float32, out: Float32) -> None:  # noqa: ARG002 - the interface's
        """Write the merged elements into `out`."""
        from wsmerge.engine.methods.delta_loops import blend  # noqa: PLC0415 - loads numba

        blend(EXACT, values, prepared, out)
