"""Bootstrap intervals of means, of their differences, and of ratios of sums.

All are 95 % percentile intervals over resamples of the items with replacement (Efron and Tibshirani, An Introduction to
the Bootstrap, chapter 13). The generator has a fixed seed, so equal figures have equal intervals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Interval", "difference_interval", "mean_interval", "ratio_interval"]

RESAMPLES: Final = 2000

Values: TypeAlias = npt.NDArray[np.floating[Any]] | npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def mean_interval(values: Values) -> Interval:
    """The mean of `values` `[items]`; of paired differences, give the differences."""
    return _interval(float(values.mean()), _resampled_means(values, np.random.default_rng(0)))


def difference_interval(left: Values, right: Values) -> Interval:
    """The mean of `left` less that of `right`, two groups of different items, each resampled on its own."""
    generator = np.random.default_rng(0)
    differences = _resampled_means(left, generator) - _resampled_means(right, generator)
    return _interval(float(left.mean() - right.mean()), differences)


def ratio_interval(tops: Values, bottoms: Values) -> Interval:
    """The sum of `tops` over the sum of `bottoms`, both `[items]`: a mean in which an item weighs what its bottom says."""
    generator = np.random.default_rng(0)
    rows = generator.integers(len(tops), size=(RESAMPLES, len(tops)))
    weights = bottoms[rows].sum(axis=1, dtype=np.float64)
    sums = tops[rows].sum(axis=1, dtype=np.float64)
    kept = weights > 0  # a resample of nothing but empty items has no ratio
    return _interval(float(tops.sum() / bottoms.sum()), sums[kept] / weights[kept])


def _resampled_means(values: Values, generator: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return the means of resamples with replacement: float64 `[RESAMPLES]`."""
    rows = generator.integers(len(values), size=(RESAMPLES, len(values)))
    means: npt.NDArray[np.float64] = values[rows].mean(axis=1, dtype=np.float64)
    return means


def _interval(value: float, resampled: npt.NDArray[np.float64]) -> Interval:
    low, high = np.quantile(resampled, (0.025, 0.975))
    return Interval(value, float(low), float(high))
