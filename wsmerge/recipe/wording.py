"""What is wrong with a recipe, in words: pydantic's findings as place and message, and the key that was probably meant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from wsmerge.recipe.document import Keys, kind_of
from wsmerge.recipe.schema import DirectionEntry, Recipe, Rule
from wsmerge.recipe.values import nearest

__all__ = ["meant_at_the_top", "problems_in"]

# What people write for a key, out of habit from mergekit or PEFT, where spelling alone would not lead there.
_MEANT: Final = {
    "base": "base_model",
    "coefficient": "weight",
    "k": "weight",
    "layer_range": "layers",
    "model": "direction",
    "name": "direction",
    "parameters": "weight",
    "scale": "weight",
    "weight": "value",
}
_STEERING: Final = ("base_model", "directions", "out_dtype", "name")
_PLACES: Final[Mapping[type[BaseModel], str]] = {
    Recipe: "at the top of the recipe",
    DirectionEntry: "in an entry of directions",
    Rule: "in a rule under weight",
}


def problems_in(error: ValidationError) -> Iterator[tuple[Keys, str]]:
    """Place and message of every problem that the schema found, without those that only follow from another."""
    found = [(_keys(one), one) for one in error.errors(include_url=False)]
    misspelt = {(*keys[:-1], _meant(keys)) for keys, one in found if one["type"] == "extra_forbidden"}
    no_keys = {keys[:-1] for keys, one in found if one["type"] == "invalid_key"}
    for keys, one in found:
        told_elsewhere = {
            "missing": keys in misspelt or keys[:-1] in no_keys,
            "too_short": bool(one["input"]),  # its items are told one by one
            "structure": True,  # whoever has the recipe's keys tells all of these
        }
        if not told_elsewhere.get(one["type"]):
            yield keys, _message(one, keys)


def meant_at_the_top(keys: Iterable[str]) -> set[str]:
    """The keys at the top of a recipe that the unknown ones among `keys` were probably meant for."""
    unknown = [key for key in keys if key not in Recipe.model_fields]
    return {meant for key in unknown if (meant := _meant((key,)))}


def _keys(problem: ErrorDetails) -> Keys:
    # The tags of unions (`<gradient>`) are no keys of the recipe.
    return tuple(key for key in problem["loc"] if not str(key).startswith("<"))


def _message(problem: ErrorDetails, keys: Keys) -> str:
    kind = problem["type"]
    if kind == "extra_forbidden":
        return _unknown_key(keys)
    in_rule = _place(keys) is Rule and "parameters" not in keys
    layered = "; for one value a layer, list rules of layers and value" if in_rule else ""
    messages = {
        "missing": "missing key",
        "invalid_key": f"{keys[-1]} is no key{layered}",
        "too_short": "is empty: give at least one",
        "tuple_type": f"must be a list, not {kind_of(problem['input'])}",
        **dict.fromkeys(
            ("model_type", "dict_type"), f"must be a mapping of keys to values, not {kind_of(problem['input'])}"
        ),
    }
    return messages.get(kind, problem["msg"])


def _unknown_key(keys: Keys) -> str:
    key, here = str(keys[-1]), _place(keys)
    meant = _meant(keys)
    if meant:
        return f"unknown key; did you mean {meant!r}?"
    elsewhere = {_PLACES[place]: _readable(place) for place in _PLACES if place is not here}
    for belongs, fields in elsewhere.items():
        if key in fields:
            return f"unknown key here; {key!r} belongs {belongs}"
    for belongs, fields in elsewhere.items():
        near = nearest(key, fields)
        if near:
            return f"unknown key; did you mean {near!r}, which belongs {belongs}?"
    return f"unknown key; the keys here are {', '.join(_readable(here))}"


def _meant(keys: Keys) -> str | None:
    """The key of the same place that an unknown one was probably meant for."""
    key, here = str(keys[-1]), _place(keys)
    usual = _MEANT.get(key)
    if usual in here.model_fields:
        return usual
    return nearest(key, here.model_fields)


def _place(keys: Keys) -> type[BaseModel]:
    match keys:
        case (_,):
            return Recipe
        case ("directions", int(), _):
            return DirectionEntry
        case _:
            return Rule


def _readable(place: type[BaseModel]) -> list[str]:
    """The keys of `place` that a recipe without a merge may have, which is the only one that forbids others."""
    return list(_STEERING) if place is Recipe else list(place.model_fields)
