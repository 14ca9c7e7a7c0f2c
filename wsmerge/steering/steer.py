"""Steering a loaded model for the time of a `with` block: theta + sum_i k_i * w_i, in place, and back bit for bit.

    new = round_to_parameter_dtype(float32(parameter) + sum_i k_i * w_i in float32)

rounded to nearest even, in float64 for a float64 parameter. Copies of the changed parameters, on their own device, bring
the old bits back: subtracting what was added would not.

In-place changes raise the parameters' version counters. So a graph recorded before the block and run backward inside it
is an error of torch, not a wrong gradient; forward and backward within the block are fine. Changes that the body makes to
a steered parameter (a training step, for example) end with the block. Blocks nest: the inner one ends first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from wsmerge.steering.adding import add_sum, overwrite
from wsmerge.steering.placing import SteeringTerm, parameter_names, targets_of

__all__ = ["SteeringTerm", "parameter_names", "steered"]


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
    targets = targets_of(model, terms)
    saved: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
    try:
        for target in targets:
            saved.append((target.parameter, target.parameter.detach().clone()))
            add_sum(target, target.parameter)
        yield
    finally:
        for parameter, copy in reversed(saved):
            overwrite(parameter, copy)
