"""Measuring every method at every strength, point by point, each written down before the next begins.

A point goes on where it stopped: measures that were finished, answers that were generated and scores that a judge gave are
not made again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, TypeAlias

from wsmerge.errors import NonFiniteError, UsageError
from wsmerge.steering.baselines.method import Method, Subject
from wsmerge.steering.sweep.answers import UnjudgedError
from wsmerge.steering.sweep.config import KL, Pick, SweepConfig
from wsmerge.steering.sweep.divergence import DivergenceScorer
from wsmerge.steering.sweep.equal_cost import Comparison, Curve, compare, curves_of
from wsmerge.steering.sweep.hints import HintScorer
from wsmerge.steering.sweep.items import Split
from wsmerge.steering.sweep.journal import Figures, Journal, PointKey
from wsmerge.steering.sweep.levels import Found, sizes_at
from wsmerge.steering.sweep.measures import Scorer, measure
from wsmerge.steering.sweep.picking import effect_of, is_affordable, pick_strength
from wsmerge.steering.sweep.results import BASE, FINE_TUNE, Picked, Point, SweepResult, figures_of
from wsmerge.steering.sweep.samples import Samples
from wsmerge.steering.sweep.strengths import KLStrength, KLStrengths

__all__ = ["Contestant", "Progress", "Sweep"]

Progress: TypeAlias = Callable[[PointKey], None]
"""Called before a point is measured."""


@dataclass(slots=True)
class Contestant:
    """A method and the strengths that it is measured at; it is made when it is first needed.

    Attributes:
        label: how tables name it.
        strengths: without 0.
        make: makes the method for a layer; None where the method has no layer to choose.
        candidates: layers to choose from; empty where there is nothing to choose.
        choose_at: the strength, above 0, at which layers are tried, or the KL that their strengths are to have.
        levels: the KL divergences whose strengths are to be found, beside `strengths`; None for none.
        stops: whether strengths beyond the first that is over the budget are left out, each sign apart.
        control_of: the method that this is a random direction for; None of the methods themselves.
    """

    label: str
    strengths: tuple[float, ...]
    make: Callable[[int | None], Method]
    candidates: tuple[int, ...] = ()
    choose_at: float | KLStrength = 1.0
    levels: KLStrengths | None = None
    stops: bool = False
    control_of: str | None = None
    _made: dict[int | None, Method] = field(default_factory=dict)

    def method(self, layer: int | None) -> Method:
        """The method for a layer, made once."""
        if layer not in self._made:
            self._made[layer] = self.make(layer)
        return self._made[layer]


class Sweep:
    """One run over all points; what the journal has is not measured again.

    Args:
        config: the sweep file.
        subject: the model under study.
        scorers: what is measured.
        journal: where points are written down.
        progress: called before each point.
    """

    def __init__(
        self,
        config: SweepConfig,
        subject: Callable[[], Subject],
        scorers: Mapping[str, Scorer],
        journal: Journal,
        progress: Progress | None = None,
    ) -> None:
        self._config = config
        self._subject = subject
        self._scorers = scorers
        self._journal = journal
        self._progress = progress
        self._layers: dict[str, int] = {}
        self._distances: dict[tuple[str, int | None, float], dict[float, float]] = {}
        self._sizes: dict[str, float] = {}
        self._aimed: dict[tuple[str, float], tuple[float, ...]] = {}
        self._told: list[str] = []
        self._order: list[PointKey] = []

    def run(
        self,
        contestants: Sequence[Contestant],
        original: Callable[[], AbstractContextManager[Subject]] | None = None,
    ) -> SweepResult:
        """Measure everything, and pick a strength for each method on validation.

        Args:
            contestants: the methods.
            original: opens the base of a fine-tune that is repaired; closed before the fine-tune is needed.

        Raises:
            NonFiniteError: the model as it is has a figure that is not finite.
            JudgeError: a judge failed; the journal has what was answered and scored so far.
        """
        if original is not None:
            self._measure_models(BASE, original)
        self._measure_models(self._reference, lambda: nullcontext(self._subject()))
        for contestant in contestants:
            self._measure_contestant(contestant)
        picks = tuple(self._pick(contestant.label) for contestant in contestants)
        by_label = {contestant.label: contestant for contestant in contestants}
        for picked in picks:
            if picked.strength != 0:
                self._measure(by_label[picked.method], picked.strength, "test")
        comparisons = tuple(self._comparisons(by_label, picks))
        points, told = tuple(self._points()), tuple(dict.fromkeys(self._told))
        return SweepResult(self._config, points, picks, dict(self._layers), comparisons, told)

    @property
    def _reference(self) -> str:
        return FINE_TUNE if self._config.repair is not None else BASE

    def _measure_models(self, label: str, opened: Callable[[], AbstractContextManager[Subject]]) -> None:
        """Measure a model as it is; it is loaded only where something is missing."""
        keys = [PointKey(label, 0.0, split) for split in _SPLITS]
        self._order += keys
        if any(self._is_missing(key, self._wanted(key)) for key in keys):
            with opened() as subject:
                for key in keys:
                    self._take(key, _same(subject), strict=True)

    def _measure_contestant(self, contestant: Contestant) -> None:
        if contestant.candidates:
            self._layers[contestant.label] = self._best_layer(contestant)
        passed: set[float] = set()
        for strength in sorted((*contestant.strengths, *self._sought(contestant)), key=abs):
            sign = math.copysign(1, strength)
            if sign in passed:
                continue
            for split in _SPLITS if self._config.test == "all" else _SPLITS[:1]:
                self._measure(contestant, strength, split)
            if contestant.stops and not self._is_affordable(PointKey(contestant.label, strength, "validation")):
                passed.add(sign)

    def _sought(self, contestant: Contestant) -> Iterator[float]:
        """The strengths whose KL is what is aimed at."""
        if contestant.levels is None:
            return
        layer = self._layers.get(contestant.label)
        for sign in contestant.levels.factors:
            for found in self._seek(contestant, sign, contestant.levels.values, layer):
                if found.size is not None:
                    key = contestant.label, sign * found.size
                    self._aimed[key] = (*self._aimed.get(key, ()), found.aimed)
                    yield sign * found.size

    def _seek(self, contestant: Contestant, sign: float, aimed: Sequence[float], layer: int | None) -> Sequence[Found]:
        """Find the strengths of one sign at which the KL on validation is as aimed; what is not reached is noted."""
        label = contestant.label
        found = sizes_at(
            aimed,
            lambda size: self._distance(contestant, sign * size, layer),
            self._distances.setdefault((label, layer, sign), {}),
            self._sizes.get(label, 1.0),  # the other sign, and the layer beside, are probably much alike
        )
        reached = [one.size for one in found if one.reached and one.size is not None]
        if reached:
            self._sizes[label] = reached[0]
        at_layer = "" if layer is None else f" at layer {layer}"
        self._told += [f"{label}{at_layer}: {_unreached(one, sign)}" for one in found if not one.reached]
        return found

    def _distance(self, contestant: Contestant, strength: float, layer: int | None) -> float:
        """The KL at a strength on validation, infinite where the model breaks; it is written down under a key of its own."""
        key = PointKey(contestant.label, strength, "validation", layer, KL)
        self._take(key, partial(self._applied, contestant, key), only=frozenset({KL}))
        samples = self._figures(key).get(KL)
        return math.inf if samples is None else samples.interval.value

    def _is_affordable(self, key: PointKey) -> bool:
        point = self._point(key)
        return bool(point.figures) and is_affordable(point.figures, self._config.pick)

    def _best_layer(self, contestant: Contestant) -> int:
        """The layer with the largest effect within the budget at -k or +k; the lowest of equal ones.

        Where no layer is within the budget the sizes are halved; where none ever is, the layer that moves the target most.
        """
        if len(contestant.candidates) == 1:
            return contestant.candidates[0]
        target, pick = self._config.target, self._config.pick
        if isinstance(contestant.choose_at, KLStrength):
            return self._best_layer_at(contestant, contestant.choose_at.kl)
        effects: dict[int, float] = {}
        for halved in range(_HALVINGS + 1):
            size = contestant.choose_at / 2**halved
            tried = [self._try(contestant, sign * size, layer) for layer in contestant.candidates for sign in (-1, 1)]
            found = [point for point in tried if target in point.figures]
            within = [point for point in found if is_affordable(point.figures, pick)]
            effects = {}
            for point in within or found:
                effect = effect_of(point.figures[target], pick if within else Pick(aim="change"), self._original())
                layer = point.key.layer or 0
                effects[layer] = max(effects.get(layer, -math.inf), effect)
            if within:
                break
        return _largest(effects, contestant)

    def _best_layer_at(self, contestant: Contestant, kl: float) -> int:
        """The layer with the largest effect at the strengths, one of each sign, at which the KL is so much."""
        target, effects = self._config.target, dict[int, float]()
        for layer in contestant.candidates:
            for sign in (-1.0, 1.0):
                (found,) = self._seek(contestant, sign, (kl,), layer)
                if found.size is None:
                    continue
                figures = self._try(contestant, sign * found.size, layer).figures
                if target in figures:
                    effect = effect_of(figures[target], self._config.pick, self._original())
                    effects[layer] = max(effects.get(layer, -math.inf), effect)
        return _largest(effects, contestant)

    def _try(self, contestant: Contestant, strength: float, layer: int) -> Point:
        """Measure on validation what decides between layers."""
        key = PointKey(contestant.label, strength, "validation", layer)
        self._take(key, partial(self._applied, contestant, key), only=self._config.deciding)
        return self._point(key)

    def _measure(self, contestant: Contestant, strength: float, split: Split) -> None:
        key = PointKey(contestant.label, strength, split)
        if key not in self._order:
            self._order.append(key)
            self._take(key, partial(self._applied, contestant, key))

    def _comparisons(self, contestants: Mapping[str, Contestant], picks: Sequence[Picked]) -> Iterator[Comparison]:
        """Every method with a pick against its random directions and the other methods, at what the pick costs."""
        reference = self._journal.points[PointKey(self._reference, 0.0, self._config.shown)]
        target = reference[self._config.target]
        by_perplexity = (name for name, samples in reference.items() if samples.kind == "perplexity")
        figure = KL if KL in reference else next(by_perplexity, None)
        if figure is None or target.kind == "perplexity":
            return
        for picked in picks:
            if picked.strength == 0 or contestants[picked.method].control_of is not None:
                continue
            own = [one for one in self._curves(picked.method, figure) if picked.strength in one.strengths]
            cost = own[0].costs[own[0].strengths.index(picked.strength)] if own else 0.0
            for other in contestants.values():
                if other.label == picked.method or other.control_of not in {None, picked.method} or cost <= 0:
                    continue
                if other.control_of is not None:
                    self._extend(other, figure, cost)
                found = compare(
                    (picked.method, other.label),
                    own[0],
                    self._curves(other.label, figure),
                    cost=(figure, cost),
                    towards=self._towards(target),
                    samples=target,
                )
                if found is not None:
                    yield found

    def _extend(self, control: Contestant, figure: str, cost: float) -> None:
        """Measure a random direction at larger strengths, of each sign, until it costs as much as what it is held against."""
        for sign in (-1, 1):
            strength = 1.0
            for _ in range(_EXTENSIONS):
                curve = next((one for one in self._curves(control.label, figure) if sign * one.strengths[-1] > 0), None)
                if curve is not None:
                    last, most = curve.costs[-1], max(curve.costs)
                    if most >= cost or last < most:  # reached, or grows no further
                        break
                    # KL grows about with the square of k; a little more than that reaches the cost.
                    step = 1.1 * math.sqrt(cost / last) if last > 0 else math.inf
                    strength = float(f"{sign * curve.strengths[-1] * min(max(step, 1.1), _LARGEST_STEP):.3g}")
                self._measure(control, sign * strength, self._config.shown)

    def _measured(self, label: str) -> list[PointKey]:
        """The points of a method on the items that are shown."""
        return [key for key in self._order if (key.method, key.split) == (label, self._config.shown)]

    def _curves(self, label: str, figure: str) -> list[Curve]:
        points = {key.strength: self._figures(key) for key in self._measured(label)}
        reference = self._journal.points[PointKey(self._reference, 0.0, self._config.shown)]
        return curves_of(points, reference, self._config.target, figure)

    def _towards(self, target: Samples) -> float:
        """The sign of the change of the target that is aimed at; 0 for either."""
        if self._config.pick.aim == "restore":
            original = self._journal.points[PointKey(BASE, 0.0, self._config.shown)][self._config.target]
            return math.copysign(1.0, original.interval.value - target.interval.value)
        return {"increase": 1.0, "decrease": -1.0}.get(self._config.pick.aim, 0.0)

    def _applied(self, contestant: Contestant, key: PointKey) -> AbstractContextManager[Subject]:
        layer = key.layer if key.layer is not None else self._layers.get(contestant.label)
        return contestant.method(layer).apply(self._subject(), key.strength)

    def _take(
        self,
        key: PointKey,
        opened: Callable[[], AbstractContextManager[Subject]],
        *,
        only: frozenset[str] | None = None,
        strict: bool = False,
    ) -> None:
        scorers = self._wanted(key, only)
        if self._is_missing(key, scorers):
            if self._progress is not None:
                self._progress(key)
            for name, scorer in scorers.items():
                if isinstance(scorer, DivergenceScorer):
                    scorer.remember(self._subject(), key.split, self._config.batch_size)
                if isinstance(scorer, HintScorer) and key.method != BASE:
                    known = self._journal.points[PointKey(BASE, 0.0, key.split)][f"{name} plain"]
                    scorers[name] = replace(scorer, plain=known.values)
            kept = self._kept(key)
            try:
                with opened() as subject:
                    notes = partial(self._journal.notes, kept)
                    figures = measure(scorers, subject, key.split, self._config.batch_size, notes)
            except (NonFiniteError, UnjudgedError):
                if strict:
                    raise
                figures = {}  # a strength at which the model breaks is a finding, and no reason to stop
            self._journal.add(kept, figures)

    def _wanted(self, key: PointKey, only: frozenset[str] | None = None) -> dict[str, Scorer]:
        """What is measured at a point, or those of it that `only` names."""
        wanted = {name: scorer for name, scorer in self._scorers.items() if only is None or name in only}
        if key.method == BASE and self._reference != BASE:
            wanted.pop(KL, None)  # changes are taken from the fine-tune, which is not opened yet
        return wanted

    def _is_missing(self, key: PointKey, wanted: Collection[str]) -> bool:
        """Whether the journal lacks a point, or a figure of it: of a layer that was only tried it has those that decide."""
        figures = self._journal.points.get(self._kept(key))
        return figures is None or (bool(figures) and not figures.keys() >= set(wanted))

    def _kept(self, key: PointKey) -> PointKey:
        """Where the journal has a point: under its layer where one was chosen, since another budget may choose another."""
        return key if key.layer is not None else replace(key, layer=self._layers.get(key.method))

    def _figures(self, key: PointKey) -> Figures:
        return self._journal.points[self._kept(key)]

    def _pick(self, label: str) -> Picked:
        points = [point for point in self._points() if point.key.method == label and point.key.split == "validation"]
        return pick_strength(label, points, self._config.target, self._config.pick, self._original())

    def _original(self) -> float | None:
        """The target of the original base on validation, where a fine-tune is repaired."""
        if self._config.repair is None:
            return None
        return self._journal.points[PointKey(BASE, 0.0, "validation")][self._config.target].interval.value

    def _points(self) -> Iterator[Point]:
        methods = list(dict.fromkeys(key.method for key in self._order))
        return map(self._point, sorted(self._order, key=lambda key: (methods.index(key.method), key.strength)))

    def _point(self, key: PointKey) -> Point:
        reference: dict[str, Samples] = self._journal.points[PointKey(self._reference, 0.0, key.split)]
        aimed = self._aimed.get((key.method, key.strength), ())
        return Point(key, figures_of(self._figures(key), reference), aimed)


def _largest(effects: Mapping[int, float], contestant: Contestant) -> int:
    """The layer with the largest effect, the lowest of equal ones."""
    if not effects:
        raise UsageError("no layer gives finite figures", where=contestant.label, hint="lower choose_at")
    return max(effects, key=lambda layer: effects[layer])


def _unreached(found: Found, sign: float) -> str:
    """Why no strength has the KL that is aimed at, and what is taken in its place."""
    side = "k > 0" if sign > 0 else "k < 0"
    if found.beyond is None:
        why = "the largest that was tried has less"
    elif found.beyond == math.inf:
        why = "the model breaks beyond"
    else:
        why = f"the next larger one that was tried has {found.beyond:.3g}"
    if found.size is None:
        return f"a KL of {found.aimed:g} is not reached at {side}, and no smaller one was found: {why}; nothing is measured for it"
    taken = f"k = {sign * found.size:+g} with {found.distance:.3g} stands in its place"
    return f"a KL of {found.aimed:g} is not reached at {side}: {why}; {taken}"


def _same(subject: Subject) -> Callable[[], AbstractContextManager[Subject]]:
    return lambda: nullcontext(subject)


_HALVINGS = 4
"""Of the strength at which layers are tried, where it is over the budget at all of them."""

_EXTENSIONS: Final = 5
_LARGEST_STEP: Final = 16.0

_SPLITS: tuple[Split, Split] = ("validation", "test")
