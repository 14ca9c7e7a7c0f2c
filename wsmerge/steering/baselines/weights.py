"""Steering by weights: theta + k * sum_i c_i(layer, tensor) * w_i, with any directions of one base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from wsmerge.steering.baselines.method import Subject
from wsmerge.steering.held import Steering, Weights

__all__ = ["WeightSteering"]


class WeightSteering:
    """Directions in fixed proportions, times a strength k.

    One class serves every method that changes weights: a contrastive direction (c = 1), `tau_plus` alone (c = 1),
    `-tau_minus` alone (c = -1), an adapter that was trained jointly (c = 1, k = 1), bias-only directions, mixtures.

    Args:
        label: how tables and plots name it.
        steering: holds the model that is measured. What it is set to already stays and is added to.
        proportions: the weight c of each direction, by its name in `steering`.

    Raises:
        UsageError: a name of no direction.
        RecipeError: a weight that does not fit its direction.
    """

    def __init__(self, label: str, steering: Steering, proportions: Weights) -> None:
        self.label = label
        self._steering = steering
        self._proportions = steering.resolve(proportions)

    @contextmanager
    def apply(self, subject: Subject, strength: float) -> Iterator[Subject]:
        """The subject with k = `strength`."""
        with self._steering.at_coefficients(_sum(self._steering.coefficients, self._proportions, strength)):
            yield subject


def _sum(
    held: Mapping[str, Mapping[str, float]], added: Mapping[str, Mapping[str, float]], k: float
) -> dict[str, dict[str, float]]:
    total = {name: dict(coefficients) for name, coefficients in held.items()}
    for name, coefficients in added.items():
        mine = total.setdefault(name, {})
        for tensor, c in coefficients.items():
            mine[tensor] = mine.get(tensor, 0.0) + k * c
    return total
