"""Recipes of mergekit's other tools, which are no merges of weights tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from wsmerge.errors import RecipeError
from wsmerge.recipe.structure import is_merge

__all__ = ["refuse_other_tools", "tool_of"]

_KEYS: Final = {
    "mergekit-moe": ("experts", "gate_mode", "experts_per_token", "shared_experts"),
    "mergekit-evolve": ("genome", "tasks"),
    "mergekit-tokensurgeon": ("approximation_method", "donor", "donor_model"),
    "mergekit-extract-lora": ("finetuned_model", "max_rank", "sv_epsilon"),
    "bakllama": ("layer_slices", "embedding_source"),
}


def tool_of(key: str) -> str | None:
    """The tool of mergekit that reads `key`, which no merge does."""
    return next((tool for tool, keys in _KEYS.items() if key in keys), None)


def refuse_other_tools(recipe: Mapping[Any, Any], where: str | None) -> None:
    """Refuse what one of these tools would run.

    Raises:
        RecipeError: nothing is merged here, and a key belongs to such a tool.
    """
    if is_merge(recipe):
        return
    for key in recipe:
        tool = tool_of(str(key))
        if tool:
            raise RecipeError(
                f"{key} is a key of {tool}, whose work wsmerge does not do",
                where=where,
                hint=f"run {tool} of the mergekit package; wsmerge can merge or steer the checkpoint that it writes",
            )
