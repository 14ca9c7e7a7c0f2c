"""What a recipe merges, with the place where it says so; in the order of first appearance."""

from __future__ import annotations

from collections.abc import Iterator

from wsmerge.recipe.chain import model_references
from wsmerge.recipe.document import Keys
from wsmerge.recipe.merging import InputModel, ModelReference, OutputSlice
from wsmerge.recipe.schema import Recipe

__all__ = ["inline_directions", "input_references"]


def input_references(recipe: Recipe) -> Iterator[tuple[Keys, ModelReference]]:
    """The models that are merged, `base_model` first; not those that only lend a tokenizer."""
    for keys, reference in model_references(recipe):
        if keys[0] not in ("tokenizer", "tokenizer_source"):
            yield keys, reference


def inline_directions(recipe: Recipe) -> Iterator[tuple[Keys, str]]:
    """The directions that stand where models stand."""
    yield from _in_models((), recipe.models or ())
    yield from _in_slices((), recipe.slices or ())
    for name, module in (recipe.modules or {}).items():
        yield from _in_models(("modules", name), module.models or ())
        yield from _in_slices(("modules", name), module.slices or ())


def _in_models(keys: Keys, entries: tuple[InputModel, ...]) -> Iterator[tuple[Keys, str]]:
    for number, entry in enumerate(entries):
        if entry.direction is not None:
            yield (*keys, "models", number, "direction"), entry.direction


def _in_slices(keys: Keys, slices: tuple[OutputSlice, ...]) -> Iterator[tuple[Keys, str]]:
    for number, part in enumerate(slices):
        for place, source in enumerate(part.sources):
            if source.direction is not None:
                yield (*keys, "slices", number, "sources", place, "direction"), source.direction
