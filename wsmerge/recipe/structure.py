"""Which keys at the top of a recipe have to be there, and which exclude each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Final

__all__ = ["INPUTS", "given_keys", "is_merge", "structure_faults"]

INPUTS: Final = ("models", "slices", "modules")
"""The keys that list what is merged, of which a merge has one."""

_MERGE_ONLY: Final = ("dtype", "parameters", "tokenizer_source", "tokenizer", "chat_template")


def is_merge(recipe: Mapping[Any, Any]) -> bool:
    """Whether the recipe, as YAML gives it, merges models or means to."""
    return any(recipe.get(key) is not None for key in ("merge_method", *INPUTS))


def given_keys(recipe: Mapping[Any, Any]) -> set[str]:
    """The keys that say something: not null, no empty list or mapping of models, no empty `dtype` or `chat_template`."""
    may_be_empty = (*INPUTS, "dtype", "chat_template")
    said = {str(key) for key, value in recipe.items() if value is not None and (key not in may_be_empty or value)}
    return said | ({"directions"} & recipe.keys())  # these may not be null, which the schema tells


def structure_faults(given: AbstractSet[str]) -> Iterator[tuple[str, str]]:
    """The keys that are missing or too many among those `given`, and what is wrong with each."""
    inputs = [key for key in INPUTS if key in given]
    merges = bool(inputs) or "merge_method" in given
    for key in inputs[1:]:
        yield key, f"{inputs[0]} is given too; a recipe has exactly one of models, slices and modules"
    if inputs and "merge_method" not in given:
        yield "merge_method", f"missing key; {inputs[0]} need one, for example `merge_method: linear`"
    if merges and not inputs:
        yield "merge_method", "has nothing to merge; give models, slices or modules"
    if "tokenizer" in given and "tokenizer_source" in given:
        yield "tokenizer", "tokenizer_source is given too; keep tokenizer, with the other's value as its source"
    if not merges:
        for key in _MERGE_ONLY:
            if key in given:
                yield key, "is for merges of models; this recipe has no merge_method, so remove it"
        for key in ("base_model", "directions"):
            if key not in given:
                yield key, "missing key"
