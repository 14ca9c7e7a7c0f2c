"""Steering a loaded model for the time of a `with` block: theta + sum_i k_i * w_i, in place, and back bit for bit.

    new = round_to_parameter_dtype(float32(parameter) + sum_i k_i * w_i in float32)

rounded to nearest even, in float64 for a float64 parameter. Copies of the changed parameters, on their own device, bring
the old bits back: subtracting what was added would not.

In-place changes raise the parameters' version counters. So a graph recorded before the block and run backward inside it
is an error of torch, not a wrong gradient; forward and backward within the block are fine. Changes that the body makes to
a steered parameter (a training step, for example) end with the block. Blocks nest: the inner one ends first.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

import numpy as np
import torch

from wsmerge.core.reading import is_same_delta
from wsmerge.core.tensors import DeltaSource
from wsmerge.engine.names import CheckpointNames
from wsmerge.errors import BaseMismatchError, NonFiniteError, Problems
from wsmerge.steering.parameters import Slot, named_slots, obstacle, slot_of

__all__ = ["SteeringTerm", "parameter_names", "steered"]

SteeringTerm = tuple[DeltaSource, Mapping[str, float]]
"""A direction and its coefficient for each of its tensors; what is not named has k = 0."""

_BLOCK_ELEMENTS: Final = 1 << 22


class _Addend(NamedTuple):
    """`k` times the delta `delta` of `source`."""

    source: DeltaSource
    delta: str
    k: float


class _Target(NamedTuple):
    """A parameter that changes, and all that is added to it."""

    parameter: torch.nn.Parameter
    addends: list[_Addend]


def parameter_names(model: torch.nn.Module) -> list[str]:
    """Checkpoint names of the parameters of `model`, tied ones under each of their names."""
    return [name for name, _ in named_slots(model)]


@contextmanager
def steered(model: torch.nn.Module, terms: Sequence[SteeringTerm]) -> Iterator[None]:
    """Add `terms` to the parameters of `model` within a `with` block; afterwards every parameter has its old bits.

    A tied parameter is changed once. Where the direction's base ties two parameters and the model does not, both change.
    Gradient flags and devices stay as they are; k = 0 changes nothing and copies nothing.

    Args:
        model: a transformers model, or any module with the base's parameter names, also wrapped by PEFT, torch.compile or
            DistributedDataParallel, on any device.
        terms: directions with their coefficients by tensor, in the order in which they are summed.

    Raises:
        NonFiniteError: a coefficient that is NaN or infinite.
        BaseMismatchError: deltas that have no parameter of their name and shape, or one that cannot be changed; all of
            them, and nothing was changed.
    """
    targets = _targets(model, terms)
    saved: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
    try:
        for target in targets:
            saved.append((target.parameter, target.parameter.detach().clone()))
            _add(target)
        yield
    finally:
        for parameter, copy in reversed(saved):
            _overwrite(parameter, copy)


def _targets(model: torch.nn.Module, terms: Sequence[SteeringTerm]) -> list[_Target]:
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
        self._slots: dict[Slot, _Target] = {}

    @property
    def targets(self) -> list[_Target]:
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
                self._slots[slot].addends.append(_Addend(source, first, k))

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
            self._slots.setdefault(slot, _Target(parameter, []))
            return slot
        return None


def _add(target: _Target) -> None:
    """Add the sum to the parameter, some rows at a time: float32 copies of a whole embedding would take twice its room."""
    with torch.inference_mode(mode=target.parameter.is_inference()), torch.no_grad():
        values = target.parameter.detach()
        values = values if values.ndim else values.unsqueeze(0)
        rows = max(1, _BLOCK_ELEMENTS // max(1, math.prod(values.shape[1:])))
        readers = [_reader(addend, values) for addend in target.addends]
        for first in range(0, values.shape[0], rows):
            block = values[first : first + rows]
            change = sum(read(first, block) for read in readers)
            block.copy_(block.to(torch.promote_types(block.dtype, torch.float32)) + change)


def _reader(addend: _Addend, values: torch.Tensor) -> Callable[[int, torch.Tensor], torch.Tensor]:
    """A function that gives k * delta in float32 for the rows `first` and on that a block of `values` holds."""
    source, delta, k = addend
    if source.rank(delta) is not None:
        scaled = source.low_rank(delta).scaled(k)
        b, a = (torch.from_numpy(np.ascontiguousarray(f, np.float32)).to(values.device) for f in (scaled.b, scaled.a))
        return lambda first, block: b[first : first + block.shape[0]] @ a
    columns = math.prod(values.shape[1:])

    def read(first: int, block: torch.Tensor) -> torch.Tensor:
        elements = np.empty(block.numel(), np.float32)
        source.read_dense(delta, first * columns, elements)
        return k * torch.from_numpy(elements).to(block.device).reshape(block.shape)

    return read


def _overwrite(parameter: torch.nn.Parameter, values: torch.Tensor) -> None:
    with torch.inference_mode(mode=parameter.is_inference()), torch.no_grad():
        parameter.copy_(values)
