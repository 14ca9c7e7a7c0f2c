"""What came of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from wsmerge.steering.bootstrap import Interval
from wsmerge.steering.sweep.config import ControlKind, SweepConfig
from wsmerge.steering.sweep.equal_cost import Comparison
from wsmerge.steering.sweep.items import Split
from wsmerge.steering.sweep.journal import PointKey
from wsmerge.steering.sweep.measuring import Role
from wsmerge.steering.sweep.samples import Kind, Samples

__all__ = ["BASE", "FINE_TUNE", "Figure", "Picked", "Point", "SweepResult", "figures_of"]

BASE = "base"
FINE_TUNE = "fine-tune"


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of one model.

    Attributes:
        role: what it means to the pick.
        kind: `share`, `mean` or `perplexity`.
        value: the figure.
        change: from the model at k = 0, over the same items; of a perplexity relative to it.
    """

    role: Role
    kind: Kind
    value: Interval
    change: Interval

    @property
    def cost(self) -> float:
        """What the change costs: points that were lost, or percent by which a perplexity rose; 0 for a behaviour and a distance."""
        if self.role in {"behaviour", "distance"}:
            return 0.0
        return 100 * (self.change.value if self.kind == "perplexity" else -self.change.value)


@dataclass(frozen=True, slots=True)
class Point:
    """A method at one strength on one split; without figures where a figure was not finite.

    Attributes:
        key: which.
        figures: by name.
        aimed: the KL divergences that the strength was found for, on validation.
    """

    key: PointKey
    figures: Mapping[str, Figure]
    aimed: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Picked:
    """The strength of one method that was picked on validation.

    Attributes:
        method: its label.
        strength: k; 0 where no strength has an effect within the budget.
        effect: what the target gained on validation, towards the aim, in its own unit.
        change: the target's change from k = 0 on validation, at `strength` or, where that is 0, at `doubtful`.
        doubtful: where nothing is picked, the affordable strength with the largest effect towards the aim: its interval
            holds 0. None where there is no such strength.
    """

    method: str
    strength: float
    effect: float
    change: Interval | None = None
    doubtful: float | None = None


@dataclass(frozen=True, slots=True)
class SweepResult:
    """A finished sweep.

    Attributes:
        config: the sweep file.
        points: everything that was measured: the models that methods are compared with first, then method by method.
        picks: a strength for each method.
        layers: the layer that was chosen, by the method's label.
        comparisons: methods with a pick against all others, at equal cost, on the items that are shown.
        notes: KL divergences that no strength was found for, and what keeps methods from being compared on the same footing.
    """

    config: SweepConfig
    points: tuple[Point, ...]
    picks: tuple[Picked, ...]
    layers: Mapping[str, int]
    comparisons: tuple[Comparison, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def seeks_kl(self) -> bool:
        """Whether strengths were found by their KL divergence."""
        return any(point.aimed for point in self.points)

    @property
    def reference(self) -> str:
        """What changes are taken from: `base`, or the `fine-tune` that is repaired."""
        return FINE_TUNE if self.config.repair is not None else BASE

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods' labels, in the file's order, each followed by its random directions."""
        config = self.config
        return tuple(label for one in config.methods for label in (one.name, *config.random_names(one)))

    @property
    def random(self) -> frozenset[str]:
        """The labels of random directions."""
        return frozenset(self.random_kinds)

    @property
    def random_kinds(self) -> Mapping[str, ControlKind]:
        """The kind of each random direction, by its label."""
        return {one.label: one.kind for method in self.config.methods for one in self.config.random_directions(method)}

    @property
    def figures(self) -> tuple[str, ...]:
        """The names of all figures."""
        return tuple(next(point for point in self.points if point.key.method == self.reference).figures)

    @property
    def shown(self) -> Split:
        """The split whose curves are told: `test` where every strength was measured on it."""
        return self.config.shown

    def unmeasured(self, method: str) -> tuple[float, ...]:
        """The strengths of a method that were left out, since smaller ones of the same sign are over the budget."""
        named = next(one for one in self.config.methods if method in (one.name, *self.config.random_names(one)))
        measured = {point.key.strength for point in self.points if point.key.method == method}
        return tuple(strength for strength in self.config.strengths(named) if strength not in measured)

    def original(self, split: Split) -> float | None:
        """The target of the original base, where a fine-tune is repaired."""
        if self.config.repair is None:
            return None
        found = next(point for point in self.points if point.key == PointKey(BASE, 0.0, split))
        return found.figures[self.config.target].value.value

    def point(self, method: str, strength: float, split: Split) -> Point | None:
        """The point of a method at a strength, the model at k = 0 for 0; None where it was not measured."""
        name = self.reference if strength == 0 else method
        return next((point for point in self.points if point.key == PointKey(name, strength, split)), None)

    def curve(self, method: str, split: Split) -> tuple[Point, ...]:
        """The points of a method in ascending order of strengths, k = 0 among them."""
        mine = (
            point for point in self.points if point.key.split == split and point.key.method in (method, self.reference)
        )
        return tuple(sorted(mine, key=lambda point: point.key.strength))


def figures_of(samples: Mapping[str, Samples], reference: Mapping[str, Samples]) -> dict[str, Figure]:
    """The figures of one measurement, with their changes from another of the same items."""
    return {
        name: Figure(one.role, one.kind, one.interval, one.change_from(reference[name]))
        for name, one in samples.items()
    }
