"""A sweep's results as tables and sentences for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from wsmerge.steering.bootstrap import Interval
from wsmerge.steering.sweep.config import KL, ControlKind
from wsmerge.steering.sweep.picking import is_affordable
from wsmerge.steering.sweep.results import BASE, Figure, Point, SweepResult

__all__ = ["Table", "comparison_table", "picked_table", "points_table", "sentences"]

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""Headings, and rows of cells."""


def points_table(result: SweepResult) -> Table:
    """Every point of the split that is shown: its figures, and whether it is within the budget."""
    names = result.figures
    rows = []
    for point in result.points:
        if point.key.split == result.shown:
            cells = tuple(_value(point, name) for name in names)
            rows.append((point.key.method, *_strength(point, result), *cells, _affordable(point, result)))
    return ("method", *_strength_headings(result), *names, "within budget"), rows


def picked_table(result: SweepResult) -> Table:
    """The models as they are, and each method at its picked strength, on the test items with intervals."""
    names = result.figures
    rows = []
    labels = [(label, 0.0) for label in dict.fromkeys((BASE, result.reference))]
    picked = [(one.method, one.strength) for one in result.picks if one.strength != 0]
    for label, strength in (*labels, *picked):
        point = next(
            p for p in result.points if (p.key.method, p.key.strength, p.key.split) == (label, strength, "test")
        )
        rows.append((label, *_strength(point, result), *(_with_interval(point, name) for name in names)))
    return ("method", *_strength_headings(result), *names), rows


def comparison_table(result: SweepResult) -> Table:
    """Methods with a pick against random directions and other methods, at equal cost."""
    rows = [
        (
            one.method,
            one.other,
            f"{one.cost:.3g} {'nats' if one.measured_by == KL else '%'}",
            *(f"{k:+.3g}" for k in one.strengths),
            *(f"{effect:+.3g}" for effect in one.effects),
            f"{one.difference.value:+.3g} [{one.difference.low:+.3g}, {one.difference.high:+.3g}]",
        )
        for one in result.comparisons
    ]
    cost = result.comparisons[0].measured_by if rows else KL
    return ("method", "against", cost, "k", "its k", "effect", "its effect", "difference"), rows


def sentences(result: SweepResult) -> Iterator[str]:
    """What was picked, and how it stands against random directions, in words."""
    yield from result.notes
    for picked in result.picks:
        layer = f" at layer {result.layers[picked.method]}" if picked.method in result.layers else ""
        moves = ""
        if picked.change is not None:
            change = picked.change
            interval = f"[{change.low:+.3g}, {change.high:+.3g}]"
            moves = f"moves {result.config.target} by {change.value:+.3g} {interval} on validation"
        if picked.strength != 0:
            found = result.point(picked.method, picked.strength, "validation")
            aimed = f" (KL {', '.join(f'{kl:g}' for kl in found.aimed)})" if found is not None and found.aimed else ""
            yield f"{picked.method}{layer}: k = {picked.strength:+g}{aimed} is the best within the budget; it {moves}"
        elif picked.doubtful is not None:
            yield (
                f"{picked.method}{layer}: nothing is picked: within the budget k = {picked.doubtful:+g} has the largest "
                f"effect, and the interval of its change holds 0; it {moves}"
            )
        else:
            yield f"{picked.method}{layer}: nothing is picked: no strength has an effect within the budget"
    yield from _against_random(result)
    if result.comparisons and result.shown == "validation":
        yield (
            "methods are compared on the items that strengths were picked on, which flatters what was picked: "
            "with test: all they are compared on others"
        )
    for method in result.methods:
        if left := result.unmeasured(method):
            told = " and ".join(f"k = {end:+g}" for end in _ends(result, method, left))
            yield f"{method}: beyond {told} nothing was measured, since the budget is passed there"


def _against_random(result: SweepResult) -> Iterator[str]:
    """How far the effect of each method is above those of random directions."""
    for method in dict.fromkeys(one.method for one in result.comparisons):
        for kind, words in _random_words(result).items():
            against = [
                one for one in result.comparisons if one.method == method and result.random_kinds.get(one.other) == kind
            ]
            if against:
                apart = sum(one.difference.low > 0 for one in against)
                yield (
                    f"{method}: at equal {against[0].measured_by} its effect is {against[0].effects[0]:.3g}, that of {words} "
                    f"at most {max(one.effects[1] for one in against):.3g}; it is larger than {apart} of {len(against)}, "
                    "by intervals without 0"
                )


def _random_words(result: SweepResult) -> dict[ControlKind, str]:
    """What random directions are called, by their kind."""
    kinds = dict.fromkeys(result.random_kinds.values())
    return {kind: "random directions" if len(kinds) == 1 else f"random directions ({kind})" for kind in kinds}


def _ends(result: SweepResult, method: str, left: Sequence[float]) -> Iterator[float]:
    """The outermost measured strength of each sign that has others beyond it."""
    measured = [point.key.strength for point in result.curve(method, "validation")]
    for sign in sorted({math.copysign(1, k) for k in left}):
        yield sign * max(sign * k for k in measured)


def _strength_headings(result: SweepResult) -> tuple[str, ...]:
    return ("k", "KL aimed at") if result.seeks_kl else ("k",)


def _strength(point: Point, result: SweepResult) -> tuple[str, ...]:
    """k, and in a sweep that seeks strengths by their KL what was aimed at."""
    aimed = (", ".join(f"{kl:g}" for kl in point.aimed),) if result.seeks_kl else ()
    return (f"{point.key.strength:+g}", *aimed)


def _affordable(point: Point, result: SweepResult) -> str:
    if not point.figures:
        return "broken"
    return "yes" if is_affordable(point.figures, result.config.pick) else "no"


def _value(point: Point, name: str) -> str:
    figure = point.figures.get(name)
    if figure is None:
        return "" if point.figures else "not finite"
    return _number(figure, figure.value.value)


def _with_interval(point: Point, name: str) -> str:
    figure = point.figures.get(name)
    if figure is None:
        return "" if point.figures else "not finite"
    interval: Interval = figure.value
    return f"{_number(figure, interval.value)} [{_number(figure, interval.low)}, {_number(figure, interval.high)}]"


def _number(figure: Figure, value: float) -> str:
    return f"{value:.1%}" if figure.kind == "share" else f"{value:.4g}"
