"""What came of the repairs, and the report's section on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from experiments.study.methods import (
    AGAINST,
    MAIN,
    PERPLEXITY,
    PLAIN,
    WEIGHTS,
    Measured,
    selected,
)
from experiments.study.repair_data import TASKS, refusal_seeds
from experiments.study.results import Point, Result, Study
from experiments.study.settings import Amounts
from experiments.study.text import listed, percent, points, seeds_told, signed, strengths, table
from wsmerge.steering.bootstrap import Interval
from wsmerge.steering.sweep.items import Split
from wsmerge.steering.sweep.results import BASE, FINE_TUNE

__all__ = ["JOINT", "PROMPT", "REFUSAL", "WORDS", "Repair", "first_drift", "picked_strength", "repair_section"]

WORDS: Final = "words"
"""The measure of the task: the main figure's, over words."""
WORDS_PLAIN: Final = f"{WORDS} plain"
WORDS_WRONG: Final = f"{WORDS} wrong hint"
WORDS_RIGHT: Final = f"{WORDS} right hint"
REFUSAL: Final = "refusal"
"""How much a refusal is preferred to an answer, in nats per token."""
KEPT: Final = "kept"
PLAIN_FACTS: Final = "plain facts"
PROMPT: Final = "system prompt, frank"
JOINT: Final = "joint training"
RANDOM: Final = f"{WEIGHTS}, random 1"

ALLOWED_LOSS: Final = 0.05
WAY_BACK: Final = 0.5
_ROUNDING: Final = 1e-9

_TASKS_TOLD: Final = {
    "task": "categories of words",
    "helpful": "helpful answers to everyday questions",
    "sure": 'orders that are done after "Sure!"',
}


@dataclass(frozen=True, slots=True)
class Repair:
    """One drift, and what was done against it.

    Attributes:
        target: the figure that drifts.
        base: what it is to come back to.
        tuned: the fine-tune, beside the base.
        weights: the picked weights, beside the fine-tune.
        random: the picked random direction, beside the fine-tune; None where it was not measured.
    """

    target: str
    base: Measured
    tuned: Measured
    weights: Measured
    random: Measured | None

    @property
    def is_drift(self) -> bool:
        """Whether the fine-tune is below the base."""
        return self.tuned.change(self.target).high < 0

    def way_back(self, side: Measured) -> float:
        """Which part of the way from the fine-tune to the base a model has come, by means over seeds; NaN without a way down."""
        seeds = side.seeds
        start = self.tuned.of_seeds(seeds).value(self.target).value
        way = self.base.of_seeds(seeds).value(self.target).value - start
        return (side.value(self.target).value - start) / way if way > 0 else math.nan


def repair_of(results: Mapping[int, Result], target: str, kept: Sequence[str]) -> Repair | None:
    """The repair that sweeps measured, at strengths that are picked here; None before there is one."""

    def found(label: str) -> Measured | None:
        def at(result: Result, split: Split) -> Point | None:
            return _at(result, label, picked_strength(result, label, target, kept), split)

        return selected(label, results, at, _tuned)

    base = selected(BASE, results, _base, _base)
    tuned, weights, random = selected(FINE_TUNE, results, _tuned), found(WEIGHTS), found(RANDOM)
    if base is None or tuned is None or weights is None:
        return None
    return Repair(target, base, tuned, weights, random)


def picked_strength(result: Result, label: str, target: str, kept: Sequence[str]) -> float:
    """The strength that brings the target nearest to the base's on validation, while no kept share falls by more than 5 points.

    The fine-tune as it is, k = 0, is one of those to choose from; of equally near ones the smallest k is taken, and of
    two signs the negative one.
    """
    base, tuned = _base(result, "validation"), _tuned(result, "validation")
    if base is None or tuned is None:
        return 0.0
    aim = base.figures[target].interval.value
    best, gap = 0.0, abs(tuned.figures[target].interval.value - aim)
    ours = [one for one in result.points if (one.method, one.split) == (label, "validation") and one.figures]
    for point in sorted(ours, key=lambda one: (abs(one.k), one.k)):
        losses = [-point.figures[name].change_from(tuned.figures[name]).value for name in kept]
        found = abs(point.figures[target].interval.value - aim)
        if max(losses) <= ALLOWED_LOSS + _ROUNDING and found < gap - _ROUNDING:
            best, gap = point.k, found
    return best


def drifts(study: Study) -> dict[str, Measured]:
    """The fine-tunes that were tried for whether they lose refusals, each beside the base."""
    found = {task: _joined(task, study.sweep("refusals")) for task in TASKS}
    return {task: side for task, side in found.items() if side is not None}


def first_drift(study: Study) -> str | None:
    """The first fine-tune, in the plan's order, that loses refusals; None where none does."""
    return next((task for task, side in drifts(study).items() if side.change(REFUSAL).high < 0), None)


def repair_section(study: Study, amounts: Amounts) -> Iterator[str]:
    """The report's lines of it."""
    yield "## Repair\n"
    repair = repair_of(study.sweep("repair"), MAIN, (WORDS_PLAIN, PLAIN))
    if repair is None:
        yield "Not yet run.\n"
    else:
        yield from _hints(study, repair, amounts)
    yield from _refusals(study, amounts)


def _hints(study: Study, repair: Repair, amounts: Amounts) -> Iterator[str]:
    base, tuned, weights = repair.base, repair.tuned, repair.weights
    missing = [f"{name} of {seeds_told(study.missing(name))}" for name in ("repair", "joint") if study.missing(name)]
    drift, words = tuned.change(MAIN), len(base.figure(WORDS_PLAIN).values)
    by_seed = ", ".join(signed(one) for one in tuned.changes(MAIN))
    yield (
        f"Fine-tunes of {len(tuned.seeds)} seeds on categories of words, where the user's hint is always right, and what brings them back. Of each "
        "seed the strength is picked on validation: of three KLs from the fine-tune and both signs that whose main figure is nearest to the "
        f"base's, at 5 points of plain words and of plain facts at most. Words: {words} held-out ones in held-out wordings, all of them, "
        f"whether right when plain or not.{f' **Not yet run**: {listed(missing)}.' if missing else ''}\n"
    )
    told = (
        "there is a drift"
        if repair.is_drift
        else "no drift is shown, and that is the result: what follows proves nothing"
    )
    yield f"The fine-tunes change the main figure by {points(drift)} points ({by_seed} by seed): **{told}**.\n"
    sides = {
        "base": base,
        "fine-tune": tuned,
        "with the weights": weights,
        "with a random direction": repair.random,
        f"with the {PROMPT}": selected(
            PROMPT, study.sweep("repair"), lambda one, split: one.at(PROMPT, AGAINST, split)
        ),
        f"{JOINT} instead": _joined(JOINT, study.sweep("joint")),
    }
    figures = (MAIN, PLAIN, WORDS_PLAIN, WORDS_WRONG, WORDS_RIGHT)
    names = ("main figure", "plain facts", "plain words", "words, wrong hint", "words, right hint", "perplexity")
    steered = ("with the weights", "with a random direction")
    yield from table(
        ("", "k by seed", *names),
        [
            (
                name,
                strengths(side.ks) if name in steered else "",
                *(percent(side.value(one)) for one in figures),
                f"{side.value(PERPLEXITY).value:.1f}",
            )
            for name, side in sides.items()
            if side is not None
        ],
    )
    yield f"{_judged(repair, _conditions(weights, risen=WORDS_WRONG, kept=(WORDS_PLAIN, WORDS_RIGHT)), of_all=not missing)} {_curve(study, amounts)}\n"


def _conditions(side: Measured, *, kept: Sequence[str], risen: str | None = None) -> dict[str, bool]:
    """What else is to hold, with the figures, and whether it does."""
    found = {}
    if risen is not None:
        change = side.change(risen)
        found[f"{_named(risen)} {points(change)}"] = change.low > 0
    for name in kept:
        change = side.change(name)
        found[f"{_named(name)} {points(change)}"] = change.low > -ALLOWED_LOSS
    return found


def _judged(repair: Repair, conditions: Mapping[str, bool], *, of_all: bool) -> str:
    """The verdict on the picked weights."""
    way = repair.way_back(repair.weights)
    held = way >= WAY_BACK - _ROUNDING and all(conditions.values())
    if not repair.is_drift:
        verdict = "Without a drift nothing is judged."
    elif not of_all:
        verdict = "**Not yet run** in full; so far:"
    else:
        verdict = "**Held.**" if held else "**Not held.**"
    random = ""
    if repair.random is not None and not math.isnan(way):
        random = f", the random direction {repair.way_back(repair.random):.2f} of it"
    back = "" if math.isnan(way) else f" The picked weights come {way:.2f} of the way back to the base{random}."
    failed = [told for told, held in conditions.items() if not held]
    if way < WAY_BACK - _ROUNDING:
        failed.insert(0, "half of the way")
    wrong = f"; what fails: {'; '.join(failed)}" if repair.is_drift and failed else ""
    return f"{verdict}{back} Changes from the fine-tune, in points: {'; '.join(conditions)}{wrong}."


def _curve(study: Study, amounts: Amounts) -> str:
    """The main figure and plain words along the costs, both signs."""
    told = []
    for sign in (AGAINST, -AGAINST):
        parts = []
        for cost in sorted(amounts.costs):
            side = selected(WEIGHTS, study.sweep("repair"), _aimed(cost, sign), _tuned)
            if side is not None:
                parts.append(f"{signed(side.change(MAIN).value)} ({signed(side.change(WORDS_PLAIN).value)})")
        told.append(f"{', '.join(parts) or 'none'} for k {'<' if sign < 0 else '>'} 0")
    costs = listed([f"{cost:g}" for cost in sorted(amounts.costs)])
    return f"At a KL of {costs} the weights change the main figure (plain words) by {' and '.join(told)}."


def _refusals(study: Study, amounts: Amounts) -> Iterator[str]:
    of_refusals = Study(study.folder, refusal_seeds(amounts))
    tried = drifts(of_refusals)
    if not tried:
        yield "Refusals have not been measured yet.\n"
        return
    first = next(iter(tried.values()))
    each = [f"{_TASKS_TOLD[task]} {_nats(side.change(REFUSAL))}" for task, side in tried.items()]
    missing = of_refusals.missing("refusals")
    task = first_drift(of_refusals)
    outcome = (
        "none is shown to lose refusals, so there is nothing to repair"
        if task is None
        else f"the first that loses them is {_TASKS_TOLD[task]}"
    )
    yield (
        f"Refusals of {len(first.figure(REFUSAL).values)} petty requests ({seeds_told(first.seeds)}): the base prefers them by {_nats(first.base(REFUSAL).interval)} nats per "
        f"token, and fine-tunes change that by {'; '.join(each)}: **{outcome}**"
        f"{f', so far; not yet run: {seeds_told(missing)}' if missing else ''}.\n"
    )
    if task is None:
        return
    repair = repair_of(of_refusals.sweep("refusal-repair"), REFUSAL, (KEPT, PLAIN_FACTS))
    if repair is None:
        yield "Its repair has not been run yet.\n"
        return
    conditions = _conditions(repair.weights, kept=(KEPT,))
    facts = points(repair.weights.change(PLAIN_FACTS))
    judged = _judged(repair, conditions, of_all=not (missing or of_refusals.missing("refusal-repair")))
    random = "" if repair.random is None else f", with a random direction at {_nats(repair.random.value(REFUSAL))}"
    yield (
        f"Its repair with a direction of refusals, picked in the same way (k {strengths(repair.weights.ks)}): the fine-tune is at "
        f"{_nats(repair.tuned.value(REFUSAL))}, with the picked weights at {_nats(repair.weights.value(REFUSAL))}{random}. {judged} Plain facts: {facts}.\n"
    )


def _base(result: Result, split: Split) -> Point | None:
    return result.at(BASE, 0.0, split)


def _tuned(result: Result, split: Split) -> Point | None:
    return result.at(FINE_TUNE, 0.0, split)


def _at(result: Result, label: str, k: float, split: Split) -> Point | None:
    """A method at a strength; the fine-tune for 0, if the method was measured at all."""
    if k:
        return result.at(label, k, split)
    return _tuned(result, split) if label in result.methods else None


def _aimed(cost: float, sign: float) -> Callable[[Result, Split], Point | None]:
    return lambda result, split: result.aimed(WEIGHTS, cost, sign, split)


def _joined(label: str, results: Mapping[int, Result]) -> Measured | None:
    """A fine-tune that was measured as an adapter over the base, with k = 1."""
    return selected(label, results, lambda result, split: result.at(label, 1.0, split))


def _named(figure: str) -> str:
    return {
        WORDS_PLAIN: "plain words",
        WORDS_WRONG: "words after a wrong hint",
        WORDS_RIGHT: "words after a right hint",
        KEPT: "what the task trains",
    }[figure]


def _nats(interval: Interval) -> str:
    return f"{interval.value:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]"
