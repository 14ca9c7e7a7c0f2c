"""Tensors that no architecture definition names: carried over where nothing is merged, refused where something is.

mergekit drops them without a word. A frankenmerge takes those of a layer along with the layer, renumbered, and those of
no layer from the model that the configuration comes from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from wsmerge.core.layers import layer_position
from wsmerge.engine.architecture import Architecture
from wsmerge.engine.architecture.undefined import undefined_tensors
from wsmerge.engine.inputs.converted import ConversionCache
from wsmerge.engine.merging.models import Model
from wsmerge.engine.merging.sites import Module
from wsmerge.errors import CheckpointError

__all__ = ["carried_tensors", "refuse_undefined", "undefined_by_model"]

_LISTED = 20


def undefined_by_model(
    models: Sequence[Model], architecture: Architecture, cache: ConversionCache
) -> dict[Model, tuple[str, ...]]:
    """The tensors of each model that the architecture does not name; models without such are left out."""
    found: dict[Model, tuple[str, ...]] = {}
    for model in models:
        names = undefined_tensors(architecture, model.checkpoint, cache)
        if names:
            found[model] = names
    return found


def refuse_undefined(undefined: Mapping[Model, Sequence[str]], architecture: Architecture) -> None:
    """Raise if there are such tensors.

    Raises:
        CheckpointError: with their names.
    """
    lines = [f"{model.label}: {name}" for model, names in undefined.items() for name in names]
    if not lines:
        return
    more = (f"... and {len(lines) - _LISTED} more",) if len(lines) > _LISTED else ()
    raise CheckpointError(
        f"the definition of {architecture.name} does not name tensors that the inputs hold, so they would be lost",
        hint="merge models without them; or leave them out, as mergekit does, with --mergekit-bugs",
        details=(*lines[:_LISTED], *more),
    )


def carried_tensors(
    undefined: Mapping[Model, Sequence[str]], modules: Sequence[Module], donor: Model
) -> Iterator[tuple[str, Model, str]]:
    """For a passthrough: the output's name of each such tensor, the model that it comes from, and its name there."""
    for name in undefined.get(donor, ()):
        if layer_position(name) is None:
            yield name, donor, name
    for module in modules:
        stack = _stack_of(module, donor)
        layer = 0
        for part in module.slices:
            source = part.sources[0]
            first = source.layers[0]
            for name in undefined.get(source.model, ()):
                place = layer_position(name)
                if place and place.stack == stack and first <= place.layer < source.layers[1]:
                    moved = layer + place.layer - first
                    yield name.replace(f"{stack}.{place.layer}.", f"{stack}.{moved}.", 1), source.model, name
            layer += part.length


def _stack_of(module: Module, donor: Model) -> str | None:
    weights = module.architecture.layer(donor.config, 0)
    places = [place for weight in weights if (place := layer_position(weight.name))]
    return places[0].stack if places else None
