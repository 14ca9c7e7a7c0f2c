"""Area under the ROC curve: how well a score tells two groups of runs apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["auroc"]


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
