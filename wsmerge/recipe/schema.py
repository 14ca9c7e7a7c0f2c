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

The models hold what the recipe says and nothing that it does not, so a `Recipe` dumps back to equal YAML. They know no
base and no direction; whether a filter or a range fits those is judged in `coefficients`. Keys are mergekit's where the
meaning is mergekit's. Its keys for merges of whole models are known here and refused, never ignored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Annotated, Any, Final

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationInfo
from pydantic_core import PydanticCustomError

from wsmerge.core.dtypes import DTYPES
from wsmerge.recipe.document import kind_of

__all__ = ["DirectionEntry", "Gradient", "Layers", "Recipe", "Rule", "Weight", "layer_ranges", "rules_of"]

_LAYERS: Final = re.compile(r"\s*(?P<first>\d+)\s*(?:-\s*(?P<last>\d+)\s*)?")


def _shown(value: Any) -> str:  # noqa: ANN401 - whatever YAML or a caller gave
    # Lists and mappings are not spelled out: aliases can make them longer than any message.
    return repr(value) if isinstance(value, str | Real) else kind_of(value)


def _number(value: Any) -> float:  # noqa: ANN401 - whatever YAML or a caller gave
    # YAML 1.1 reads `1e-5` as text, and mergekit takes such text for a number.
    try:
        number = float(value) if not isinstance(value, bool) and isinstance(value, str | Real) else None
    except (ValueError, OverflowError):
        number = None
    if number is None:
        raise PydanticCustomError("number", "{value} is no number", {"value": _shown(value)})
    if not math.isfinite(number):
        raise PydanticCustomError("finite", "{value} is not finite", {"value": number})
    return number


def _text(value: Any) -> str:  # noqa: ANN401 - whatever YAML or a caller gave
    if value is None or (isinstance(value, str) and not value.strip()):
        raise PydanticCustomError("empty", "is empty")
    if not isinstance(value, str):
        advice = "; put quotes around it" if isinstance(value, Real) else ""
        raise PydanticCustomError(
            "text", "must be text, not {value}{advice}", {"value": _shown(value), "advice": advice}
        )
    return value


def _base_model(value: Any) -> str:  # noqa: ANN401 - whatever YAML or a caller gave
    if isinstance(value, Mapping):
        raise PydanticCustomError(
            "text", "the form with keys is not supported yet; write the path or the Hub's owner/name as text"
        )
    return _text(value)


def _out_dtype(value: Any) -> str:  # noqa: ANN401 - whatever YAML or a caller gave
    known = [dtype.recipe_name for dtype in DTYPES.values() if dtype.is_float]
    name = _text(value).removeprefix("torch.")
    if name not in known:
        raise PydanticCustomError(
            "dtype",
            "unknown dtype {value}; a checkpoint can be written as {known}",
            {"value": _shown(value), "known": ", ".join(known)},
        )
    return name


def _refused(value: Any, info: ValidationInfo) -> None:  # noqa: ANN401 - whatever YAML or a caller gave
    if value is not None:
        raise PydanticCustomError(
            "not_yet",
            "this version steers a base with directions; {key} is not supported yet",
            {"key": info.field_name},
        )


def _layers(value: Any) -> Any:  # noqa: ANN401 - whatever YAML or a caller gave
    items = tuple(value) if _is_list(value) else (value,)
    if not items:
        raise PydanticCustomError("empty", "is empty: name at least one layer")
    for item in items:
        _layer_range(item)
    return items if _is_list(value) else value


def _layer_range(value: Any) -> range:  # noqa: ANN401 - whatever YAML or a caller gave
    found = _LAYERS.fullmatch(str(value)) if not isinstance(value, bool) and isinstance(value, int | str) else None
    if found is None:
        raise PydanticCustomError(
            "layers",
            "{value} names no layers; write 8, 8-15 (inclusive, counted from 0) or a list of these",
            {"value": _shown(value)},
        )
    first, last = int(found["first"]), int(found["last"] or found["first"])
    if last < first:
        raise PydanticCustomError(
            "layers", "{value} is reversed; write {last}-{first}", {"value": str(value), "first": first, "last": last}
        )
    return range(first, last + 1)


def _is_list(value: Any) -> bool:  # noqa: ANN401 - whatever YAML or a caller gave
    return isinstance(value, Sequence) and not isinstance(value, str)


# The tag of the member of a union that was meant, which then says what is wrong with the value.
def _value_form(value: Any) -> str:  # noqa: ANN401 - whatever YAML or a caller gave
    return "<gradient>" if _is_list(value) else "<number>"


def _weight_form(value: Any) -> str:  # noqa: ANN401 - whatever YAML or a caller gave
    if _is_list(value) and any(isinstance(item, Mapping | Rule) for item in value):
        return "<rules>"
    return "<rule>" if isinstance(value, Mapping | Rule) else _value_form(value)


Number = Annotated[float, BeforeValidator(_number)]
Text = Annotated[str, BeforeValidator(_text)]
Gradient = Annotated[tuple[Number, ...], Field(min_length=1)]
Layers = Annotated[int | str | tuple[int | str, ...], BeforeValidator(_layers)]
Value = Annotated[
    Annotated[Number, Tag("<number>")] | Annotated[Gradient, Tag("<gradient>")], Discriminator(_value_form)
]
NotYet = Annotated[None, BeforeValidator(_refused)]


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
    """A base, and the directions that are added to it.

    Attributes:
        base_model: path of a checkpoint folder, or its `owner/name` on the Hub.
        directions: at least one.
        out_dtype: the dtype of the written float tensors, for example `bfloat16`; None keeps each tensor's own.

    The other fields are mergekit's keys for merging models, which this version refuses; they are always None.
    """

    base_model: Annotated[str, BeforeValidator(_base_model)]
    directions: Annotated[tuple[DirectionEntry, ...], Field(min_length=1)]
    out_dtype: Annotated[str, BeforeValidator(_out_dtype)] | None = None
    merge_method: NotYet = None
    models: NotYet = None
    slices: NotYet = None
    modules: NotYet = None
    dtype: NotYet = None
    parameters: NotYet = None
    tokenizer_source: NotYet = None
    tokenizer: NotYet = None
    chat_template: NotYet = None

    def to_dict(self) -> dict[str, Any]:
        """This recipe as JSON-like data, from which `parse_recipe` makes an equal recipe."""
        return self.model_dump(mode="json", exclude_none=True)

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
