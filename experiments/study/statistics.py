"""The study's statistics, as `PLAN.md` says: means over seeds item by item, intervals over items, tests over seeds, Holm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import numpy.typing as npt

from wsmerge.errors import UsageError
from wsmerge.steering.bootstrap import Interval, change_p
from wsmerge.steering.sweep.samples import Samples

__all__ = ["Paired", "holm", "of_items", "paired", "scaled", "seeds_mean", "sign_flip"]


@dataclass(frozen=True, slots=True)
class Paired:
    """A paired difference.

    Attributes:
        interval: of its mean over items.
        p: two-sided, from the t of that interval.
    """

    interval: Interval
    p: float


def seeds_mean(samples: Sequence[Samples]) -> Samples:
    """One figure with the mean over seeds as the value of each item; an item that a seed has no value for has none.

    Raises:
        UsageError: the seeds have other items.
    """
    first = samples[0]
    if any(not _alike(first, one) for one in samples):
        raise UsageError("seeds with other items have no mean", hint="measure all seeds on the same items")
    return replace(first, values=np.mean([one.values for one in samples], axis=0))


def of_items(samples: Samples, kept: npt.NDArray[np.bool_]) -> Samples:
    """The figure over some of its items."""
    clusters = None if samples.clusters is None else samples.clusters[kept]
    return replace(samples, values=samples.values[kept], tokens=samples.tokens[kept], clusters=clusters)


def paired(ours: Samples, theirs: Samples) -> Paired:
    """The mean of `ours` less that of `theirs` over the same items: shares, or changes of shares."""
    differences = ours.values - theirs.values
    known = ~np.isnan(differences)
    clusters = None if ours.clusters is None else ours.clusters[known]
    return Paired(ours.change_from(theirs), change_p(differences[known], clusters))


def scaled(samples: Samples, before: Samples, factor: float) -> Samples:
    """What is left of a change where it is only so large: `before` and `factor` of the way to `samples`."""
    return replace(samples, values=before.values + factor * (samples.values - before.values))


def sign_flip(changes: Sequence[float]) -> float:
    """The one-sided p of a rise over seeds: the share of all 2^n choices of signs whose mean is at least as large."""
    held = np.asarray(changes, np.float64)
    means = np.array(list(product((1.0, -1.0), repeat=len(held)))) @ np.abs(held)
    # The same sum in another order may differ in its last bit.
    return float((means >= held.sum() - 1e-12).mean())


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the order given (Holm, Scandinavian Journal of Statistics 6, 1979)."""
    adjusted = [0.0] * len(ps)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda place: ps[place])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = largest
    return adjusted


def _alike(one: Samples, other: Samples) -> bool:
    return (
        (one.role, one.kind) == (other.role, other.kind)
        and np.array_equal(one.tokens, other.tokens)
        and (one.clusters is None) == (other.clusters is None)
        and (one.clusters is None or other.clusters is None or np.array_equal(one.clusters, other.clusters))
    )
