"""The study's methods at one cost, over seeds, and held against each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from experiments.study.results import Point, Result, Study
from experiments.study.settings import PRIMARY_COST
from experiments.study.statistics import Paired, holm, paired, seeds_mean
from wsmerge.steering.bootstrap import Interval
from wsmerge.steering.sweep.config import KL
from wsmerge.steering.sweep.items import Split
from wsmerge.steering.sweep.levels import TOLERANCE
from wsmerge.steering.sweep.results import BASE
from wsmerge.steering.sweep.samples import Samples

__all__ = [
    "AGAINST",
    "COMPARED_SWEEPS",
    "DENIAL",
    "MAIN",
    "PERPLEXITY",
    "PLAIN",
    "RIGHT_HINT",
    "WEIGHTS",
    "WRONG_HINT",
    "Compared",
    "Measured",
    "Methods",
    "is_control",
    "selected",
    "shown",
]

WEIGHTS: Final = "weights"
AGAINST: Final = -1.0
"""The sign of k that is against sycophancy."""
MAIN: Final = "facts"
"""Right answers after a wrong hint, over the items that the base answers rightly when plain."""
PLAIN: Final = "facts plain"
WRONG_HINT: Final = "facts wrong hint"
RIGHT_HINT: Final = "facts right hint"
DENIAL: Final = "facts denial"
PERPLEXITY: Final = "plain text"

_PROMPT: Final = "system prompt, "
_RANDOM: Final = ", random "
_FORMALITY: Final = "formality"
_NAMES: Final = {WEIGHTS: "contrastive weights", "biases": "contrastive biases", _FORMALITY: "formality direction"}
COMPARED_SWEEPS: Final = ("facts", "activations", "biases", "controls")
"""Those with methods that are compared; a label is that of the first one that has it."""


def is_control(label: str) -> bool:
    """Whether a method is one that is to do nothing."""
    return _RANDOM in label or label == _FORMALITY


def is_prompt(label: str) -> bool:
    """Whether a method is a system prompt, which has a cost of its own."""
    return label.startswith(_PROMPT)


def is_measured_once(label: str) -> bool:
    """Whether a method is the same for all seeds."""
    return is_prompt(label) or label == _FORMALITY


def shown(label: str) -> str:
    """A method as the report calls it, without commas: it stands in lists."""
    if _RANDOM in label:
        return f"random direction ({label.partition(_RANDOM)[2].rpartition(' ')[0] or 'isotropic'})"
    if label in _NAMES:
        return _NAMES[label]
    head, _, kind = label.partition(", ")
    return f"{head} ({kind})" if kind else head


@dataclass(frozen=True, slots=True)
class Measured:
    """A method at one cost, or at the strengths that were picked, over the seeds that are there.

    Attributes:
        label: the method's.
        points: of each seed, by split.
        bases: the models at k = 0 beside them.
    """

    label: str
    points: Mapping[int, Mapping[Split, Point]]
    bases: Mapping[int, Mapping[Split, Point]]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those that are there."""
        return tuple(self.points)

    @property
    def ks(self) -> tuple[float, ...]:
        """The strength of each seed."""
        return tuple(by_split["test"].k for by_split in self.points.values())

    @property
    def layers(self) -> tuple[int, ...]:
        """The layer of each seed, where one was chosen."""
        found = (by_split["test"].layer for by_split in self.points.values())
        return tuple(layer for layer in found if layer is not None)

    def figure(self, name: str, split: Split = "test") -> Samples:
        """The seeds' mean of each item."""
        return seeds_mean([by_split[split].figures[name] for by_split in self.points.values()])

    def base(self, name: str, split: Split = "test") -> Samples:
        """The same of the model at k = 0."""
        return seeds_mean([by_split[split].figures[name] for by_split in self.bases.values()])

    def value(self, name: str, split: Split = "test") -> Interval:
        """A figure."""
        return self.figure(name, split).interval

    def change(self, name: str, split: Split = "test") -> Interval:
        """Its change from k = 0."""
        return self.figure(name, split).change_from(self.base(name, split))

    def changes(self, name: str) -> list[float]:
        """The change of each seed, on test."""
        return [
            by_split["test"].figures[name].change_from(self.bases[seed]["test"].figures[name]).value
            for seed, by_split in self.points.items()
        ]

    def kl(self, split: Split = "validation") -> float:
        """The KL divergence from the base, as the mean over seeds."""
        return self.value(KL, split).value

    def reaches(self, kl: float) -> bool:
        """Whether every seed has the cost that is aimed at, on the text that strengths are found on."""
        costs = [by_split["validation"].figures[KL].interval.value for by_split in self.points.values()]
        return all(abs(cost - kl) <= TOLERANCE * kl * (1 + 1e-6) for cost in costs)

    def of_seeds(self, seeds: Sequence[int]) -> Measured:
        """The same over some of the seeds."""
        kept = [seed for seed in self.seeds if seed in seeds]
        return Measured(
            self.label, {seed: self.points[seed] for seed in kept}, {seed: self.bases[seed] for seed in kept}
        )


@dataclass(frozen=True, slots=True)
class Compared:
    """The weights held against another method.

    Attributes:
        ours: the weights at the cost that is compared at.
        theirs: the other method.
        difference: ours less theirs, of the main figure over the same items.
        adjusted: its p by Holm's correction over all that are compared.
    """

    ours: Measured
    theirs: Measured
    difference: Paired
    adjusted: float

    @property
    def is_ahead(self) -> bool:
        """Whether the other method raises the main figure by less."""
        return self.difference.interval.low > 0 and self.adjusted < 0.05


class Methods:
    """What the study's sweeps have of each method.

    Args:
        study: the results.
        costs: the KL divergences that weights are measured at.
    """

    def __init__(self, study: Study, costs: Sequence[float]) -> None:
        self.study = study
        self.costs = tuple(costs)

    @property
    def labels(self) -> tuple[str, ...]:
        """All methods, in the order of the sweeps, controls last."""
        sweeps = [result for name in COMPARED_SWEEPS for result in self.study.sweep(name).values()]
        found = dict.fromkeys(method for result in sweeps for method in result.methods)
        return tuple(sorted(found, key=is_control))

    @property
    def prompts(self) -> tuple[str, ...]:
        """The system prompts."""
        return tuple(label for label in self.labels if is_prompt(label))

    def base(self) -> Measured | None:
        """The model as it is; None before anything was measured."""
        return selected(BASE, self.study.sweep("facts"), lambda result, split: result.at(BASE, 0.0, split))

    def at(
        self, label: str, kl: float = PRIMARY_COST, sign: float = AGAINST, sweep: str | None = None
    ) -> Measured | None:
        """A method at a KL divergence on one side of k = 0; a system prompt at its own. None where it was not measured."""
        if is_prompt(label):
            return selected(label, self._of(label), lambda result, split: result.at(label, sign, split))
        results = self._of(label) if sweep is None else self.study.sweep(sweep)
        return selected(label, results, lambda result, split: result.aimed(label, kl, sign, split))

    def at_ks(self, label: str, ks: Mapping[int, float], sweep: str) -> Measured | None:
        """A method at one strength of each seed in one sweep, 0 for the base; None where it was not measured."""
        results = {seed: one for seed, one in self.study.sweep(sweep).items() if seed in ks}
        return selected(label, results, lambda result, split: result.at(label, ks[result.seed], split))

    def in_favour(self, label: str, kl: float = PRIMARY_COST) -> Measured | None:
        """A control on that side of k = 0, for each seed, where the main figure rises more; other methods as `at` has them."""
        sides = [side for sign in (AGAINST, -AGAINST) if (side := self.at(label, kl, sign)) is not None]
        if not sides or not is_control(label):
            return self.at(label, kl)
        best: dict[int, Measured] = {}
        for side in sides:
            for seed, change in zip(side.seeds, side.changes(MAIN), strict=True):
                if seed not in best or change > best[seed].of_seeds([seed]).changes(MAIN)[0]:
                    best[seed] = side
        seeds = sorted(best)
        return Measured(
            label, {seed: best[seed].points[seed] for seed in seeds}, {seed: best[seed].bases[seed] for seed in seeds}
        )

    def picked(self, label: str) -> Measured | None:
        """A method at the strength that each seed picked within the budget; the base where it picked none."""
        return selected(
            label, self._of(label), lambda result, split: result.at(label, result.picks.get(label, 0.0), split)
        )

    def compared(self, kl: float = PRIMARY_COST) -> list[Compared]:
        """The weights against every other method and control at one cost; a system prompt at its own, if that is larger."""
        pairs = list(self._pairs(kl))
        found = [paired(ours.figure(MAIN), theirs.figure(MAIN)) for ours, theirs in pairs]
        adjusted = holm([one.p for one in found])
        return [Compared(*pair, one, p) for pair, one, p in zip(pairs, found, adjusted, strict=True)]

    def nearest_below(self, kl: float) -> Measured | None:
        """The weights at the largest cost that is no larger than `kl`; None where all are."""
        sides = [side for cost in self.costs if (side := self.at(WEIGHTS, cost)) is not None]
        return max((side for side in sides if side.kl() <= kl), key=lambda side: side.kl(), default=None)

    def _pairs(self, kl: float) -> Iterator[tuple[Measured, Measured]]:
        weights = self.at(WEIGHTS, kl)
        for label in self.labels:
            theirs = self.in_favour(label, kl)
            if label == WEIGHTS or theirs is None:
                continue
            ours = self.nearest_below(theirs.kl()) if is_prompt(label) else weights
            if ours is None:
                continue
            if not is_measured_once(label):
                both = [seed for seed in ours.seeds if seed in theirs.seeds]
                ours, theirs = ours.of_seeds(both), theirs.of_seeds(both)
            if ours.seeds:
                yield ours, theirs

    def _of(self, label: str) -> Mapping[int, Result]:
        """The results of the first sweep that has a method."""
        for name in COMPARED_SWEEPS:
            held = {seed: one for seed, one in self.study.sweep(name).items() if label in one.methods}
            if held:
                return held
        return {}


def selected(
    label: str,
    results: Mapping[int, Result],
    find: Callable[[Result, Split], Point | None],
    before: Callable[[Result, Split], Point | None] = lambda result, split: result.at(BASE, 0.0, split),
) -> Measured | None:
    """What `find` finds in results, beside what `before` does, over the seeds that have both on both splits; None without any."""
    points, bases = {}, {}
    splits: tuple[Split, Split] = ("validation", "test")
    for seed, result in results.items():
        mine = {split: point for split in splits if (point := find(result, split)) is not None}
        prior = {split: point for split in splits if (point := before(result, split)) is not None}
        if len(mine) == len(prior) == len(splits):
            points[seed], bases[seed] = mine, prior
    return Measured(label, points, bases) if points else None
