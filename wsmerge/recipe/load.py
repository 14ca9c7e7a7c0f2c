"""Reading recipes: every problem is collected, with its line, and told at once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from wsmerge.errors import Problems, RecipeError
from wsmerge.recipe.document import Document, Duplicate, Keys, kind_of, read_document, read_documents, read_text, spell
from wsmerge.recipe.findings import Finding, key_findings
from wsmerge.recipe.schema import DirectionEntry, Recipe, Rule, Weight
from wsmerge.recipe.structure import given_keys, structure_faults
from wsmerge.recipe.tools import refuse_other_tools
from wsmerge.recipe.wording import meant_at_the_top, problems_in

__all__ = ["LoadedRecipe", "load_recipe", "load_recipes", "parse_recipe", "parse_recipes", "weight_from"]


@dataclass(frozen=True, slots=True, eq=False)
class LoadedRecipe:
    """A recipe and where it came from.

    Attributes:
        recipe: what it says.
        text: the YAML verbatim; of a mapping, its recipe as YAML.
        path: the file; None if it was none.
        document: the lines of its parts.
        findings: the keys that nothing reads; `lint_recipe` finds more.
    """

    recipe: Recipe
    text: str
    path: Path | None
    document: Document
    findings: tuple[Finding, ...] = ()

    @property
    def name(self) -> str | None:
        """What other recipes of the same file call it; None if it has no name."""
        return self.recipe.name

    def where(self, *keys: str | int) -> str:
        """A part as messages name it: `recipe.yml:7: directions[0].weight` for ("directions", 0, "weight")."""
        return self.document.where(*keys)


def load_recipe(path: str | Path) -> LoadedRecipe:
    """The one recipe in the YAML file `path` (UTF-8).

    Raises:
        RecipeError: the file cannot be read, is no valid recipe, or has several; `details` has one line a problem, with
            its place.
    """
    path = Path(path)
    return _loaded(read_document(read_text(path), str(path)), path)


def load_recipes(path: str | Path) -> tuple[LoadedRecipe, ...]:
    """The recipes in the YAML file `path` (UTF-8), one a document, in its order.

    Raises:
        RecipeError: as `load_recipe`; or two have one name, or two have none.
    """
    path = Path(path)
    return _all_loaded(read_documents(read_text(path), str(path)), path)


def parse_recipe(source: str | Mapping[str, Any]) -> LoadedRecipe:
    """The recipe in YAML text or in a JSON-like mapping; both forms of one recipe give equal recipes.

    Raises:
        RecipeError: no valid recipe; `details` has one line a problem, with its place.
    """
    return _loaded(read_document(source) if isinstance(source, str) else Document(source), None)


def parse_recipes(text: str) -> tuple[LoadedRecipe, ...]:
    """The recipes in YAML text, one a document.

    Raises:
        RecipeError: as `load_recipes`.
    """
    return _all_loaded(read_documents(text), None)


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


def _all_loaded(documents: Sequence[Document], path: Path | None) -> tuple[LoadedRecipe, ...]:
    if len(documents) == 1:
        return (_loaded(documents[0], path),)
    problems = Problems()
    loaded: list[LoadedRecipe] = []
    for document in documents:
        try:
            loaded.append(_loaded(document, path))
        except RecipeError as error:
            for line in error.details or (str(error),):
                problems.add(line)
    for line in _name_faults(loaded):
        problems.add(line)
    problems.raise_if_any(RecipeError, "not valid recipes", where=str(path) if path else None)
    return tuple(loaded)


def _name_faults(recipes: Iterable[LoadedRecipe]) -> Iterator[str]:
    first: dict[str | None, LoadedRecipe] = {}
    for recipe in recipes:
        earlier = first.setdefault(recipe.name, recipe)
        if earlier is recipe:
            continue
        line = earlier.document.line("name")
        if recipe.name is None:
            yield f"{recipe.where()}: has no name, and nor has the one on line {line}; only one can be the result"
        else:
            yield f"{recipe.where('name')}: {recipe.name!r} is the name of the recipe on line {line} too"


def _loaded(document: Document, path: Path | None) -> LoadedRecipe:
    recipe, findings = _read(document)
    return LoadedRecipe(recipe, document.text or recipe.to_yaml(), path, document, findings)


def _read(document: Document) -> tuple[Recipe, tuple[Finding, ...]]:
    if not isinstance(document.value, Mapping):
        message = (
            f"a recipe is a mapping with merge_method, or base_model and directions, not {kind_of(document.value)}"
        )
        raise RecipeError(message, where=document.where() or None)
    refuse_other_tools(document.value, document.where() or None)
    recipe = None
    findings = key_findings(document)
    read_twice, unread_twice = _duplicates(document, findings)
    found = [(one.line, keys, one.told) for one, keys in read_twice]
    misspelt = meant_at_the_top(str(key) for key in document.value)
    for key, fault in structure_faults(given_keys(document.value)):
        if not (fault.startswith("missing") and key in misspelt):
            found.append((document.line(key), (key,), fault))
    try:
        recipe = Recipe.model_validate(document.value)
    except ValidationError as error:
        found += [(document.line(*keys), keys, message) for keys, message in problems_in(error)]
    findings = sorted((*findings, *unread_twice), key=lambda one: document.line(*one.keys))
    if recipe is not None and not found:
        return recipe, tuple(findings)
    # The keys that nothing reads are often why others are missing, so they are told with the errors.
    found += [(document.line(*one.keys), one.keys, one.advice) for one in findings]
    problems = Problems()
    for line, keys, message in sorted(found, key=lambda problem: problem[0]):
        problems.add(f"{document.at(line, *keys)}: {message}")
    raise RecipeError("not a valid recipe", where=document.name or None, details=problems.lines)


def _duplicates(document: Document, unread: Sequence[Finding]) -> tuple[list[tuple[Duplicate, Keys]], list[Finding]]:
    """The keys given twice that something reads, each with a place; and a warning for each other one."""
    ignored = {one.keys for one in unread}
    read: list[tuple[Duplicate, Keys]] = []
    told: list[Finding] = []
    for one in document.duplicates:
        place = next((keys for keys in one.places if not _lies_in(keys, ignored)), None)
        if place is not None:
            read.append((one, place))
        else:
            where = document.at(one.line, *one.places[0])
            told.append(Finding("warning", "duplicate-key", where, one.told, "remove or rename one", one.places[0]))
    return read, told


def _lies_in(keys: Keys, places: Collection[Keys]) -> bool:
    return any(keys[:length] in places for length in range(1, len(keys) + 1))
