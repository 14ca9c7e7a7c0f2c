"""A recipe as it is published with its checkpoint: models and directions by the names that others know, no local path."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from wsmerge.core.opening import expanded
from wsmerge.core.tensors import DeltaSource
from wsmerge.engine.locate import model_name, path_label
from wsmerge.engine.plan import MergePlan
from wsmerge.recipe import LoadedRecipe

if TYPE_CHECKING:
    from wsmerge.registry import Direction

__all__ = ["published_lines", "published_recipe"]

_MODELS: Final = frozenset({"model", "base_model", "lora", "path", "source", "tokenizer_source"})
"""Keys under which a recipe names a model."""


def published_recipe(
    loaded: LoadedRecipe,
    plan: MergePlan,
    directions: Sequence[Direction],
    inline: Mapping[str, DeltaSource] | None = None,
) -> dict[str, Any]:
    """The recipe as JSON values.

    Args:
        loaded: the recipe.
        plan: what it came to, with its models opened.
        directions: those under `directions`, in order.
        inline: those in place of models, by reference.
    """
    recipe = loaded.recipe
    labels = {
        reference: getattr(direction, "pinned", direction.label) for reference, direction in (inline or {}).items()
    }
    published: dict[str, Any] = _named(recipe.to_dict(), labels)
    if recipe.merge_method is None and recipe.base_model is not None:
        published["base_model"] = model_name(recipe.base_model.model.path, plan.base.path)
    if recipe.directions:
        entries = zip(published["directions"], directions, strict=True)
        published["directions"] = [entry | {"direction": direction.pinned} for entry, direction in entries]
    return published


def published_lines(lines: Iterable[str], loaded: LoadedRecipe) -> tuple[str, ...]:
    """`lines` about a recipe, with its file and its models by their names in place of their paths."""
    names: dict[str, str] = {str(loaded.path): loaded.path.name} if loaded.path else {}

    def note(text: str) -> str:
        name = _model_name(text)
        if name != text:
            names[text] = name
        return name

    _walk(loaded.recipe.to_dict(), note)
    found = tuple(lines)
    for path in sorted(names, key=len, reverse=True):
        found = tuple(line.replace(path, names[path]) for line in found)
    return found


def _named(values: Any, labels: Mapping[str, str]) -> Any:  # noqa: ANN401 - JSON values
    return _walk(values, _model_name, lambda reference: labels.get(reference, reference))


def _walk(
    value: Any,  # noqa: ANN401 - JSON values
    model: Callable[[str], str],
    direction: Callable[[str], str] = str,
    key: str | None = None,
) -> Any:  # noqa: ANN401 - as above
    """`value` with what names a model, or a direction, given to these."""
    if isinstance(value, dict):
        return {name: _walk(item, model, direction, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_walk(item, model, direction, key) for item in value]
    if isinstance(value, str) and key in _MODELS:
        return model(value)
    return direction(value) if isinstance(value, str) and key == "direction" else value


def _model_name(text: str) -> str:
    """`path[@revision][+path[@revision]]` with the name of the folder in place of each path that is on this machine."""
    return "+".join(_part_name(part) for part in text.split("+"))


def _part_name(text: str) -> str:
    path, separator, revision = text.partition("@")
    for candidate, rest in ((text, ""), (path, separator + revision)):
        place = expanded(candidate)
        if candidate and place.exists():
            return path_label(place) + rest
    return text
