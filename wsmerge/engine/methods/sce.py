"""sce in precise steps: select the elements that vary, weigh inputs by their energy, erase what disagrees in sign.

    select  keep the int(select_topk * m) elements of largest variance over the deltas, m those of non-zero variance;
            of equal ones the lower index first
    weigh   w_j = mean square of delta_j / sum over all j, 1 / n where that sum is below 1e-6
    erase   only deltas with the sign of sum_j delta_j count (0 counts as +)
    out     = base + sum_j w_j delta_j / max(sum of the w_j that count, 1e-6)

Variances are float64, rounded to float32 before they are compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsmerge.engine.methods.deltas import Deltas, delta_chunks, number, split
from wsmerge.engine.methods.kinds import EXACT
from wsmerge.engine.methods.norms import Product
from wsmerge.engine.methods.searching import Cut, Search
from wsmerge.engine.methods.step import MergeStep, StepReader

__all__ = ["Sce"]

Float32 = NDArray[np.float32]

_LEAST_ENERGY = 1e-6


@dataclass(frozen=True, slots=True)
class _Prepared:
    deltas: Deltas
    cut: Cut | None  # None where all elements are selected
    weights: Float32


class Sce:
    """Select, calculate, erase."""

    def prepare(self, step: MergeStep, reader: StepReader) -> _Prepared:
        """The cut in the order of variances and the weights; reads the inputs up to four times."""
        positions = range(len(step.non_base))
        cut = _select(step, reader, number(step, "select_topk", 1.0))
        energies = [Product() for _ in positions]
        for first, rows in delta_chunks(step, reader, positions):
            _keep(cut, first, rows)
            for row, energy in zip(rows, energies, strict=True):
                energy.add(first, row, row)
        means = [energy.total / max(step.spec.numel, 1) for energy in energies]
        total = sum(means)
        weights = [1 / len(means) if abs(total) < _LEAST_ENERGY else mean / total for mean in means]
        return _Prepared(split(step), cut, np.array(weights, np.float32))

    def compute(self, step: MergeStep, prepared: _Prepared, first: int, values: Float32, out: Float32) -> None:  # noqa: ARG002 - the interface's
        """Write the merged elements into `out`."""
        from wsmerge.engine.methods.sce_loops import erase  # noqa: PLC0415 - loads numba

        rows, base = prepared.deltas.take(values)
        _keep(prepared.cut, first, rows)
        erase(rows, base, prepared.weights, out)


def _select(step: MergeStep, reader: StepReader, density: float) -> Cut | None:
    from wsmerge.engine.methods.trimming_loops import TABLE, count_high, count_low  # noqa: PLC0415 - loads numba

    if density >= 1:
        return None
    tables = np.zeros((2, TABLE), np.int64)
    varying = 0
    if density > 0:
        for _first, variance in _variances(step, reader):
            varying += int(np.count_nonzero(variance))
            count_high(EXACT, variance, tables)
    search = Search(0, int(varying * density), step.spec.numel)
    if search.within:
        search.descend(tables.sum(axis=0))
        low = np.zeros(TABLE, np.int64)
        for _first, variance in _variances(step, reader):
            count_low(variance, search.key, low)
        search.descend(low)
    if search.undecided:
        for first, variance in _variances(step, reader):
            search.settle(EXACT, first, variance)
    return search.cut


def _variances(step: MergeStep, reader: StepReader) -> Iterator[tuple[int, Float32]]:
    from wsmerge.engine.methods.sce_loops import variances  # noqa: PLC0415 - loads numba

    for first, rows in delta_chunks(step, reader, range(len(step.non_base))):
        out = np.empty(rows.shape[1], np.float32)
        variances(rows, out)
        yield first, out


def _keep(cut: Cut | None, first: int, rows: Float32) -> None:
    from wsmerge.engine.methods.sce_loops import keep_varying, variances  # noqa: PLC0415 - loads numba

    if cut is None:
        return
    out = np.empty(rows.shape[1], np.float32)
    variances(rows, out)
    edge = min(max(cut.index - first, 0), out.size)
    for part in (slice(0, edge), slice(edge, out.size)):
        keep_varying(rows[:, part], out[part], np.uint32(cut.key_at(first + part.start)))
