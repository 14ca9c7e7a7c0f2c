"""Picking a strength: the largest effect on validation that costs no more than it may; and what is on the Pareto front.

A strength is affordable where no figure's cost is above what the budget has for its role. Of the affordable ones whose
effect is above 0, and whose paired change from k = 0 has an interval without 0, the largest effect wins, of equal effects
the smaller |k|, of equal |k| the negative one. If there is none the pick is k = 0: the model as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from wsmerge.steering.sweep.config import Pick
from wsmerge.steering.sweep.measuring import Role
from wsmerge.steering.sweep.results import Figure, Picked, Point

__all__ = ["effect_of", "is_affordable", "pareto_front", "pick_strength"]


def effect_of(figure: Figure, pick: Pick, original: float | None = None) -> float:
    """What a change is worth towards the aim, in the figure's own unit.

    Args:
        figure: the target at some strength.
        pick: what is aimed at.
        original: the target of the original base, which `restore` aims at.
    """
    change = figure.change.value
    if pick.aim == "increase":
        return change
    if pick.aim == "decrease":
        return -change
    if pick.aim == "change" or original is None:
        return abs(change)
    before = figure.value.value - change
    return abs(before - original) - abs(figure.value.value - original)


def is_affordable(figures: Mapping[str, Figure], pick: Pick) -> bool:
    """Whether no figure costs more than it may."""
    budget: dict[Role, float] = {
        "capability": pick.capability_drop,
        "coherence": pick.coherence_drop,
        "valid": pick.valid_drop,
        "perplexity": pick.perplexity_rise,
    }
    # A cost that is the budget to the digit is affordable, whatever its last bit.
    return all(figure.cost <= budget[figure.role] + 1e-9 for figure in figures.values() if figure.role in budget)


def pick_strength(
    method: str, points: Iterable[Point], target: str, pick: Pick, original: float | None = None
) -> Picked:
    """The strength of `method` that is picked among its points on validation."""
    best = doubtful = Picked(method, 0.0, 0.0)
    for point in sorted(points, key=lambda point: (abs(point.key.strength), point.key.strength)):
        if target in point.figures and is_affordable(point.figures, pick):
            figure = point.figures[target]
            found = Picked(method, point.key.strength, effect_of(figure, pick, original), figure.change)
            if not figure.change.excludes_zero:
                doubtful = max(doubtful, found, key=lambda one: one.effect)
            elif found.effect > best.effect:
                best = found
    if best.strength == 0 and doubtful.strength != 0:
        return replace(best, change=doubtful.change, doubtful=doubtful.strength)
    return best


Item = TypeVar("Item")


def pareto_front(items: Sequence[tuple[float, float, Item]]) -> list[Item]:
    """Of (cost, effect, item) the items that no other beats in one without being worse in the other, cheapest first."""
    front: list[Item] = []
    best: tuple[float, float] | None = None
    for cost, effect, item in sorted(items, key=lambda one: (one[0], -one[1])):
        if best is None or effect > best[1] or (cost, effect) == best:
            front.append(item)
            best = cost, effect
    return front
