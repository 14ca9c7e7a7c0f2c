"""Recipes as callers have them, and how they are carried out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsmerge.core.hub.connection import Hub
from wsmerge.core.hub.windows import KEPT_BYTES
from wsmerge.engine.locate import locate_model, locate_streamed
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
        stream: whether the tensor files of models on the Hub are read from there by range, without a local copy. What a
            commit's files are is trusted to the Hub and its connection; directions are checked by their digests.
        raw: merge raw tensor files name by name, and what becomes of tensors that some of them lack; None for models.
        intermediates: what to open for the name of another merge of the same file: its folder.
    """

    options: PlanOptions = field(default_factory=PlanOptions)
    numerics: Numerics = field(default_factory=Numerics)
    leave: Leave = field(default_factory=Leave)
    strict: bool = False
    download: bool = True
    stream: bool = False
    raw: Missing | None = None
    intermediates: Mapping[str, Path] = field(default_factory=dict)

    def renamed(self, path: str) -> str:
        """The folder of the intermediate merge that `path` names, else `path`."""
        found = self.intermediates.get(path.removeprefix("./"))
        return str(found) if found is not None else path

    def hub(self) -> Hub | None:
        """Where models are streamed from: a connection as the environment has it; None where they are downloaded."""
        if not (self.stream and self.download):
            return None
        # Blocks in work lie beside each other, and each is read bit by bit: all of them have to stay in memory.
        in_work = self.options.worker_count * self.options.block_bytes
        return Hub(kept_bytes=KEPT_BYTES + in_work)

    def locate(self, path: str, revision: str | None = None) -> Path:
        """The folder of a model or tokenizer that a recipe names; downloaded if need be, all or without its weights."""
        hub, text = self.hub(), self.renamed(path)
        if hub is not None:
            return locate_streamed(text, hub, revision=revision).path
        return locate_model(text, revision=revision, download=self.download)


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
