"""The output's tensors one by one: which tensor of each source goes into it, and where it stands in its slice.

    before the layers    from the sources of the first slice, at t = 0
    layer i of a slice   layer `layer_range[0] + i` of each source, at t = i / (n - 1) of the slice's n layers (1 if n = 1)
    after the layers     from the sources of the last slice, at t = 0

so that gradients never reach the final norm and the output embedding, as in mergekit. Where the last slice has more
sources than the first, mergekit leaves the surplus out of what comes after the layers; here it takes part.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from wsmerge.core.layers import layer_position
from wsmerge.core.tensors import DeltaSource
from wsmerge.engine.architecture import Architecture, Config, ModuleArchitecture, Weight
from wsmerge.engine.merging.models import Model, Models
from wsmerge.errors import CheckpointError, Problems, RecipeError
from wsmerge.recipe.merging import InputModel, InputSlice, ModelReference, OutputModule, OutputSlice, Parameters
from wsmerge.recipe.schema import Recipe

__all__ = ["Module", "Site", "Slice", "SliceSource", "SourceTensor", "modules_of", "sites_of_output"]


@dataclass(frozen=True, slots=True)
class SliceSource:
    """One source of a slice: a model, or a direction over the slice's base.

    Attributes:
        model: the model; of a direction, the base that it is added to.
        is_base: whether deltas are taken from it.
        direction: the direction that stands in the model's place.
        layers: its first layer, and the one after its last.
        parameters: settings for this source alone.
    """

    model: Model
    is_base: bool
    direction: DeltaSource | None
    layers: tuple[int, int]
    parameters: Parameters | None


@dataclass(frozen=True, slots=True)
class Slice:
    """Consecutive layers of the output. `has_base` tells whether a base is configured, be it among the sources or not."""

    sources: tuple[SliceSource, ...]
    parameters: Parameters | None
    has_base: bool

    @property
    def length(self) -> int:
        """Number of layers that it gives."""
        first, end = self.sources[0].layers
        return end - first


@dataclass(frozen=True, slots=True)
class Module:
    """One module of the output."""

    name: str
    architecture: ModuleArchitecture
    slices: tuple[Slice, ...]
    parameters: Parameters | None

    @property
    def length(self) -> int:
        """Number of layers of the output's module."""
        return sum(part.length for part in self.slices)

    def prefix(self, config: Config) -> str:
        """What the names of its layers' tensors begin with, before the layer's number."""
        places = [layer_position(weight.name) for weight in self.architecture.layer(config, 0)[:1]]
        return places[0].stack if places and places[0] else self.name

    @property
    def origins(self) -> tuple[tuple[tuple[Config, int], ...], ...]:
        """For each layer of the output, the layers that are merged there: a configuration, and the number by it."""
        return tuple(
            tuple((source.model.config, source.layers[0] + index) for source in part.sources)
            for part in self.slices
            for index in range(part.length)
        )

    @property
    def is_whole(self) -> bool:
        """Whether its layers are all those of its first source, in their order."""
        count = self.architecture.num_layers(self.slices[0].sources[0].model.config)
        return [sources[0][1] for sources in self.origins] == list(range(count))

    def keeps_kinds(self, config: Config) -> bool:
        """Whether the layers that `config` has at the places of the output name the same tensors as those put there."""
        return all(
            _by_role(self, config, place).keys() == _by_role(self, source, layer).keys()
            for place, sources in enumerate(self.origins)
            for source, layer in sources
            if layer != place
        )


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """A source, and the weight of it that takes part."""

    source: SliceSource
    weight: Weight


@dataclass(frozen=True, slots=True)
class Site:
    """One tensor of the output, if its sources have it.

    Attributes:
        weight: what the output calls it.
        inputs: in the order of the slice's sources.
        t: where in its slice it stands, for gradients.
        scopes: settings of the slice, the module and the recipe, those that go first first.
        has_base: whether a base is configured.
    """

    weight: Weight
    inputs: tuple[SourceTensor, ...]
    t: float
    scopes: tuple[Parameters | None, ...]
    has_base: bool


def modules_of(
    recipe: Recipe, architecture: Architecture, models: Models, directions: Mapping[str, DeltaSource]
) -> tuple[Module, ...]:
    """The modules of the output with their slices; `models` becomes one slice over all layers.

    Raises:
        RecipeError: slices of an architecture with several modules, unknown modules, models of different depth.
        CheckpointError: layers that a model does not have.
    """
    builder = _Builder(recipe, models, directions)
    problems = Problems()
    found = [
        builder.module(name, architecture.modules[name], part, problems)
        for name, part in _parts(recipe, architecture).items()
    ]
    problems.raise_if_any(
        CheckpointError, "the recipe's layers are not those of its models", hint="layer_range is [first, end)"
    )
    return tuple(found)


def sites_of_output(
    modules: Sequence[Module], config: Mapping[str, Any], parameters: Parameters | None, *, mergekit_bugs: bool = False
) -> Iterator[Site]:
    """Every tensor of the output, module by module, from first to last; `config` is the output's.

    With `mergekit_bugs`, what comes after the layers has no more sources than the first slice.
    """
    for module in modules:
        yield from _edge(module, module.slices[0], module.architecture.pre(config), parameters)
        layer = 0
        for part in module.slices:
            for index in range(part.length):
                yield from _layer(module, part, index, layer, config, parameters)
                layer += 1
        last = module.slices[-1]
        if mergekit_bugs:
            last = replace(last, sources=last.sources[: len(module.slices[0].sources)])
        yield from _edge(module, last, module.architecture.post(config), parameters)


def _edge(module: Module, part: Slice, weights: Sequence[Weight], parameters: Parameters | None) -> Iterator[Site]:
    scopes = (part.parameters, module.parameters, parameters)
    for weight in weights:
        inputs = tuple(SourceTensor(source, weight) for source in part.sources)
        yield Site(weight, inputs, 0.0, scopes, part.has_base)


def _layer(
    module: Module, part: Slice, index: int, number: int, config: Mapping[str, Any], parameters: Parameters | None
) -> Iterator[Site]:
    """The tensors of the output's layer `number`, the `index`-th of its slice, each paired with those of its role."""
    t = index / (part.length - 1) if part.length > 1 else 1.0
    scopes = (part.parameters, module.parameters, parameters)
    weights = _by_role(module, config, number)
    theirs = [_by_role(module, source.model.config, source.layers[0] + index) for source in part.sources]
    for source, roles in zip(part.sources, theirs, strict=True):
        if roles.keys() != weights.keys():
            raise CheckpointError(
                f"layer {number} of the output is another kind of layer than layer {source.layers[0] + index} of "
                f"{source.model.label}, which the recipe puts there",
                where=f"modules.{module.name}" if module.name != "default" else "slices",
                hint="take layers from places where the model has the same kind of layer",
                details=tuple(f"only one of them has {role}" for role in sorted(roles.keys() ^ weights.keys())),
            )
    for role, weight in weights.items():
        inputs = (SourceTensor(source, roles[role]) for source, roles in zip(part.sources, theirs, strict=True))
        yield Site(weight, tuple(inputs), t, scopes, part.has_base)


def _by_role(module: Module, config: Mapping[str, Any], number: int) -> dict[str, Weight]:
    """The weights of a layer by name, with the first place of the layer's number left open."""
    here = re.compile(rf"(?<![^.]){number}(?![^.])")
    return {here.sub("*", weight.name, count=1): weight for weight in module.architecture.layer(config, number)}


def _parts(recipe: Recipe, architecture: Architecture) -> Mapping[str, OutputModule]:
    names = list(architecture.modules)
    if recipe.models:
        return {name: OutputModule(models=recipe.models) for name in names}
    if recipe.slices:
        if len(names) != 1:
            raise RecipeError(
                f"{architecture.name} has several modules ({', '.join(names)}), and slices do not say which they mean",
                where="slices",
                hint="give the slices under modules, for each module by its name",
            )
        return {names[0]: OutputModule(slices=recipe.slices)}
    given = recipe.modules or {}
    unknown = [name for name in given if name not in names]
    if unknown:
        raise RecipeError(
            f"{architecture.name} has no module {', '.join(unknown)}",
            where="modules",
            hint=f"its modules are {', '.join(names)}",
        )
    return given


class _Builder:
    """Turns the recipe's modules into ours."""

    def __init__(self, recipe: Recipe, models: Models, directions: Mapping[str, DeltaSource]) -> None:
        self._recipe = recipe
        self._models = models
        self._directions = directions

    def module(self, name: str, architecture: ModuleArchitecture, part: OutputModule, problems: Problems) -> Module:
        slices = part.slices or (self._whole(architecture, part.models or ()),)
        built = tuple(self._slice(item) for item in slices)
        for number, item in enumerate(built):
            _check_layers(f"{name}: slices[{number}]", item, architecture, problems)
        return Module(name, architecture, built, part.parameters)

    def _whole(self, architecture: ModuleArchitecture, models: Sequence[InputModel]) -> OutputSlice:
        """One slice over all layers; a base that is not among the models becomes the last source."""
        base = self._recipe.base_model
        entries = list(models)
        if base is not None and all(entry.model != base for entry in entries):
            entries.append(InputModel(model=base))
        sources = tuple(
            InputSlice(
                model=entry.model,
                direction=entry.direction,
                layer_range=(0, architecture.num_layers(self._model(entry.model, base).config)),
                parameters=entry.parameters,
            )
            for entry in entries
        )
        return OutputSlice(sources=sources)

    def _slice(self, part: OutputSlice) -> Slice:
        base = part.base_model or self._recipe.base_model
        sources = tuple(self._source(item, base) for item in part.sources)
        return Slice(sources, part.parameters, base is not None)

    def _source(self, item: InputSlice, base: ModelReference | None) -> SliceSource:
        direction = self._directions[item.direction] if item.direction is not None else None
        return SliceSource(
            model=self._model(item.model, base),
            is_base=item.model is not None and item.model == base,
            direction=direction,
            layers=item.layer_range,
            parameters=item.parameters,
        )

    def _model(self, reference: ModelReference | None, base: ModelReference | None) -> Model:
        if reference is None and base is None:
            raise RecipeError(
                "a direction stands for a model only over a base", where="direction", hint="add base_model"
            )
        return self._models.open(reference or base)  # type: ignore[arg-type]  # one of them is there


def _check_layers(where: str, part: Slice, architecture: ModuleArchitecture, problems: Problems) -> None:
    for source in part.sources:
        first, end = source.layers
        count = architecture.num_layers(source.model.config)
        if not 0 <= first <= end <= count:
            problems.add(f"{where}: [{first}, {end}) of {source.model.label}, which has {count} layers")
    if len({source.layers[1] - source.layers[0] for source in part.sources}) > 1:
        told = ", ".join(f"[{source.layers[0]}, {source.layers[1]}) of {source.model.label}" for source in part.sources)
        problems.add(f"{where}: the sources have different numbers of layers: {told}")
