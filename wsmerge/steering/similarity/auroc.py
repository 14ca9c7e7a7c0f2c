"""Area under the ROC curve: how well a score tells two groups of runs apart, and how far few runs can say so.

The interval is Newcombe's method 5 (Statistics in Medicine 25, 2006): Wilson's idea with the variance of Hanley and McNeil,

    (A - found)^2 = t^2 A (1 - A) (1 + (N - 1) ((1 - A) / (2 - A) + A / (1 + A))) / (m n)    with N = (m + n) / 2

solved for both ends; of two groups that are wholly apart it still reaches down, the further the fewer runs there are. Here t
has m + n - 2 degrees of freedom, since with the normal quantile 3 runs against 3 are covered in 90 % and not 95 %.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from wsmerge.steering.bootstrap import Interval

__all__ = ["auroc", "auroc_interval"]


def auroc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """The chance that a score of `positive` is above one of `negative`; equal scores count half.

    Args:
        positive: scores of one group, at least one.
        negative: scores of the other, at least one.

    Returns:
        1 where the groups are apart and `positive` is above, 0.5 where the score tells nothing.
    """
    ordered = np.sort(np.asarray(negative, np.float64))
    scores = np.asarray(positive, np.float64)
    below = np.searchsorted(ordered, scores, "left")
    equal = np.searchsorted(ordered, scores, "right") - below
    return float((below + equal / 2).mean() / ordered.size)


def auroc_interval(positive: Sequence[float], negative: Sequence[float]) -> Interval:
    """`auroc` with its 95 % interval over runs; arguments as of `auroc`."""
    found, runs = auroc(positive, negative), (len(positive), len(negative))
    return Interval(found, _end(found, 0.0, runs), _end(found, 1.0, runs))


def _end(found: float, outer: float, runs: tuple[int, int]) -> float:
    """The end of the interval between `found` and `outer`, by bisection."""
    inner = found
    square = float(stdtrit(max(1, sum(runs) - 2), 0.975)) ** 2
    for _ in range(60):
        middle = (inner + outer) / 2
        shape = 1 + (sum(runs) / 2 - 1) * ((1 - middle) / (2 - middle) + middle / (1 + middle))
        variance = middle * (1 - middle) * shape / (runs[0] * runs[1])
        if (middle - found) ** 2 <= square * variance:
            inner = middle
        else:
            outer = middle
    return inner
