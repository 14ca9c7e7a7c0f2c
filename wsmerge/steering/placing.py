"""Which parameter of a loaded model each delta of a direction goes to, and with which coefficient."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch

from wsmerge.core.reading import is_same_delta
from wsmerge.core.tensors import DeltaSource
from wsmerge.engine.names import CheckpointNames
from wsmerge.errors import BaseMismatchError, NonFiniteError, Problems
from wsmerge.steering.parameters import Slot, named_slots, obstacle, slot_of

__all__ = ["Addend", "SteeringTerm", "Target", "parameter_names", "targets_of"]

SteeringTerm: TypeAlias = tuple[DeltaSource, Mapping[str, float]]
"""A direction and its coefficient for each of its tensors; what is not named has k = 0."""


class Addend(NamedTuple):
    """`k` times the delta `delta` of `source`."""

    source: DeltaSource
    delta: str
    k: float


class Target(NamedTuple):
    """A parameter that changes, and all that is added to it."""

    parameter: torch.nn.Parameter
    addends: list[Addend]


def parameter_names(model: torch.nn.Module) -> list[str]:
    """Checkpoint names of the parameters of `model`, tied ones under each of their names."""
    return [name for name, _ in named_slots(model)]


def targets_of(model: torch.nn.Module, terms: Sequence[SteeringTerm]) -> list[Target]:
    """The parameters of `model` that `terms` change, each once.

    Raises:
        NonFiniteError: a coefficient that is NaN or infinite.
        BaseMismatchError: deltas that have no parameter of their name and shape, or one that cannot be changed; all of
            them.
    """
    _check_finite(terms)
    problems = Problems()
    placing = _Placing(model, problems)
    for source, coefficients in terms:
        placing.add(source, coefficients)
    problems.raise_if_any(
        BaseMismatchError,
        "the directions do not fit this model; nothing was changed",
        where=type(model).__name__,
        hint="load the base of the directions, or a fine-tune of it, unquantised and whole",
    )
    return placing.targets


def _check_finite(terms: Sequence[SteeringTerm]) -> None:
    problems = Problems()
    for source, coefficients in terms:
        for name, k in coefficients.items():
            if not math.isfinite(k):
                problems.add(f"{source.label}: {name}: k = {k}")
    problems.raise_if_any(NonFiniteError, "coefficients must be finite")


class _Placing:
    """Which slot of the model each delta goes to; what has none is noted in `problems`."""

    def __init__(self, model: torch.nn.Module, problems: Problems) -> None:
        self._problems = problems
        self._parameters: dict[str, torch.nn.Parameter] = {}
        for name, parameter in named_slots(model):
            if self._parameters.setdefault(name, parameter) is not parameter:
                problems.add(f"{name}: the model has two parameters of this name")
        self._names = CheckpointNames(self._parameters)
        self._slots: dict[Slot, Target] = {}

    @property
    def targets(self) -> list[Target]:
        """The slots that change, each once."""
        return [target for target in self._slots.values() if target.addends]

    def add(self, source: DeltaSource, coefficients: Mapping[str, float]) -> None:
        """Place every delta of `source`."""
        by_slot: defaultdict[Slot, list[str]] = defaultdict(list)
        for delta in source.shapes:
            for slot in self._slots_of(source, delta):
                by_slot[slot].append(delta)
        for slot, deltas in by_slot.items():
            first, *others = deltas
            k = coefficients.get(first, 0.0)
            for other in others:
                if coefficients.get(other, 0.0) != k or not is_same_delta(source, first, other):
                    self._problems.add(
                        f"{source.label}: {first} and {other} are one parameter here, and their deltas or coefficients differ"
                    )
            if k != 0:
                self._slots[slot].addends.append(Addend(source, first, k))

    def _slots_of(self, source: DeltaSource, delta: str) -> list[Slot]:
        """The slot of the parameter named `delta`, and those of parameters that the direction's base ties to it."""
        outs = [out for out, into in source.base.tied.items() if into == delta and out not in source.shapes]
        found = [self._slot(source, delta, delta)]
        found += [self._slot(source, out, delta) for out in outs if self._names.find(out) is not None]
        return list(dict.fromkeys(slot for slot in found if slot is not None))

    def _slot(self, source: DeltaSource, name: str, delta: str) -> Slot | None:
        here = self._names.find(name)
        if here is None:
            self._problems.add(f"{source.label}: the model has no {name}{self._names.suggestion(name)}")
            return None
        parameter, shape = self._parameters[here], source.shapes[delta]
        reason = obstacle(parameter)
        if reason:
            self._problems.add(f"{source.label}: {here} {reason}")
        elif tuple(parameter.shape) != tuple(shape):
            self._problems.add(
                f"{source.label}: {here} is {list(parameter.shape)} in the model, its delta {list(shape)}"
            )
        else:
            slot = slot_of(parameter)
            self._slots.setdefault(slot, Target(parameter, []))
            return slot
        return None
