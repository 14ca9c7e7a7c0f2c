"""Recipes as callers have them, and how they are carried out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsmerge.engine.merging.build import Leave
from wsmerge.engine.merging.raw import Missing
from wsmerge.engine.numerics import Numerics
from wsmerge.engine.plan import PlanOptions
from wsmerge.recipe import LoadedRecipe, load_recipes, parse_recipe, parse_recipes

__all__ = ["RecipeLike", "Settings", "loaded_recipes"]

RecipeLike = LoadedRecipe | Mapping[str, Any] | str | Path
"""A recipe: a file's path, its text or its values as a mapping, or one that was loaded already."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How recipes are carried out, beside what they say.

    Attributes:
        options: block size, threads and shard size.
        numerics: what decides the bits.
        leave: what is refused unless it is allowed.
        strict: refuse what otherwise is only warned of: keys that nothing reads, and the like.
        download: whether models that are not on this machine may be downloaded.
        raw: merge raw tensor files name by name, and what becomes of tensors that some of them lack; None for models.
        intermediates: what to open for the name of another merge of the same file: its folder.
    """

    options: PlanOptions = field(default_factory=PlanOptions)
    numerics: Numerics = field(default_factory=Numerics)
    leave: Leave = field(default_factory=Leave)
    strict: bool = False
    download: bool = True
    raw: Missing | None = None
    intermediates: Mapping[str, Path] = field(default_factory=dict)

    def renamed(self, path: str) -> str:
        """The folder of the intermediate merge that `path` names, else `path`."""
        found = self.intermediates.get(path.removeprefix("./"))
        return str(found) if found is not None else path


def loaded_recipes(recipe: RecipeLike) -> tuple[LoadedRecipe, ...]:
    """The recipes that `recipe` gives: those of a file or text, one a document, or the one it is.

    Raises:
        RecipeError: no valid recipe; all problems, with lines.
    """
    if isinstance(recipe, LoadedRecipe):
        return (recipe,)
    if isinstance(recipe, Path) or (isinstance(recipe, str) and "\n" not in recipe):
        return load_recipes(recipe)
    return parse_recipes(recipe) if isinstance(recipe, str) else (parse_recipe(recipe),)
