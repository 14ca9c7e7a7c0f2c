"""Loaded models, steered for the time of a `with` block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
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
    weights: Mapping[str, WeightLike] | Mapping[Path, WeightLike] | Mapping[Direction, WeightLike],
    *,
    store: Registry | None = None,
) -> Iterator[None]:
    """Steer a loaded model for the time of a `with` block: theta + sum_i k_i(layer, tensor) * w_i, in place.

    On leaving, also when the body raises, every parameter has the bits it had before. A tied parameter is changed once.
    Blocks may begin and end in any order, within one thread; while several are open, their changes add up.

        with wsmerge.steer(model, {"sycophancy@1.0.0": -1.5}):
            model.generate(...)

    Args:
        model: a transformers model (or any module with the base's parameter names), on any device.
        weights: reference (or folder, or opened direction) and coefficient k, or k by layer.
        store: where references are looked up.

    Raises:
        BaseMismatchError: a direction that does not fit the model; nothing was changed.
        RecipeError: a coefficient that does not fit its direction.
        SteeringError: another thread steers the model; or, on leaving, parameters that others changed in the block: these
            are left as they are.
    """
    from wsmerge.steering.placing import base_names  # noqa: PLC0415 - needs torch
    from wsmerge.steering.steer import steered  # noqa: PLC0415 - as above

    with opened(weights, store or open_registry()) as found:
        terms = []
        for key, weight in weights.items():
            one = found[key]
            terms.append((one, ks_of(coefficients_for(weight_from(weight), one.shapes, base_names(model, one)))))
        with steered(model, terms):
            yield


@contextmanager
def steerable(
    model: torch.nn.Module,
    directions: Iterable[str | Path] | Mapping[str, str | Path | Direction],
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
        directions: references or folders, whose texts are then also the names in settings; or references, folders and
            opened directions by names of your choice.
        store: where references are looked up.

    Raises:
        BaseMismatchError: a direction that does not fit the model.
        SteeringError: as for `steer`.
    """
    from wsmerge.steering.held import Steering  # noqa: PLC0415 - needs torch

    named = directions if isinstance(directions, Mapping) else {str(one): one for one in directions}
    with (
        opened(named.values(), store or open_registry()) as found,
        Steering(model, {name: found[one] for name, one in named.items()}) as steering,
    ):
        yield steering
