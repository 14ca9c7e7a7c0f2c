"""What is wrong with the text of a recipe: a merge refuses the errors and warns of the rest."""

from __future__ import annotations

from wsmerge.errors import RecipeError
from wsmerge.recipe import Finding, LoadedRecipe, lint_recipe

__all__ = ["refuse_findings", "text_findings"]


def refuse_findings(loaded: LoadedRecipe, *, strict: bool) -> tuple[str, ...]:
    """The warnings that a recipe's text gives, one line each.

    Raises:
        RecipeError: it has errors; with `strict`, warnings count as such.
    """
    found = text_findings(loaded)
    errors = [item for item in found if item.level == "error"]
    warnings = [item for item in found if item.level == "warning"]
    if errors or (strict and warnings):
        raise RecipeError(
            "cannot be merged as it is" if errors else "refused, since it was to be strict",
            where=str(loaded.path) if loaded.path else None,
            hint="mend it; `wsmerge lint` tells the same without merging",
            # A key that nothing reads is often why another is missing.
            details=tuple(str(item) for item in (*errors, *warnings)),
        )
    return tuple(str(item) for item in warnings)


def text_findings(loaded: LoadedRecipe) -> tuple[Finding, ...]:
    """Everything that can be found without looking at a model; those that reading the recipe found among them."""
    return tuple(lint_recipe(loaded))
