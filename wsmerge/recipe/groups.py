"""What is merged with what: one group for `models`, one for each slice, with the scopes of its parameters.

As in mergekit, a base_model that `models` do not list is one input more, without parameters of its own; a slice has the
inputs that it lists.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

from wsmerge.recipe.document import Keys
from wsmerge.recipe.merging import InputModel, InputSlice, ModelReference, OutputSlice, Parameters
from wsmerge.recipe.schema import Recipe

__all__ = ["Group", "Input", "Scope", "groups_of"]


@dataclass(frozen=True, slots=True, eq=False)
class Scope:
    """Parameters and their place."""

    keys: Keys
    parameters: Parameters


@dataclass(frozen=True, slots=True, eq=False)
class Input:
    """A model or direction that is merged.

    Attributes:
        keys: its place in the recipe.
        identity: tells it from the others; as text the model's or direction's name.
        parameters: its own.
        layer_range: the layers `[first, end)`; None for a whole model.
        listed: False for a base_model that is added to `models`.
    """

    keys: Keys
    identity: Hashable
    parameters: Parameters = field(default_factory=dict)
    layer_range: tuple[int, int] | None = None
    listed: bool = True

    @property
    def is_direction(self) -> bool:
        """Whether it is a direction in place of a model."""
        return not isinstance(self.identity, ModelReference)

    @property
    def scope(self) -> Scope:
        """Its own parameters."""
        return Scope((*self.keys, "parameters"), self.parameters)


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Inputs that are merged with each other.

    Attributes:
        keys: its place: `models`, or a slice.
        inputs: in order.
        base: the slice's base_model, else the recipe's.
        scopes: parameters of the slice, the module and the recipe.
        index: of the slice, in its module.
        count: of slices in the module.
    """

    keys: Keys
    inputs: tuple[Input, ...]
    base: ModelReference | None
    scopes: tuple[Scope, ...]
    index: int = 0
    count: int = 1

    @property
    def is_last(self) -> bool:
        """Whether the final norm and lm_head are merged as this group is."""
        return self.index == self.count - 1

    def scopes_of(self, one: Input) -> tuple[Scope, ...]:
        """Where the input's parameters are looked for, in this order."""
        return (one.scope, *self.scopes)


def groups_of(recipe: Recipe) -> Iterator[Group]:
    """The groups of a recipe, module by module and slice by slice; none if it merges nothing."""
    top = Scope(("parameters",), recipe.parameters or {})
    if recipe.models:
        yield _whole(("models",), recipe.models, recipe.base_model, (top,))
    yield from _sliced(("slices",), recipe.slices or (), recipe.base_model, (top,))
    for name, module in (recipe.modules or {}).items():
        keys = ("modules", name)
        scopes = (Scope((*keys, "parameters"), module.parameters or {}), top)
        if module.models:
            yield _whole((*keys, "models"), module.models, recipe.base_model, scopes)
        yield from _sliced((*keys, "slices"), module.slices or (), recipe.base_model, scopes)


def _whole(keys: Keys, models: Sequence[InputModel], base: ModelReference | None, scopes: tuple[Scope, ...]) -> Group:
    inputs = [_input((*keys, index), entry) for index, entry in enumerate(models)]
    if base is not None and all(one.identity != base for one in inputs):
        inputs.append(Input(("base_model",), base, listed=False))
    return Group(keys, tuple(inputs), base, scopes)


def _sliced(
    keys: Keys, slices: Sequence[OutputSlice], base: ModelReference | None, scopes: tuple[Scope, ...]
) -> Iterator[Group]:
    for index, part in enumerate(slices):
        here = (*keys, index)
        own = Scope((*here, "parameters"), part.parameters or {})
        inputs = tuple(_input((*here, "sources", number), source) for number, source in enumerate(part.sources))
        yield Group(here, inputs, part.base_model or base, (own, *scopes), index, len(slices))


def _input(keys: Keys, entry: InputModel | InputSlice) -> Input:
    identity = entry.model if entry.model is not None else f"direction {entry.direction}"
    layers = entry.layer_range if isinstance(entry, InputSlice) else None
    return Input(keys, identity, entry.parameters or {}, layers)
