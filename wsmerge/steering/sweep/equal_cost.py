"""Methods compared at equal cost: what each reaches where both have changed the model by as much.

A method has a curve for each sign of k: from k = 0, which costs nothing and changes nothing, through its measured strengths.
Between two of them the change of every item is taken as linear in k and the root of the cost too, as KL grows with the square
of k near 0: so two curves can be read at one cost. The difference of the two readings is paired, item by item; its interval
takes the cost as given.

Of the other method the sign with the larger effect is taken, which is in its favour.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from wsmerge.steering.bootstrap import Interval, change_interval, mean_interval
from wsmerge.steering.sweep.samples import Kind, Samples

__all__ = ["Comparison", "Curve", "Reading", "compare", "curves_of", "reading_at"]

Float64 = npt.NDArray[np.float64]


class Curve(NamedTuple):
    """One sign of one method, from k = 0 outwards.

    Attributes:
        strengths: k.
        costs: at each strength.
        changes: of the target's items, strengths x items; NaN where an item has no value.
    """

    strengths: tuple[float, ...]
    costs: tuple[float, ...]
    changes: Float64


class Reading(NamedTuple):
    """A curve at one cost: k, and the change of every item."""

    strength: float
    changes: Float64


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two methods at one cost.

    Attributes:
        method: the one whose picked strength gives the cost, or the largest cost that the other reaches if that is less.
        other: what it is compared with.
        measured_by: the figure that is the cost.
        cost: of both; nats of KL, or percent of perplexity.
        strengths: k of each, interpolated.
        effects: what each changes the target by at this cost, towards the aim; over the items with a value of both.
        difference: the first effect less the second.
    """

    method: str
    other: str
    measured_by: str
    cost: float
    strengths: tuple[float, float]
    effects: tuple[float, float]
    difference: Interval


def curves_of(
    points: Mapping[float, Mapping[str, Samples]], reference: Mapping[str, Samples], target: str, cost: str
) -> list[Curve]:
    """The curves of both signs that have been measured.

    Args:
        points: figures by strength; those without the two that are needed are left out, with all beyond them.
        reference: figures at k = 0.
        target: the figure whose change is the effect.
        cost: the figure that is the cost.
    """
    curves = []
    for sign in (-1, 1):
        ks, costs, changes = [0.0], [0.0], [np.zeros_like(reference[target].values)]
        for k in sorted((k for k in points if sign * k > 0), key=abs):
            found = points[k]
            if target not in found or cost not in found:
                break
            ks.append(k)
            change = found[cost].change_from(reference[cost]).value
            costs.append(100 * change if found[cost].kind == "perplexity" else change)
            changes.append(found[target].values - reference[target].values)
        if len(ks) > 1:
            curves.append(Curve(tuple(ks), tuple(costs), np.stack(changes)))
    return curves


def reading_at(curve: Curve, cost: float) -> Reading:
    """Where the curve first comes to `cost`, from k = 0 on; its costliest point where it never does."""
    for place in range(1, len(curve.costs)):
        low, high = curve.costs[place - 1 : place + 1]
        if low <= cost <= high and low < high:
            roots = [math.sqrt(max(0.0, value)) for value in (low, cost, high)]
            part = (roots[1] - roots[0]) / (roots[2] - roots[0]) if roots[0] < roots[2] else 1.0
            ends = zip(curve.strengths[place - 1 : place + 1], curve.changes[place - 1 : place + 1], strict=True)
            (k, before), (next_k, after) = ends
            # At a measured point an item needs no value at the one before.
            return Reading(k + part * (next_k - k), after if part == 1 else (1 - part) * before + part * after)
    most = int(np.argmax(curve.costs))
    return Reading(curve.strengths[most], curve.changes[most])


def compare(
    methods: tuple[str, str],
    ours: Curve,
    theirs: Sequence[Curve],
    *,
    cost: tuple[str, float],
    towards: float,
    samples: Samples,
) -> Comparison | None:
    """Compare one curve with the better of another method's, both read at the cost or at the largest that one reaches.

    Args:
        methods: their labels.
        ours: the curve of the first.
        theirs: those of the second, one for each sign.
        cost: the figure that it is, and how much.
        towards: 1 where the target is to rise, -1 where it is to fall, 0 where either is wanted.
        samples: of the target, whose kind and clusters decide the interval.

    Returns:
        None where no item has a value of both.
    """
    figure, most = cost
    found = []
    for other in theirs:
        level = min(most, max(ours.costs), max(other.costs))
        readings = reading_at(ours, level), reading_at(other, level)
        known = ~np.isnan(readings[0].changes + readings[1].changes)
        if known.any():
            changes = [reading.changes[known] for reading in readings]
            gains = [(towards or math.copysign(1.0, one.mean())) * one for one in changes]
            clusters = None if samples.clusters is None else samples.clusters[known]
            ks, effects = (readings[0].strength, readings[1].strength), (float(gains[0].mean()), float(gains[1].mean()))
            difference = _mean_gap(gains[0] - gains[1], samples.kind, clusters)
            found.append(Comparison(*methods, figure, level, ks, effects, difference))
    return max(found, key=lambda one: one.effects[1], default=None)


def _mean_gap(gaps: Float64, kind: Kind, clusters: npt.NDArray[np.int64] | None) -> Interval:
    of_shares = kind == "share" and np.abs(gaps).max() <= 1
    return (change_interval if of_shares else mean_interval)(gaps, clusters)
