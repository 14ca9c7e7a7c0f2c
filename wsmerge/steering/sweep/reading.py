"""From a sweep file to its configuration: every problem at once, with the key that was probably meant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from wsmerge.recipe.document import kind_of, spell
from wsmerge.recipe.values import nearest
from wsmerge.steering.settings_files import read_yaml, validated
from wsmerge.steering.sweep.config import (
    Activation,
    AdapterSource,
    Controls,
    FirstToken,
    MethodConfig,
    Pick,
    Repair,
    SweepConfig,
    SystemPrompts,
)
from wsmerge.steering.sweep.measuring import Answers, AnswersJudge, Choice, Hints, Measure, Passages, Score, Task
from wsmerge.steering.sweep.strengths import Grid, KLStrength, KLStrengths

__all__ = ["load_sweep", "parse_sweep"]

_WHAT: Final = "sweep file"

# Which keys stand below a key, or in a form that a value may have (`<kl>`); what is not here has those of the top.
_BELOW: Final[Mapping[str, type[BaseModel]]] = {
    "methods": MethodConfig,
    "k": Grid,
    "<kl>": KLStrengths,
    "choose_at": KLStrength,
    "adapter": AdapterSource,
    "system_prompt": SystemPrompts,
    "activation": Activation,
    "first_token": FirstToken,
    "measures": Measure,
    "choice": Choice,
    "hints": Hints,
    "answers": Answers,
    "score": Score,
    "judge": AnswersJudge,
    "perplexity": Passages,
    "task": Task,
    "pick": Pick,
    "repair": Repair,
    "controls": Controls,
}


def load_sweep(path: Path) -> SweepConfig:
    """Read a sweep file (YAML, UTF-8).

    Raises:
        UsageError: it cannot be read, is not YAML, or has unknown, missing or bad keys; all of them are named.
    """
    return parse_sweep(read_yaml(path, _WHAT), where=str(path))


def parse_sweep(fields: object, *, where: str | None = None) -> SweepConfig:
    """Check the values of a sweep file.

    Raises:
        UsageError: unknown, missing or bad keys; all of them are named.
    """
    return validated(lambda: SweepConfig.model_validate(fields), _WHAT, where, _lines)


def _lines(error: ValidationError) -> Iterator[str]:
    """A line a problem, without those that only follow from another."""
    # The tags of forms that a value may have (`<grid>`) are no keys of the file.
    found = [
        (tuple(key for key in one["loc"] if not str(key).startswith("<")), one)
        for one in error.errors(include_url=False)
    ]
    misspelt = {(*keys[:-1], _meant(one["loc"])) for keys, one in found if one["type"] == "extra_forbidden"}
    for keys, one in found:
        told = (one["type"] == "missing" and keys in misspelt) or (one["type"] == "too_short" and bool(one["input"]))
        if not told:
            yield f"{spell(keys) or 'file'}: {_message(one)}"


def _message(problem: ErrorDetails) -> str:
    kind = problem["type"]
    if kind == "extra_forbidden":
        near = _meant(problem["loc"])
        known = ", ".join(_keys_of(_place(problem["loc"][:-1])))
        return f"unknown key; did you mean {near!r}?" if near else f"unknown key; the keys here are {known}"
    messages = {
        "missing": "missing key",
        "too_short": "is empty: give at least one",
        **dict.fromkeys(("tuple_type", "list_type"), f"must be a list, not {kind_of(problem['input'])}"),
        **dict.fromkeys(
            ("model_type", "dict_type", "mapping_type"),
            f"must be a mapping of keys to values, not {kind_of(problem['input'])}",
        ),
    }
    return messages.get(kind, problem["msg"].removeprefix("Value error, "))


def _meant(keys: tuple[Any, ...]) -> str | None:
    return nearest(str(keys[-1]), _keys_of(_place(keys[:-1])))


def _place(keys: tuple[Any, ...]) -> type[BaseModel]:
    # A measure's name may read like a key.
    inner = keys[2:] if keys[:1] == ("measures",) else keys
    named = [key for key in inner if key in _BELOW] or [key for key in keys[:1] if key in _BELOW]
    return _BELOW[named[-1]] if named else SweepConfig


def _keys_of(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]
