"""Loaded models, steered for the time of a `with` block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from wsmerge.api.references import WeightLike, ks_of, opened
from wsmerge.recipe import (
    coefficients_for,
    weight_from,
)
from wsmerge.registry import (
    Direction,
    Registry,
    open_registry,
)

if TYPE_CHECKING:
    import torch

    from wsmerge.steering.held import Steering

__all__ = ["steer", "steerable"]


@contextmanager
def steer(
    model: torch.nn.Module,
    weights: Mapping[str, WeightLike] | Mapping[Direction, WeightLike],
    *,
    store: Registry | None = None,
) -> Iterator[None]:
    """Steer a loaded model for the time of a `with` block: theta + sum_i k_i(layer, tensor) * w_i, in place.

    On leaving, also when the body raises, every parameter has the bits it had before. A tied parameter is changed once.

        with wsmerge.steer(model, {"sycophancy@1.0.0": -1.5}):
            model.generate(...)

    Args:
        model: a transformers model (or any module with the base's parameter names), on any device.
        weights: reference (or opened direction) and coefficient k, or k by layer.
        store: where references are looked up.

    Raises:
        BaseMismatchError: a direction that does not fit the model; nothing was changed.
        RecipeError: a coefficient that does not fit its direction.
    """
    from wsmerge.steering.steer import parameter_names, steered  # noqa: PLC0415 - needs torch

    named = [key for key in weights if isinstance(key, str)]
    with opened(named, store or open_registry()) as found:
        names = parameter_names(model)
        terms = []
        for key, weight in weights.items():
            direction = found[key] if isinstance(key, str) else key
            terms.append((direction, ks_of(coefficients_for(weight_from(weight), direction.shapes, names))))
        with steered(model, terms):
            yield


@contextmanager
def steerable(
    model: torch.nn.Module,
    directions: Iterable[str] | Mapping[str, str | Direction],
    *,
    store: Registry | None = None,
) -> Iterator[Steering]:
    """Hold a loaded model whose coefficients change at will, for sweeps over k that read and copy everything once.

    Each setting gives the bits that `steer` gives at that k; on leaving, every parameter has the bits it had before.

        with wsmerge.steerable(model, ["sycophancy@1.0.0"]) as steering:
            for k in (-2, -1, 0, 1, 2):
                steering.set({"sycophancy@1.0.0": k})
                model.generate(...)

    Args:
        model: a transformers model (or any module with the base's parameter names), on any device.
        directions: references, which are then also the names in settings; or references and opened directions by names of
            your choice.
        store: where references are looked up.

    Raises:
        BaseMismatchError: a direction that does not fit the model.
    """
    from wsmerge.steering.held import Steering  # noqa: PLC0415 - needs torch

    named = dict(directions) if isinstance(directions, Mapping) else {one: one for one in directions}
    references = [one for one in named.values() if isinstance(one, str)]
    with opened(references, store or open_registry()) as found:
        sources = {name: found[one] if isinstance(one, str) else one for name, one in named.items()}
        with Steering(model, sources) as steering:
            yield steering
