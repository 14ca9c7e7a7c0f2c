"""The part of a recipe that merges whole models, in mergekit's format: models, slices, modules and parameters.

References to models are in `model_reference`, the tokenizer is in `token_settings`; both are found here too.

A parameter is set to a scalar, to a gradient (a list of scalars over a slice's layers), or to such a value with a filter
(a substring of the tensor name), or to a list of those, of which the first that matches counts. What a value means is
known only with the method: see `methods` and `settings`.

Keys that mergekit would ignore are ignored here too, and told by `findings`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from wsmerge.recipe.model_reference import ModelPath, ModelReference, Part, is_local_path
from wsmerge.recipe.token_settings import ModelToken, TokenizerSettings, TokenizerSource, TokenSettings, ZeroToken
from wsmerge.recipe.values import Scalar, Text, is_list

__all__ = [
    "Conditional",
    "InputModel",
    "InputSlice",
    "ModelPath",
    "ModelReference",
    "ModelToken",
    "Models",
    "Modules",
    "OutputModule",
    "OutputSlice",
    "Parameters",
    "Setting",
    "Slices",
    "TokenSettings",
    "TokenizerSettings",
    "TokenizerSource",
    "ZeroToken",
    "is_local_path",
]


class Conditional(Part):
    """A value, and the tensors that it is for: those with `filter` in their name; all for None and `*`."""

    value: Annotated[
        Annotated[Scalar, Tag("<scalar>")] | Annotated[tuple[Scalar, ...], Tag("<gradient>")],
        Discriminator(lambda value: "<gradient>" if is_list(value) else "<scalar>"),
    ]
    filter: str | None = None


def _form(value: Any) -> str:  # noqa: ANN401 - whatever YAML or a caller gave
    if isinstance(value, Mapping | Conditional):
        return "<entry>"
    if is_list(value):
        return "<entries>" if any(isinstance(item, Mapping | Conditional) for item in value) else "<gradient>"
    return "<scalar>"


Setting = Annotated[
    Annotated[Scalar, Tag("<scalar>")]
    | Annotated[tuple[Scalar, ...], Tag("<gradient>")]
    | Annotated[Conditional, Tag("<entry>")]
    | Annotated[tuple[Conditional, ...], Tag("<entries>")],
    Discriminator(_form),
]
Parameters = Mapping[str, Setting]


def _two(value: Any) -> Any:  # noqa: ANN401 - whatever YAML or a caller gave
    if not is_list(value) or len(value) != 2:
        raise PydanticCustomError("range", "must be a list of two layers, the first and the one after the last")
    return value


class _Input(Part):
    model: ModelReference | None = None
    direction: Text | None = None
    parameters: dict[str, Setting] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.model is None and self.direction is None:
            raise PydanticCustomError("model_or_direction", "names no model: give it as model (or a direction)")
        if self.model is not None and self.direction is not None:
            raise PydanticCustomError("model_or_direction", "gives both model and direction; an entry is one of them")
        return self


class InputModel(_Input):
    """One entry of `models`: a model, or a direction in its place, and parameters for it alone."""


class InputSlice(_Input):
    """One source of a slice: layers `[first, end)` of a model, or of a direction in its place."""

    layer_range: Annotated[tuple[int, int], BeforeValidator(_two)]


class OutputSlice(Part):
    """Consecutive layers of the result, merged from equally many layers of each source."""

    sources: Annotated[tuple[InputSlice, ...], Field(min_length=1)]
    base_model: ModelReference | None = None
    parameters: dict[str, Setting] | None = None


def none_if_empty(value: Any) -> Any:  # noqa: ANN401 - whatever YAML or a caller gave
    """An empty list or mapping means no key, as in mergekit."""
    return None if isinstance(value, Mapping | list | tuple) and not value else value


Models = Annotated[tuple[InputModel, ...] | None, BeforeValidator(none_if_empty)]
Slices = Annotated[tuple[OutputSlice, ...] | None, BeforeValidator(none_if_empty)]


class OutputModule(Part):
    """One module of a model that has several, for example its vision tower; either slices or models."""

    slices: Slices = None
    models: Models = None
    parameters: dict[str, Setting] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.slices is None) == (self.models is None):
            raise PydanticCustomError("slices_or_models", "needs either slices or models, and not both")
        return self


Modules = Annotated[dict[str, OutputModule] | None, BeforeValidator(none_if_empty)]
