"""Reading recipes: every problem is collected, with its line, and told at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from wsmerge.errors import Problems, RecipeError
from wsmerge.recipe.document import Document, kind_of, read_document, spell
from wsmerge.recipe.schema import DirectionEntry, Recipe, Rule, Weight
from wsmerge.recipe.wording import problems_in

__all__ = ["LoadedRecipe", "load_recipe", "parse_recipe", "weight_from"]

_LARGEST: Final = 1 << 24  # a recipe is some lines of text; a checkpoint given by mistake is not read whole


@dataclass(frozen=True, slots=True, eq=False)
class LoadedRecipe:
    """A recipe and where it came from.

    Attributes:
        recipe: what it says.
        text: the YAML verbatim; of a mapping, its recipe as YAML.
        path: the file; None if it was none.
        document: the lines of its parts.
    """

    recipe: Recipe
    text: str
    path: Path | None
    document: Document

    def where(self, *keys: str | int) -> str:
        """A part as messages name it: `recipe.yml:7: directions[0].weight` for ("directions", 0, "weight")."""
        return self.document.where(*keys)


def load_recipe(path: str | Path) -> LoadedRecipe:
    """The recipe in the YAML file `path` (UTF-8).

    Raises:
        RecipeError: the file cannot be read, or is no valid recipe; `details` has one line a problem, with its place.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
    except OSError as error:
        raise RecipeError(f"cannot be read: {error.strerror}", where=str(path)) from error
    if len(data) > _LARGEST:
        raise RecipeError("too large for a recipe", where=str(path), hint="name the recipe, not the checkpoint")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"byte {data[error.start]:#04x} is not UTF-8"
        raise RecipeError(message, where=f"{path}:{line}", hint="save the recipe as UTF-8") from error
    document = read_document(text, str(path))
    return LoadedRecipe(_recipe(document), text, path, document)


def parse_recipe(source: str | Mapping[str, Any]) -> LoadedRecipe:
    """The recipe in YAML text or in a JSON-like mapping; both forms of one recipe give equal recipes.

    Raises:
        RecipeError: no valid recipe; `details` has one line a problem, with its place.
    """
    document = read_document(source) if isinstance(source, str) else Document(source)
    recipe = _recipe(document)
    return LoadedRecipe(recipe, source if isinstance(source, str) else recipe.to_yaml(), None, document)


def weight_from(value: Any) -> Weight:  # noqa: ANN401 - the forms below, out of any array library
    """The weight that a caller in Python means.

    Args:
        value: anything that may stand under `weight` in a recipe: a number, a list or 1-D array as a gradient (spread
            over the layers, so not one value a layer), a list of rules; or one value a layer, as a mapping from layers
            (8, or "8-15") to k. Layers that the mapping does not name, and tensors of no layer, get k = 0.

    Raises:
        RecipeError: none of these, NaN or infinite.
    """
    to_list = getattr(value, "tolist", None)  # numpy's and torch's arrays and scalars
    data = to_list() if callable(to_list) else value
    if isinstance(data, Mapping) and data and not set(data) & set(Rule.model_fields):
        data = [{"layers": _plain(layers), "value": k} for layers, k in data.items()]
    try:
        return DirectionEntry(direction="-", weight=data).weight
    except ValidationError as error:
        details = tuple(f"{spell(keys)}: {message}" for keys, message in problems_in(error))
        raise RecipeError("not a weight", details=details) from error


def _plain(layers: Any) -> Any:  # noqa: ANN401 - whatever the caller has for a key
    return layers if isinstance(layers, bool) or not isinstance(layers, Integral) else int(layers)


def _recipe(document: Document) -> Recipe:
    if not isinstance(document.value, Mapping):
        message = f"a recipe is a mapping with base_model and directions, not {kind_of(document.value)}"
        raise RecipeError(message, where=document.where() or None)
    recipe = None
    found = [(again.line, again.keys, f"given twice, first on line {again.first}") for again in document.duplicates]
    try:
        recipe = Recipe.model_validate(document.value)
    except ValidationError as error:
        found += [(document.line(*keys), keys, message) for keys, message in problems_in(error)]
    problems = Problems()
    for line, keys, message in sorted(found, key=lambda problem: problem[0]):
        problems.add(f"{document.at(line, *keys)}: {message}")
    if recipe is None or problems:
        raise RecipeError("not a valid recipe", where=document.name or None, details=problems.lines)
    return recipe
