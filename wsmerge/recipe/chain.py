"""Recipes of one file that build on each other: the result of one is a model of another, by its name.

A model whose path is NAME or ./NAME, where another document of the file has `name: NAME`, is that document's result. Only
models are looked at, so a merge may be called like its merge method.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise

from wsmerge.errors import Problems, RecipeError
from wsmerge.recipe.document import Keys
from wsmerge.recipe.load import LoadedRecipe
from wsmerge.recipe.merging import InputModel, ModelReference, ModelToken, OutputSlice, TokenizerSettings
from wsmerge.recipe.schema import Recipe

__all__ = ["file_name", "in_order", "intermediate", "model_references", "ordered", "referenced_models"]


def model_references(recipe: Recipe) -> Iterator[tuple[Keys, ModelReference]]:
    """Every model that a recipe names, and where: base_model, inputs in order, then the tokenizer's."""
    if recipe.base_model:
        yield ("base_model",), recipe.base_model
    yield from _in_models((), recipe.models)
    yield from _in_slices((), recipe.slices)
    for name, module in (recipe.modules or {}).items():
        yield from _in_models(("modules", name), module.models)
        yield from _in_slices(("modules", name), module.slices)
    if isinstance(recipe.tokenizer_source, ModelReference):
        yield ("tokenizer_source",), recipe.tokenizer_source
    if recipe.tokenizer:
        yield from _in_tokenizer(recipe.tokenizer)


def referenced_models(recipe: Recipe) -> tuple[ModelReference, ...]:
    """The base and the models that are merged, each once, in the recipe's order: what mergekit calls referenced."""
    found = (one for keys, one in model_references(recipe) if keys == ("base_model",) or keys[-1] == "model")
    return tuple(dict.fromkeys(found))


def intermediate(path: str, names: Collection[str]) -> str | None:
    """The recipe among `names` whose result the model path means; None if it is a path or Hub id of its own."""
    name = path.removeprefix("./")
    return name if name in names else None


def ordered(recipes: Sequence[LoadedRecipe]) -> tuple[tuple[LoadedRecipe, tuple[str, ...]], ...]:
    """The recipes so that each comes after those whose results it needs, else in their order, with these names.

    Raises:
        RecipeError: recipes need each other in a circle.
    """
    by_name = {recipe.name: recipe for recipe in recipes if recipe.name is not None}
    needs = [_needed(recipe, by_name) for recipe in recipes]
    done: list[tuple[LoadedRecipe, tuple[str, ...]]] = []
    ready: set[str | None] = set()
    waiting = list(zip(recipes, needs, strict=True))
    while waiting:
        later = []
        for recipe, names in waiting:
            if ready.issuperset(names):
                done.append((recipe, names))
                ready.add(recipe.name)
            else:
                later.append((recipe, names))
        if len(later) == len(waiting):
            raise _circle({str(recipe.name): (recipe, names) for recipe, names in waiting if recipe.name is not None})
        waiting = later
    return tuple(done)


def in_order(recipes: Sequence[LoadedRecipe]) -> tuple[list[tuple[LoadedRecipe, str]], LoadedRecipe]:
    """The recipes whose results may be needed, in the order of work and with their names; and the one that is the result.

    The result is the recipe without a name, else the last in that order.

    Raises:
        RecipeError: as `ordered`.
    """
    sequence = [recipe for recipe, _ in ordered(recipes)]
    result = next((recipe for recipe in recipes if recipe.name is None), sequence[-1])
    return [(recipe, recipe.name) for recipe in sequence if recipe is not result and recipe.name is not None], result


def file_name(name: str) -> str:
    """The name of a recipe as part of the name of a folder: it may be called anything, `../blend` too."""
    return re.sub(r"[^\w.-]", "_", name)


def _needed(recipe: LoadedRecipe, names: Collection[str]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for _, reference in model_references(recipe.recipe):
        for path in (reference.model, reference.lora):
            name = intermediate(path.path, names) if path else None
            if name is not None:
                found.setdefault(name)
    return tuple(found)


def _circle(waiting: dict[str, tuple[LoadedRecipe, tuple[str, ...]]]) -> RecipeError:
    # Each of these waits for another of them, so following any leads into a circle.
    path = [next(iter(waiting))]
    while path[-1] not in path[:-1]:
        path.append(next(name for name in waiting[path[-1]][1] if name in waiting))
    circle = path[path.index(path[-1]) :]
    problems = Problems()
    for name, needed in pairwise(circle):
        recipe = waiting[name][0]
        problems.add(f"{recipe.where('name')}: {name} needs {needed}")
    first = waiting[circle[0]][0]
    return RecipeError(
        "recipes need each other's results in a circle",
        where=str(first.path) if first.path else None,
        hint="if a model is meant that has the name of a recipe, rename the recipe",
        details=problems.lines,
    )


def _in_models(keys: Keys, models: Sequence[InputModel] | None) -> Iterator[tuple[Keys, ModelReference]]:
    for index, entry in enumerate(models or ()):
        if entry.model:
            yield (*keys, "models", index, "model"), entry.model


def _in_slices(keys: Keys, slices: Sequence[OutputSlice] | None) -> Iterator[tuple[Keys, ModelReference]]:
    for number, part in enumerate(slices or ()):
        here = (*keys, "slices", number)
        for index, source in enumerate(part.sources):
            if source.model:
                yield (*here, "sources", index, "model"), source.model
        if part.base_model:
            yield (*here, "base_model"), part.base_model


def _in_tokenizer(tokenizer: TokenizerSettings) -> Iterator[tuple[Keys, ModelReference]]:
    if isinstance(tokenizer.source, ModelReference):
        yield ("tokenizer", "source"), tokenizer.source
    for token, settings in (tokenizer.tokens or {}).items():
        source = settings.source.model if isinstance(settings.source, ModelToken) else settings.source
        if isinstance(source, ModelReference):
            yield ("tokenizer", "tokens", token, "source"), source
