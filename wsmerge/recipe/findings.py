"""Keys of the mergekit part of a recipe that nothing reads: a warning each, with the key that was probably meant.

mergekit ignores such keys without a word, and a recipe that it runs has to run here too. So they are no errors, but told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import BaseModel

from wsmerge.recipe.document import Document, Keys
from wsmerge.recipe.merging import (
    Conditional,
    InputModel,
    InputSlice,
    ModelPath,
    ModelReference,
    ModelToken,
    OutputModule,
    OutputSlice,
    TokenizerSettings,
    TokenSettings,
    ZeroToken,
)
from wsmerge.recipe.methods import METHODS
from wsmerge.recipe.schema import Recipe
from wsmerge.recipe.structure import is_merge
from wsmerge.recipe.tools import tool_of
from wsmerge.recipe.values import is_list, nearest

__all__ = ["Finding", "Level", "key_findings"]

Level = Literal["error", "warning", "info"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a recipe that its author should know.

    Attributes:
        level: an `error` keeps the recipe from being merged; a `warning` is told, and refused where strictness is asked
            for; `info` is told by lint alone.
        code: what kind of finding it is, for programs.
        where: the place, as `LoadedRecipe.where` gives it.
        message: what is so.
        hint: what to change; None where nothing has to be.
        keys: the place, as keys and indices.
    """

    level: Level
    code: str
    where: str
    message: str
    hint: str | None = None
    keys: Keys = ()

    @property
    def advice(self) -> str:
        """The message and the hint."""
        return f"{self.message}; {self.hint}" if self.hint else self.message

    def __str__(self) -> str:
        return f"{self.where}: {self.advice}" if self.where else self.advice


_Place = type[BaseModel]
_Children = Mapping[str, tuple[Literal["one", "each", "values", "settings", "embedding"], _Place]]

_REFERENCE: Final = ("one", ModelReference)
_SETTINGS: Final = ("settings", Conditional)
_CHILDREN: Final[Mapping[_Place, _Children]] = {
    Recipe: {
        "base_model": _REFERENCE,
        "models": ("each", InputModel),
        "slices": ("each", OutputSlice),
        "modules": ("values", OutputModule),
        "parameters": _SETTINGS,
        "tokenizer_source": _REFERENCE,
        "tokenizer": ("one", TokenizerSettings),
    },
    InputModel: {"model": _REFERENCE, "parameters": _SETTINGS},
    InputSlice: {"model": _REFERENCE, "parameters": _SETTINGS},
    OutputSlice: {"sources": ("each", InputSlice), "base_model": _REFERENCE, "parameters": _SETTINGS},
    OutputModule: {"slices": ("each", OutputSlice), "models": ("each", InputModel), "parameters": _SETTINGS},
    ModelReference: {"model": ("one", ModelPath), "lora": ("one", ModelPath)},
    TokenizerSettings: {"source": _REFERENCE, "tokens": ("values", TokenSettings)},
    TokenSettings: {"source": ("embedding", ModelReference)},
    ModelToken: {"model": _REFERENCE},
    Conditional: {},
    ModelPath: {},
    ZeroToken: {},
}
_WORDS: Final[Mapping[_Place, str]] = {
    Recipe: "at the top of the recipe",
    InputSlice: "in a source of a slice",
    InputModel: "in an entry of models",
    OutputSlice: "in a slice",
    OutputModule: "in a module",
    TokenizerSettings: "under tokenizer",
    TokenSettings: "under a token of tokenizer",
    Conditional: "beside the value of a parameter",
    ModelReference: "in a model reference with keys",
    ModelPath: "in a model reference with keys, beside path",
    ModelToken: "in the source of a token, beside kind: model_token",
    ZeroToken: "in the source of a token",
}
# What people write for a key where spelling alone would not lead there.
_MEANT: Final = {
    "adapter": "lora",
    "base": "base_model",
    "layers": "layer_range",
    "method": "merge_method",
    "model": "models",
    "name": "model",
    "path": "model",
    "range": "layer_range",
    "rev": "revision",
    "token": "tokens",
    "torch_dtype": "dtype",
    "weight": "value",
}
_HAS_PARAMETERS: Final = (Recipe, InputModel, InputSlice, OutputSlice, OutputModule)
_BESIDE_MODEL: Final = {
    "revision": ("sibling-revision", "@"),
    "lora": ("sibling-lora", "+"),
    "adapter": ("sibling-lora", "+"),
    "lora_path": ("sibling-lora", "+"),
}
_PARAMETERS: Final = frozenset(parameter.name for method in METHODS.values() for parameter in method.parameters)


def key_findings(document: Document) -> list[Finding]:
    """One for each key that nothing reads, in a recipe that merges models."""
    if not isinstance(document.value, Mapping) or not is_merge(document.value):
        return []
    return [
        Finding("warning", code, document.where(*keys), message, hint, keys)
        for keys, place, mapping in _unread((), document.value, Recipe)
        for code, message, hint in (_told(str(keys[-1]), place, mapping),)
    ]


_Unread = tuple[Keys, _Place, Mapping[Any, Any]]


def _unread(keys: Keys, value: Any, place: _Place) -> Iterator[_Unread]:  # noqa: ANN401 - whatever YAML gave
    if not isinstance(value, Mapping):
        return
    for key, item in value.items():
        here = (*keys, key if isinstance(key, int) and not isinstance(key, bool) else str(key))
        if key not in place.model_fields:
            yield here, place, value
        elif key in _CHILDREN[place]:
            for path, part, inner in _parts(here, item, *_CHILDREN[place][key]):
                yield from _unread(path, part, inner)


def _parts(keys: Keys, value: Any, kind: str, place: _Place) -> Iterator[tuple[Keys, Any, _Place]]:  # noqa: ANN401 - as above
    if kind == "one":
        yield keys, value, place
    elif kind == "each" and is_list(value):
        yield from (((*keys, index), item, place) for index, item in enumerate(value))
    elif kind == "values" and isinstance(value, Mapping):
        yield from (((*keys, str(name)), item, place) for name, item in value.items())
    elif kind == "settings" and isinstance(value, Mapping):
        for name, setting in value.items():
            yield from _parts((*keys, str(name)), setting, "each" if is_list(setting) else "one", place)
    elif kind == "embedding" and isinstance(value, Mapping):
        if value.get("kind") is None:
            yield keys, value, place
        else:
            yield keys, value, ZeroToken if value["kind"] == "zero" else ModelToken


_Told = tuple[str, str, str]
"""Code, message and hint."""


def _told(name: str, place: _Place, mapping: Mapping[Any, Any]) -> _Told:
    if place is OutputSlice and name == "residual_weight":
        return "dead-key", "mergekit knows this key, but nothing reads it", "remove it"
    if place in (InputModel, InputSlice) and name in _BESIDE_MODEL:
        return _beside_model(name, mapping)
    if place in _HAS_PARAMETERS and name in _PARAMETERS:
        return "misplaced-key", f"nothing reads {name!r} here; it belongs under parameters", _moved(name, mapping)
    return _known_elsewhere(name, place) or _near(name, place)


def _known_elsewhere(name: str, place: _Place) -> _Told | None:
    """What is told of a key that means something, here by another name or elsewhere by this."""
    usual = _MEANT.get(name)
    if usual in place.model_fields:
        return _renamed(usual)
    if place is Conditional and name == "layers":
        advice = "give a gradient, or slices with parameters of their own"
        return "misplaced-key", "only the rules of directions have layers", advice
    if place is ModelReference and name in ModelToken.model_fields:
        return "misplaced-key", f"nothing reads {name!r} here", "add kind: model_token beside it"
    for other, words in _WORDS.items():
        if other is not place and name in other.model_fields:
            return "misplaced-key", f"nothing reads {name!r} here; it belongs {words}", "move it there"
    tool = tool_of(name)
    return ("unknown-key", f"nothing reads this key, which is one of {tool}", "remove it") if tool else None


def _near(name: str, place: _Place) -> _Told:
    near = nearest(name, place.model_fields)
    if near:
        return _renamed(near)
    near = nearest(name, sorted(_PARAMETERS), 0.75) if place in _HAS_PARAMETERS else None
    if near:
        message = f"nothing reads this key; did you mean {near!r}, which belongs under parameters?"
        return "misplaced-key", message, f"write `parameters: {{{near}: ...}}`"
    known = ", ".join(place.model_fields)
    return "unknown-key", f"nothing reads this key; the keys {_WORDS[place]} are {known}", "remove it"


def _renamed(meant: str | None) -> _Told:
    return "unknown-key", f"nothing reads this key; did you mean {meant!r}?", f"rename it to {meant}"


def _beside_model(name: str, mapping: Mapping[Any, Any]) -> _Told:
    code, joint = _BESIDE_MODEL[name]
    model, value = mapping.get("model"), mapping.get(name)
    both = f"{model}{joint}{value}" if isinstance(model, str) and isinstance(value, str) else f"NAME{joint}..."
    return code, f"nothing reads {name!r} beside model", f"write `model: {both}`"


def _moved(name: str, mapping: Mapping[Any, Any]) -> str:
    value = mapping.get(name)
    shown = str(value).lower() if isinstance(value, bool) else str(value)
    if not isinstance(value, bool | int | float | str):
        shown = "..."
    return f"write `parameters: {{{name}: {shown}}}`"
