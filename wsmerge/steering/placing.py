"""Which parameter of a loaded model each delta of a direction goes to, and with which coefficient."""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch

from wsmerge.core.layers import layer_position
from wsmerge.core.reading import is_same_delta
from wsmerge.core.tensors import DeltaSource
from wsmerge.engine.names import CheckpointNames, ModelNames
from wsmerge.errors import BaseMismatchError, NonFiniteError, Problems
from wsmerge.steering.parameters import Slot, named_slots, obstacle, slot_of

__all__ = ["Addend", "SteeringTerm", "Target", "base_names", "targets_of"]

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


def base_names(model: torch.nn.Module, source: DeltaSource) -> list[str]:
    """Names of the parameters of `model`, those of layers as the checkpoint that `source` is over spells them.

    Tied parameters stand under each of their names. Coefficients by layer count the layers of these names.
    """
    here = dict(named_slots(model))
    names = _Names(model, here)
    stacks: dict[str, str] = {}
    for delta in source.shapes:
        stored, held = layer_position(delta), layer_position(names.find(delta, source) or "")
        if stored is not None and held is not None:
            stacks[held.stack] = stored.stack
    found = []
    for name in here:
        position = layer_position(name)
        stack = position.stack if position is not None else ""
        found.append(stacks.get(stack, stack) + name.removeprefix(stack))
    return found


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
        self._names = _Names(model, self._parameters)
        self._slots: dict[Slot, Target] = {}

    @property
    def targets(self) -> list[Target]:
        """The slots that change, each once."""
        return [target for target in self._slots.values() if target.addends]

    def add(self, source: DeltaSource, coefficients: Mapping[str, float]) -> None:
        """Place every delta of `source`."""
        by_slot: defaultdict[Slot, list[str]] = defaultdict(list)
        shapes = source.shapes
        for delta in shapes:
            for slot in self._slots_of(source, delta, shapes):
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

    def _slots_of(self, source: DeltaSource, delta: str, shapes: Mapping[str, tuple[int, ...]]) -> list[Slot]:
        """The slot of the parameter named `delta`, and those of parameters that the direction's base ties to it."""
        outs = [out for out, into in source.base.tied.items() if into == delta and out not in shapes]
        found = [self._slot(source, delta, shapes[delta])]
        found += [self._slot(source, out, shapes[delta]) for out in outs if self._names.find(out, source) is not None]
        return list(dict.fromkeys(slot for slot in found if slot is not None))

    def _slot(self, source: DeltaSource, name: str, shape: tuple[int, ...]) -> Slot | None:
        here = self._names.find(name, source)
        if here is None:
            self._problems.add(f"{source.label}: {self._names.missing(name, source)}")
            return None
        parameter = self._parameters[here]
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


class _Names:
    """The parameters of a model in memory, to be found by the names that a checkpoint has for them."""

    def __init__(self, model: torch.nn.Module, parameters: Iterable[str]) -> None:
        self._model = model
        self._parameters = list(parameters)
        self._spellings = CheckpointNames(self._parameters)
        self._loaded: dict[int, ModelNames] = {}

    def find(self, name: str, source: DeltaSource) -> str | None:
        """The parameter that holds the tensor `name` of the base of `source` as it is stored; None where none does."""
        loaded = self._of(source)
        if loaded is None:
            return self._spellings.find(name)
        return loaded.in_memory(name) or (None if self._made_of(name, loaded) else self._spellings.find(name))

    def missing(self, name: str, source: DeltaSource) -> str:
        """What a message says of a tensor that is not found."""
        loaded = self._of(source)
        made = self._made_of(name, loaded) if loaded is not None else None
        if made is not None:
            return f"{name} is part of {made} in memory, which transformers makes of several tensors"
        return f"the model has no {name}{self._spellings.suggestion(name)}"

    def _of(self, source: DeltaSource) -> ModelNames | None:
        """How transformers names the tensors of one direction's base; None where it is not in use."""
        if "transformers" not in sys.modules:
            return None
        if id(source) not in self._loaded:
            stored = {**dict.fromkeys(source.shapes), **dict.fromkeys(source.base.tied)}
            self._loaded[id(source)] = ModelNames(self._model, stored, self._parameters)
        return self._loaded[id(source)]

    @staticmethod
    def _made_of(name: str, loaded: ModelNames) -> str | None:
        return next((made for made in loaded.converted if name in loaded.sources[made]), None)
