"""Tensors that no architecture definition names: carried over where nothing is merged, refused where something is.

mergekit drops them without a word. A frankenmerge takes those of a layer along with the layer, renumbered, and those of
no layer from the model that the configuration comes from. Layers past those that `config.json` counts (multi-token
prediction) are carried over with all the others; slices do not say where they go, so they are left out, and told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from wsmerge.core.layers import layer_position
from wsmerge.core.tensors import StoredName
from wsmerge.engine.adapter import Adapter
from wsmerge.engine.architecture import Architecture, Weight
from wsmerge.engine.architecture.undefined import is_derived, undefined_tensors
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.engine.inputs.converted import ConversionCache
from wsmerge.engine.merging.models import Model
from wsmerge.engine.merging.sites import Module, Site, Slice, SourceTensor
from wsmerge.errors import CheckpointError
from wsmerge.recipe.merging import Parameters

__all__ = ["LeftOut", "carried_tensors", "past_layers", "refuse_undefined", "sites_by_name", "undefined_by_model"]

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
    """For a passthrough: the output's name of each such tensor, the model that it comes from, and its name there.

    Layers past those that `config.json` counts are carried over where the output has the donor's layers as they are.
    """
    by_stack = {stack: module for module in modules for stack in _stacks_of(module, donor)}
    past = past_layers(undefined.get(donor, ()), modules, donor)
    for name in undefined.get(donor, ()):
        place = layer_position(name)
        module = by_stack.get(place.stack) if place else None
        if module is None or (module.is_whole and name in past):
            yield name, donor, name
    for stack, module in by_stack.items():
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


def sites_by_name(
    undefined: Mapping[Model, Sequence[str]], modules: Sequence[Module], parameters: Parameters | None
) -> Iterator[Site]:
    """Sites of the tensors that no definition names, where all sources store the same and the layers stay as they are.

    An architecture that was inferred has such tensors past its layers. `parameters` are the recipe's.
    """
    first = modules[0].slices[0]
    models = {source.model for source in first.sources}
    names = dict.fromkeys(name for found in undefined.values() for name in found)
    whole = all(module.is_whole and len(module.slices) == 1 for module in modules)
    if not whole or any(set(undefined.get(model, ())) != set(names) for model in models):
        return
    for name in names:
        weight = Weight(name)
        inputs = tuple(SourceTensor(source, weight) for source in first.sources)
        yield Site(weight, inputs, 0.0, (first.parameters, modules[0].parameters, parameters), first.has_base)


def past_layers(names: Sequence[str], modules: Sequence[Module], model: Model) -> tuple[str, ...]:
    """Those that lie in a module's layers, past the number of them that the configuration of `model` counts."""
    by_stack = {stack: module for module in modules for stack in _stacks_of(module, model)}
    return tuple(
        name
        for name in names
        if (place := layer_position(name)) is not None
        and place.stack in by_stack
        and place.layer >= by_stack[place.stack].architecture.num_layers(model.config)
    )


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Why a stored tensor takes no part in a merge: an `account.Reason`.

    Attributes:
        inputs: every model of the recipe.
        modules: the output's.
        undefined: by model, what no definition names.
        noted: what a step left out, by holder and name.
        mergekit_bugs: whether tensors are lost as mergekit loses them.
        conversions: what weights can be made of.
    """

    inputs: Sequence[Model]
    modules: Sequence[Module]
    undefined: Mapping[Model, Sequence[str]]
    noted: Mapping[StoredName, str]
    mergekit_bugs: bool
    conversions: ConversionCache
    _known_stacks: dict[tuple[str, Model], set[str]] = field(default_factory=dict)

    def __call__(self, source: Checkpoint | Adapter, name: str) -> str | None:
        """The reason; None where there is none."""
        models = [model for model in self.inputs if source in (model.checkpoint, model.adapter)]
        checkpoint = models[0].checkpoint
        if is_derived(name):
            return "transformers computes it whenever it loads the model"
        replaced = all(model.adapter is not None and model.adapter.stored_whole(name) for model in models)
        if source is checkpoint and replaced:
            return "its adapter holds another in its place"
        if name in checkpoint.tied:
            return f"one tensor with {checkpoint.tied[name]}"
        if self.mergekit_bugs:
            return "lost as in mergekit"
        return self.noted.get(StoredName(source, name)) or self._outside_the_recipe(models, name)

    def _outside_the_recipe(self, models: Sequence[Model], name: str) -> str | None:
        if not any(self._takes_part(models, part) for module in self.modules for part in module.slices):
            return "the recipe takes nothing but the configuration of this model"
        place, config = layer_position(name), models[0].config
        for module in self.modules:
            if place and place.stack in self._stacks(module, models[0]):
                if place.layer >= module.architecture.num_layers(config):
                    return "past the layers that config.json counts: slices do not say where it goes"
                layers = [source.layers for part in module.slices for source in part.sources if source.model in models]
                taken = any(first <= place.layer < end for first, end in layers)
                return None if taken else "its layer is not among the recipe's"
            for weights, part, told in (
                (module.architecture.pre(config), module.slices[0], "before the layers is the first slice's"),
                (module.architecture.post(config), module.slices[-1], "after the layers is the last slice's"),
            ):
                if not self._takes_part(models, part) and any(name in weight.names for weight in weights):
                    return f"what comes {told}"
        if self.inputs[0] not in models and any(name in self.undefined.get(model, ()) for model in models):
            return f"no definition names it, and what is outside the layers is that of {self.inputs[0].label}"
        # In a list of layers by another name than those that are known.
        not_taken = any(self._in_layer_not_taken(models, module, name) for module in self.modules)
        return "its layer is not among the recipe's" if not_taken else None

    def _in_layer_not_taken(self, models: Sequence[Model], module: Module, name: str) -> bool:
        taken = [source.layers for part in module.slices for source in part.sources if source.model in models]
        others = (
            layer
            for layer in range(module.architecture.num_layers(models[0].config))
            if not any(first <= layer < end for first, end in taken)
        )
        layers = (module.architecture.layer(models[0].config, layer) for layer in others)
        checkpoint = models[0].checkpoint
        return any(
            name in weight.names or name in self.conversions.sources(checkpoint, weight.name)
            for weights in layers
            for weight in weights
        )

    def _stacks(self, module: Module, model: Model) -> set[str]:
        """As `_stacks_of`, which takes long for each of many thousand experts."""
        key = module.name, model
        if key not in self._known_stacks:
            self._known_stacks[key] = _stacks_of(module, model)
        return self._known_stacks[key]

    def _takes_part(self, models: Sequence[Model], part: Slice) -> bool:
        return any(source.model in models for source in part.sources)


def _stacks_of(module: Module, model: Model) -> set[str]:
    """The stacks that hold the module's layers, under names and aliases."""
    weights = module.architecture.layer(model.config, 0)
    return {place.stack for weight in weights for name in weight.names if (place := layer_position(name))}
