"""What a recipe may say, as pydantic models.

    base_model: HuggingFaceTB/SmolLM2-135M-Instruct
    directions:
      - direction: sycophancy@1.0.0
        weight: -1.5                      # a number
      - direction: hub:acme/formal@v2
        weight:                           # rules, of which the first that matches a tensor gives its coefficient
          - filter: self_attn             # a substring of the tensor name
            value: [0, 0.5, 1, 0.5, 0]    # a gradient over the layers
          - layers: 8-15                  # inclusive; or 8, or [0-3, 8]
            value: 2.0
          - value: 0.25
    out_dtype: bfloat16

A recipe of mergekit is one too: with merge_method and models, slices or modules the directions are added to the result of
the merge, and may be absent. That part of the format is in `merging`.

The models hold what the recipe says and nothing that it does not, so a `Recipe` dumps back to equal YAML. They know no
checkpoint and no direction; whether a filter or a range fits those is judged in `coefficients`. Keys are mergekit's where
the meaning is mergekit's. Keys that mergekit would ignore are ignored only in a merge, and told by `findings`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from wsmerge.recipe.merging import (
    ModelReference,
    Models,
    Modules,
    Setting,
    Slices,
    TokenizerSettings,
    TokenizerSource,
)
from wsmerge.recipe.structure import is_merge, structure_faults
from wsmerge.recipe.values import DTypeName, Number, Text, is_list, shown

__all__ = ["DirectionEntry", "Gradient", "Layers", "Recipe", "Rule", "Weight", "layer_ranges", "rules_of"]

_LAYERS: Final = re.compile(r"\s*(?P<first>\d+)\s*(?:-\s*(?P<last>\d+)\s*)?")


def _layers(value: Any) -> Any:  # noqa: ANN401 - whatever YAML or a caller gave
    items = tuple(value) if is_list(value) else (value,)
    if not items:
        raise PydanticCustomError("empty", "is empty: name at least one layer")
    for item in items:
        _layer_range(item)
    return items if is_list(value) else value


def _layer_range(value: Any) -> range:  # noqa: ANN401 - whatever YAML or a caller gave
    found = _LAYERS.fullmatch(str(value)) if not isinstance(value, bool) and isinstance(value, int | str) else None
    if found is None:
        raise PydanticCustomError(
            "layers",
            "{value} names no layers; write 8, 8-15 (inclusive, counted from 0) or a list of these",
            {"value": shown(value)},
        )
    first, last = int(found["first"]), int(found["last"] or found["first"])
    if last < first:
        raise PydanticCustomError(
            "layers", "{value} is reversed; write {last}-{first}", {"value": str(value), "first": first, "last": last}
        )
    return range(first, last + 1)


# The tag of the member of a union that was meant, which then says what is wrong with the value.
def _value_form(value: Any) -> str:  # noqa: ANN401 - whatever YAML or a caller gave
    return "<gradient>" if is_list(value) else "<number>"


def _weight_form(value: Any) -> str:  # noqa: ANN401 - whatever YAML or a caller gave
    if is_list(value) and any(isinstance(item, Mapping | Rule) for item in value):
        return "<rules>"
    return "<rule>" if isinstance(value, Mapping | Rule) else _value_form(value)


_NoneIfEmpty = BeforeValidator(lambda value: None if value == "" else value)  # as in mergekit
Gradient = Annotated[tuple[Number, ...], Field(min_length=1)]
Layers = Annotated[int | str | tuple[int | str, ...], BeforeValidator(_layers)]
Value = Annotated[
    Annotated[Number, Tag("<number>")] | Annotated[Gradient, Tag("<gradient>")], Discriminator(_value_form)
]


class _Part(BaseModel):
    """A mapping of a recipe: no key but the fields, and no change once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Rule(_Part):
    """One coefficient and the tensors that it is for.

    Attributes:
        filter: substring of the tensor name; `*` is every tensor, as in mergekit.
        layers: `8`, `8-15` (inclusive) or a list of these; indices of the direction's base layers, counted from 0 within
            the tensor's own layer stack. Tensors of no layer never match it. With a filter too, both must hold.
        value: the coefficient k, or a gradient: values spread evenly from the base's first layer to its last, also
            where `layers` picks only some.
    """

    filter: Text | None = None
    layers: Layers | None = None
    value: Value

    @property
    def takes_all(self) -> bool:
        """Whether every tensor matches."""
        return self.layers is None and self.filter in (None, "*")

    def __str__(self) -> str:
        parts = [f"filter {self.filter}"] if self.filter not in (None, "*") else []
        if self.layers is not None:
            listed = self.layers if isinstance(self.layers, tuple) else (self.layers,)
            parts.append("layers " + ", ".join(str(item).replace(" ", "") for item in listed))
        return " and ".join(parts) or "all"


Weight = Annotated[
    Annotated[Number, Tag("<number>")]
    | Annotated[Gradient, Tag("<gradient>")]
    | Annotated[Rule, Tag("<rule>")]
    | Annotated[tuple[Rule, ...], Tag("<rules>")],
    Discriminator(_weight_form),
]


class DirectionEntry(_Part):
    """One direction of a recipe, by reference, and its coefficients. The same direction twice sums."""

    direction: Text
    weight: Weight


class Recipe(_Part):
    """A base or a merge of models, and the directions that are added to it.

    Attributes:
        name: of a recipe that others of the same file build on.
        merge_method: how models are merged; None where a base is steered as it is.
        base_model: the model that is steered; of a merge, the one that deltas are taken from.
        models: what is merged, whole; of models, slices and modules a merge has exactly one.
        slices: what is merged, by ranges of layers.
        modules: what is merged, by module.
        parameters: of the merge method.
        dtype: the dtype that mergekit merges in; None for the one that the inputs promote to.
        tokenizer_source: shorthand for `tokenizer` with nothing but a source.
        tokenizer: where the tokenizer and the embeddings of its tokens come from.
        chat_template: `auto`, the name of a template of mergekit's, or a template.
        directions: may be empty where there is a merge.
        out_dtype: the dtype of the written float tensors, for example `bfloat16`; None keeps each tensor's own.
    """

    name: Text | None = None
    merge_method: Text | None = None
    base_model: ModelReference | None = None
    models: Models = None
    slices: Slices = None
    modules: Modules = None
    parameters: dict[str, Setting] | None = None
    dtype: Annotated[DTypeName | None, _NoneIfEmpty] = None
    tokenizer_source: TokenizerSource | None = None
    tokenizer: TokenizerSettings | None = None
    chat_template: Annotated[Text | None, _NoneIfEmpty] = None
    directions: Annotated[tuple[DirectionEntry, ...], Field(min_length=1)] = ()
    out_dtype: DTypeName | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_unread_keys(cls, value: Any) -> Any:  # noqa: ANN401 - whatever YAML or a caller gave
        if isinstance(value, Mapping) and is_merge(value):
            return {key: item for key, item in value.items() if key in cls.model_fields}
        return value

    @model_validator(mode="after")
    def _whole(self) -> Self:
        given = {key for key in type(self).model_fields if getattr(self, key) not in (None, ())}
        for key, fault in structure_faults(given):
            raise PydanticCustomError("structure", "{key}: {fault}", {"key": key, "fault": fault})
        return self

    @property
    def is_merge(self) -> bool:
        """Whether models are merged, before directions are added."""
        return self.merge_method is not None

    def to_dict(self) -> dict[str, Any]:
        """This recipe as JSON-like data, from which `parse_recipe` makes an equal recipe."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def to_yaml(self) -> str:
        """This recipe as YAML, from which `parse_recipe` makes an equal recipe."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


def rules_of(weight: Weight) -> tuple[Rule, ...]:
    """`weight` as rules, of which the first that matches counts: a number or a gradient is one rule for every tensor."""
    if isinstance(weight, Rule):
        return (weight,)
    if isinstance(weight, float):
        return (Rule(value=weight),)
    rules = tuple(item for item in weight if isinstance(item, Rule))
    return rules or (Rule(value=tuple(item for item in weight if isinstance(item, float))),)


def layer_ranges(layers: Layers) -> tuple[range, ...]:
    """The layers that `layers` names, one range an item."""
    return tuple(_layer_range(item) for item in (layers if isinstance(layers, tuple) else (layers,)))
