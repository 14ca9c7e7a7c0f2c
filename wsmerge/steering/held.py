"""A loaded model whose coefficients change at will, as a sweep over k or a chat needs it.

    with Steering(model, {"sycophancy": direction}) as steering:
        for k in (-2, -1, 0, 1, 2):
            with steering.at({"sycophancy": k}):
                ...

Whatever the sequence of settings, a parameter is always what merging its coefficients into the original gives, to the
bit, and at k = 0 the original itself: `steer` says how. Low-rank factors are read once and kept; dense deltas are read anew
by blocks, since they are as large as the model. Settings that leave a parameter's coefficients alone do not touch it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from wsmerge.core.closing import Closing
from wsmerge.core.deltas import LowRankDelta
from wsmerge.core.tensors import BaseIdentity, DeltaSource
from wsmerge.errors import UsageError
from wsmerge.recipe import coefficients_for, weight_from
from wsmerge.recipe.values import nearest
from wsmerge.steering.placing import base_names, targets_of
from wsmerge.steering.steer import Block

__all__ = ["Steering", "Weight", "Weights"]

Weight: TypeAlias = float | Sequence[Any] | Mapping[int, float]
"""A coefficient: a number, a gradient over the layers, a recipe's rules, or `{layer: k}`."""

Weights: TypeAlias = Mapping[str, Weight] | Mapping[Path, Weight]
"""The weight of each direction by its name; what is not named has k = 0."""


class Steering(Closing):
    """A model and the directions that it can be steered by; a context manager that leaves the model as it was.

    Changes that somebody else makes in place to a parameter with k other than 0 (a training step, for example) end with the
    next setting, which warns; those that are there on leaving are an error, and stay. At k = 0 the model is nobody's.

    Args:
        model: a transformers model, or any module with the base's parameter names, also wrapped by PEFT, on any device.
        directions: what it can be steered by, under names of the caller's choice; open as long as this is used.

    Raises:
        BaseMismatchError: a direction that does not fit the model.
    """

    def __init__(self, model: torch.nn.Module, directions: Mapping[str, DeltaSource]) -> None:
        self._model = model
        self._sources = {name: _Kept(source) for name, source in directions.items()}
        targets_of(model, [(source, dict.fromkeys(source.shapes, 1.0)) for source in self._sources.values()])
        self._block = Block(model)
        # What is set, and what each open `at` block has set instead; the last one holds.
        self._settings = [_Setting()]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the directions."""
        return tuple(self._sources)

    @property
    def coefficients(self) -> Mapping[str, Mapping[str, float]]:
        """The coefficients that are set: k by tensor, by direction."""
        return self._settings[-1].coefficients

    def resolve(self, weights: Weights) -> dict[str, dict[str, float]]:
        """The coefficient of every tensor, by direction.

        Raises:
            UsageError: a name of no direction.
            RecipeError: a weight that does not fit its direction.
        """
        weights = {str(name): weight for name, weight in weights.items()}
        unknown = [name for name in weights if name not in self._sources]
        if unknown:
            near = nearest(unknown[0], self._sources)
            meant = f"did you mean {near!r}?" if near else f"there is {', '.join(self._sources)}"
            raise UsageError("no direction of this name", where=unknown[0], hint=meant)
        found = {}
        for name, weight in weights.items():
            source = self._sources[name]
            ks = coefficients_for(weight_from(weight), source.shapes, base_names(self._model, source))
            found[name] = {tensor: at.k for tensor, at in ks.by_tensor.items()}
        return found

    def set(self, weights: Weights) -> None:
        """Steer by `weights`, and by nothing else, until something else is set.

        Raises:
            UsageError: a name of no direction.
            RecipeError: a weight that does not fit its direction.
            NonFiniteError: a coefficient that is NaN or infinite.
        """
        self.set_coefficients(self.resolve(weights))

    def set_coefficients(self, coefficients: Mapping[str, Mapping[str, float]]) -> None:
        """As `set`, for coefficients by tensor; if it fails, the model is as it was at first.

        Raises:
            NonFiniteError: a coefficient that is NaN or infinite; nothing was changed.
        """
        with self._block.claimed():
            self._apply(coefficients, overwrite=True)
        self._settings[-1].coefficients = {name: dict(ks) for name, ks in coefficients.items()}

    @contextmanager
    def at(self, weights: Weights | float) -> Iterator[None]:
        """Steer by `weights` within a `with` block; afterwards what was set before it is set again.

        A number is the coefficient of the one direction that there is.

        Raises:
            UsageError: a number, where there are several directions.
        """
        if not isinstance(weights, Mapping):
            if len(self._sources) != 1:
                raise UsageError("a number does not say which direction is meant", hint="give {direction: k}")
            weights = {self.names[0]: weights}
        with self.at_coefficients(self.resolve(weights)):
            yield

    @contextmanager
    def at_coefficients(self, coefficients: Mapping[str, Mapping[str, float]]) -> Iterator[None]:
        """As `at`, for coefficients by tensor.

        Raises:
            SteeringError: another thread is in such a block; or, at the end, others changed steered parameters meanwhile.
        """
        with self._block.claimed():
            setting = _Setting()
            self._settings.append(setting)
            try:
                self.set_coefficients(coefficients)
                yield
            finally:
                self._settings.remove(setting)  # it need not be the last one: blocks may end in any order
                self._apply(self.coefficients, overwrite=False)

    def reset(self) -> None:
        """Give every parameter its original bits."""
        self.set_coefficients({})

    def close(self) -> None:
        """Reset, and let go of the copies and the factors; nothing can be set afterwards.

        Raises:
            SteeringError: others changed steered parameters; these are left as they are.
        """
        self._block.end()
        self._settings = [_Setting()]
        self._sources = {}

    def _apply(self, coefficients: Mapping[str, Mapping[str, float]], *, overwrite: bool) -> None:
        try:
            self._block.set([(self._sources[name], ks) for name, ks in coefficients.items()], overwrite=overwrite)
        except BaseException:
            if self._block.is_empty:
                self._settings[-1].coefficients = {}
            raise


@dataclass(eq=False, slots=True)
class _Setting:
    """Coefficients that are set: k by tensor, by direction."""

    coefficients: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


class _Kept:
    """A direction whose low-rank factors stay in memory once they are read."""

    def __init__(self, source: DeltaSource) -> None:
        self._source = source
        self._factors: dict[str, LowRankDelta] = {}
        self.shapes = dict(source.shapes)
        self.base: BaseIdentity = source.base
        self.label = source.label
        self.digest = source.digest

    def rank(self, name: str) -> int | None:
        """As the direction's."""
        return self._source.rank(name)

    def low_rank(self, name: str) -> LowRankDelta:
        """As the direction's."""
        if name not in self._factors:
            self._factors[name] = self._source.low_rank(name)
        return self._factors[name]

    def read_dense(self, name: str, start: int, out: NDArray[np.float32]) -> None:
        """As the direction's."""
        self._source.read_dense(name, start, out)
