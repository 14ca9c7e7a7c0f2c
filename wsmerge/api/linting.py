"""Everything that is wrong with a recipe, told without merging it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

from wsmerge.api.findings import text_findings
from wsmerge.api.opening import open_directions
from wsmerge.api.recipes import plan
from wsmerge.api.settings import RecipeLike, Settings, loaded_recipes
from wsmerge.engine.merging.models import Models
from wsmerge.engine.merging.references import input_references
from wsmerge.errors import ModelAbsentError, WsmergeError
from wsmerge.recipe import Finding, LoadedRecipe
from wsmerge.recipe.chain import intermediate, model_references
from wsmerge.recipe.findings import Level
from wsmerge.registry import Registry

__all__ = ["lint"]


def lint(recipe: RecipeLike, *, store: Registry | None = None, settings: Settings | None = None) -> tuple[Finding, ...]:
    """Everything that is wrong, or probably not meant, in a recipe; reads headers only, and downloads nothing.

    Models that are on this machine are looked at too: layers that they lack, vocabularies and shapes that differ, tensors
    that nothing names, quantised weights, embeddings that are tied in some.

    Returns:
        Findings of level `error` (a merge refuses them), `warning` (it goes on; `strict` refuses) and `info`.

    Raises:
        RecipeError: the file is no recipe at all.
    """
    recipes = loaded_recipes(recipe)
    checked = settings or Settings()
    names = {item.name for item in recipes if item.name}
    return tuple(
        finding for item in recipes for finding in (*text_findings(item), *_of_models(item, names, store, checked))
    )


def _of_models(loaded: LoadedRecipe, names: set[str], store: Registry | None, settings: Settings) -> Iterator[Finding]:
    """What planning against the models finds."""
    if any(item.level == "error" for item in text_findings(loaded)):
        return
    if _needs(loaded, names):
        yield Finding(
            "info", "not-checked", loaded.where(), "not checked against its models: other recipes of the file make them"
        )
        return
    try:
        with plan(loaded, store=store, settings=replace(settings, download=False, strict=False)) as planned:
            told = {str(item) for item in text_findings(loaded)}
            for line in planned.warnings:
                if line not in told:
                    yield Finding("warning", "models", loaded.where(), line)
    except WsmergeError as error:
        # Planning stops at the first input that is not here; the others may still be wrong.
        yield from list(_of_inputs(loaded, store)) or [_finding(error, loaded.where())]


def _of_inputs(loaded: LoadedRecipe, store: Registry | None) -> Iterator[Finding]:
    """Which models and directions cannot be opened, one by one."""
    with ExitStack() as opened:
        models = opened.enter_context(Models(download=False))
        for keys, reference in input_references(loaded.recipe):
            try:
                models.open(reference)
            except WsmergeError as error:
                yield _finding(error, loaded.where(*keys))
        failures: list[tuple[str, WsmergeError]] = []
        open_directions(loaded, store, opened, failures)
        yield from (_finding(error, place) for place, error in failures)


def _finding(error: WsmergeError, place: str) -> Finding:
    level: Level = "info" if isinstance(error, ModelAbsentError) else "error"
    details = "".join(f"\n  - {line}" for line in error.details)
    message = f"{error.where}: {error.message}{details}" if error.where else f"{error.message}{details}"
    return Finding(level, error.code, place, message, error.hint)


def _needs(loaded: LoadedRecipe, names: set[str]) -> bool:
    """Whether another recipe of the file makes one of its models."""
    return any(intermediate(one.model.path, names) for _, one in model_references(loaded.recipe))
