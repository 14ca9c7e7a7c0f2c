"""95 % intervals of shares, means, their changes and differences, and ratios of sums, over items or clusters of items.

    share         Wilson's interval; of clustered items with the effective number of items n / design effect
    mean, ratio   cluster-robust t, corrected for skewness
    change        of a share between two measurements of the same items: t, with one item more in each direction
    difference    of two groups: Newcombe's square-and-add of the two groups' own intervals

Items that share a fact or a wording are one cluster: not the items but the clusters are a sample, and the intervals say how
far the figure may move with other clusters. Items that are a fact in a wording each are clustered in two ways at once: the
variance is that over facts and that over wordings less that over items (Cameron, Gelbach and Miller, Journal of Business &
Economic Statistics 29, 2011), with each way's part no less than 0, and skewness by what each part adds to the third cumulant.
Everything is a closed form in place of a bootstrap over clusters: the variance is that of cluster sums with the correction
CR2 and Satterthwaite degrees of freedom (Bell and McCaffrey, Survey Methodology 28, 2002), the correction for skewness is what
a studentised bootstrap amounts to (Hall, The Bootstrap and Edgeworth Expansion, 1992, section 3.9).
`tests/steering/test_bootstrap.py` holds the coverage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.special import gammaincinv, stdtr, stdtrit

__all__ = [
    "TWO_SIDED_95",
    "Interval",
    "change_interval",
    "change_p",
    "clusters_of",
    "correlation_over_clusters",
    "difference_interval",
    "mean_interval",
    "ratio_interval",
    "share_interval",
]

TWO_SIDED_95: Final = 1.959963984540054

Values: TypeAlias = npt.NDArray[np.floating[Any]] | npt.NDArray[np.bool_]
Clusters: TypeAlias = npt.NDArray[Any] | None
"""The cluster of each item, by any numbers or names `[items]`, or two clusters `[items, 2]`; None where every item is one of
its own."""
Float64: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95 % interval; from -inf to inf where too few items say nothing of their spread."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether all of the interval is on one side of 0."""
        return self.low > 0 or self.high < 0


def clusters_of(names: Sequence[str | None]) -> npt.NDArray[np.int64] | None:
    """Numbers of clusters from their names, an item without a name a cluster of its own; None where no item has a name."""
    if not any(name is not None for name in names):
        return None
    first: dict[str, int] = {}
    return np.array([place if name is None else first.setdefault(name, place) for place, name in enumerate(names)])


def share_interval(values: Values, clusters: Clusters = None) -> Interval:
    """The share of items that are 1; or the mean of scores within [0, 1].

    Near 0 and 1 Wilson's interval is widened as Brown, Cai and DasGupta propose (Statistical Science 16, 2001, section
    4.1.1). Scores between 0 and 1 have a t interval with one item more at either end of the scale.
    """
    held = np.asarray(values, np.float64)
    share = float(held.mean())
    if ((held != 0) & (held != 1)).any():
        return _within(share, _with_more(held, clusters, (0.0, 1.0)), 0.0, 1.0)
    count = _effective_count(held, clusters)
    ends = [_wilson_low(end * count, count) for end in (share, 1 - share)]
    return Interval(share, ends[0], 1 - ends[1])


def mean_interval(values: Values, clusters: Clusters = None) -> Interval:
    """The mean of `values` `[items]`, where they are booleans as `share_interval`; of paired differences, give these.

    Without clusters the variance allows for neighbours that are alike, since files often ask about one fact several times.
    """
    if values.dtype == np.bool_:
        return share_interval(values, clusters)
    return ratio_interval(values, np.ones(len(values)), clusters)


def change_interval(differences: Values, clusters: Clusters = None) -> Interval:
    """The change of a share: the mean of paired differences within [-1, 1].

    With one item more that went up and one that went down the interval covers where hardly any item changed, and has a
    width where none did (Bonett and Price, Statistical Methods in Medical Research 21, 2012).
    """
    held = np.asarray(differences, np.float64)
    return _within(float(held.mean()), _with_more(held, clusters, (-1.0, 1.0)), -1.0, 1.0)


def change_p(differences: Values, clusters: Clusters = None) -> float:
    """The two-sided p of no change: of the t at which one end of `change_interval` is at 0.

    So p is below 0.05 where the 95 % interval excludes 0, and nowhere else.
    """
    more, names = _more(np.asarray(differences, np.float64), clusters, (-1.0, 1.0))
    value, error, freedom, skewness = _estimate(more, np.ones(len(more)), names)
    sign, size = math.copysign(1, value), abs(value) / error
    # Skewness never moves an end inwards, so it never makes p smaller.
    t = max(0.0, min(size, sign * _skewed(sign * size, skewness)))
    return float(2 * stdtr(freedom, -t))


def difference_interval(left: Interval, right: Interval, *, correlation: float = 0.0) -> Interval:
    """`left` less `right`, two figures of different items (Newcombe, Statistics in Medicine 17, 1998, method 10).

    `correlation` is that of the two figures, where their items are of the same clusters, as in his intervals of paired differences.
    """
    value = left.value - right.value
    ends = (left.value - left.low, right.high - right.value), (left.high - left.value, right.value - right.low)
    # The root of a^2 + b^2 - 2 correlation a b.
    below, above = (math.hypot(a - correlation * b, b * math.sqrt(1 - correlation**2)) for a, b in ends)
    return Interval(value, value - below, value + above)


def correlation_over_clusters(left: Values, right: Values, clusters: tuple[Clusters, Clusters]) -> float:
    """The correlation of the means of two groups of items that share clusters; 0 where no item has a cluster."""
    if clusters[0] is None or clusters[1] is None:
        return 0.0
    residuals = [np.asarray(values, np.float64) - np.mean(values) for values in (left, right)]
    owners = np.concatenate([np.asarray(names) for names in clusters])
    sums = [
        _by_cluster(np.concatenate(pair), owners)
        for pair in ((residuals[0], np.zeros(len(right))), (np.zeros(len(left)), residuals[1]))
    ]
    size = math.sqrt(float((sums[0] @ sums[0]) * (sums[1] @ sums[1])))
    return max(-1.0, min(1.0, float(sums[0] @ sums[1]) / size)) if size else 0.0


def ratio_interval(tops: Values, bottoms: Values, clusters: Clusters = None) -> Interval:
    """The sum of `tops` over the sum of `bottoms`, both `[items]`: a mean in which an item weighs what its bottom says."""
    value, error, freedom, skewness = _estimate(np.asarray(tops, np.float64), np.asarray(bottoms, np.float64), clusters)
    t = _t(freedom)
    if not math.isfinite(error * t):
        return Interval(value, -math.inf, math.inf)
    # Skewness is estimated from few clusters: it moves an end outwards, but never inwards.
    low, high = (max(t, sign * _unskewed(sign * t, skewness)) * error for sign in (1, -1))
    return Interval(value, value - low, value + high)


def _estimate(tops: Float64, weights: Float64, clusters: Clusters) -> tuple[float, float, float, float]:
    """A ratio of sums with its standard error, degrees of freedom and skewness."""
    value = float(tops.sum() / weights.sum())
    residuals = tops - value * weights
    error, freedom, skewness = _spread(residuals, weights, clusters)
    if clusters is None and residuals.any():
        # Neighbours that are alike make the mean vary more; those that are unlike may be so by chance.
        alike = float(residuals[1:] @ residuals[:-1] / (residuals @ residuals))
        error *= math.sqrt(1 + 2 * max(0.0, alike))
    return value, error, freedom, skewness


def _spread(residuals: Float64, weights: Float64, clusters: Clusters) -> tuple[float, float, float]:
    """The standard error of a weighted mean, its degrees of freedom, and the skewness of its clusters over their root number."""
    if clusters is None or clusters.ndim == 1:
        return _spread_one_way(residuals, weights, clusters)
    ways = [_numbers(way) for way in clusters.T]
    within, freedom, skewness = _spread_one_way(residuals, weights, ways[0] * (ways[1].max() + 1) + ways[1])
    found = [_spread_one_way(residuals, weights, way) for way in ways]
    # What each way adds to the variance over items has its own few degrees of freedom (Satterthwaite).
    added = [(max(0.0, error**2 - within**2), freedom, skewness) for error, freedom, skewness in found]
    parts = [(within**2, freedom, skewness), *added]
    variance = sum(part for part, _, _ in parts)
    if not 0 < variance < math.inf:
        return max(error for error, _, _ in found), min(freedom for _, freedom, _ in found), 0.0
    together = variance**2 / sum(part**2 / freedom for part, freedom, _ in parts)
    # Third cumulants of independent parts add, so a way that adds nothing to the variance says nothing of skewness.
    skewed = sum(part**1.5 * skewness for part, _, skewness in parts) / variance**1.5
    return math.sqrt(variance), together, skewed


def _spread_one_way(residuals: Float64, weights: Float64, clusters: Clusters) -> tuple[float, float, float]:
    sums, shares = _by_cluster(residuals, clusters), _by_cluster(weights, clusters) / weights.sum()
    sums, shares = sums[shares > 0], shares[shares > 0]  # an item without weight says nothing of the ratio
    if len(sums) < 2:  # one cluster has no spread
        return math.inf, 1.0, 0.0
    left = 1 - shares
    error = math.sqrt(float((sums**2 / left).sum())) / float(weights.sum())
    pairs = shares**2 / left
    freedom = 1 / float((shares**2).sum() + pairs.sum() ** 2 - (pairs**2).sum())
    second, third = float((sums**2).mean()), float((sums**3).mean())
    skewness = third / second**1.5 / math.sqrt(len(sums)) if second else 0.0
    return error, freedom, skewness


def _by_cluster(values: Float64, clusters: Clusters) -> Float64:
    """Sums over the clusters of one way."""
    return values if clusters is None else np.bincount(_numbers(clusters), values).astype(np.float64)


def _numbers(names: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Names as numbers from 0."""
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def _unskewed(t: float, skewness: float) -> float:
    """Hall's transformation of a quantile of t, inverted; `skewness` is over the root of the number of clusters."""
    if abs(skewness) < 1e-9:  # the limit is t itself
        return t
    return 3 / skewness * (math.cbrt(1 + skewness * (t - skewness / 6)) - 1)


def _skewed(t: float, skewness: float) -> float:
    """Hall's transformation itself: what `_unskewed` inverts."""
    if abs(skewness) < 1e-9:
        return t
    return ((1 + skewness * t / 3) ** 3 - 1) / skewness + skewness / 6


def _effective_count(values: Float64, clusters: Clusters) -> float:
    """How many independent items say as much of a share as these: at least as if clusters had one answer each."""
    count = float(len(values))
    if clusters is None:
        return count
    ways = clusters.T if clusters.ndim == 2 else clusters[None]
    counts = [count**2 / float((_by_cluster(np.ones(len(values)), way) ** 2).sum()) for way in ways]
    share = float(values.mean())
    error, freedom, _ = _spread(values - share, np.ones(len(values)), clusters)
    if not 0 < share < 1 or not math.isfinite(error):
        # Nothing shows how alike clusters are: of two ways that with more, since that all answers in a wording are the same,
        # whatever the fact, is not feared.
        return max(counts)
    widened = (error * _t(freedom) / TWO_SIDED_95) ** 2
    return min(count, max(min(counts), share * (1 - share) / widened)) if widened else count


def _wilson_low(found: float, count: float) -> float:
    """The lower end for `found` of `count` items."""
    if found == 0:
        return 0.0
    square = TWO_SIDED_95**2
    spread = TWO_SIDED_95 * math.sqrt(found * (count - found) / count + square / 4)
    low = (found + square / 2 - spread) / (count + square)
    few = 3
    return min(low, float(gammaincinv(found, 0.05)) / count) if found <= few else low


def _with_more(values: Float64, clusters: Clusters, more: tuple[float, float]) -> Interval:
    """The mean with two items more."""
    held, names = _more(values, clusters, more)
    return ratio_interval(held, np.ones(len(held)), names)


def _more(values: Float64, clusters: Clusters, more: tuple[float, float]) -> tuple[Float64, npt.NDArray[np.int64]]:
    """Values with two more, each a cluster of its own, and the clusters of all."""
    ways = np.arange(len(values))[None] if clusters is None else np.atleast_2d(clusters.T)
    names = np.stack([np.append(_numbers(way), [-1, -2]) for way in ways], axis=-1)
    return np.append(values, more), names if len(ways) > 1 else names[:, 0]


def _within(value: float, found: Interval, low: float, high: float) -> Interval:
    return Interval(value, max(low, min(found.low, value)), min(high, max(found.high, value)))


def _t(freedom: float) -> float:
    return float(stdtrit(freedom, 0.975))
