"""`NAME=VALUE` on the command line: directions and what each is multiplied by, arguments of a chat template."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from wsmerge.errors import RecipeError, UsageError

__all__ = ["coefficients", "number", "template_args", "weight"]


def coefficients(given: Iterable[str], option: str, read: Callable[[str], Any]) -> dict[str, Any]:
    """The coefficient of each reference.

    Args:
        given: texts `REF=K`.
        option: that they were given by, for errors.
        read: makes a coefficient of K; raises ValueError where it is none.

    Raises:
        UsageError: a text that is not such, or a direction that is given twice.
    """
    found: dict[str, Any] = {}
    for text in given:
        reference, sign, k = text.rpartition("=")
        try:
            value = read(k)
        except ValueError as error:
            told = str(error) if sign else "no coefficient"
            raise UsageError(told, where=f"{option} {text}", hint=f"write {option} sycophancy=-1.5") from error
        if not sign:
            raise UsageError("no coefficient", where=f"{option} {text}", hint=f"write {option} sycophancy=-1.5")
        if reference in found:
            raise UsageError("one direction is given twice", where=option, hint="add its coefficients up")
        found[reference] = value
    return found


def number(text: str) -> float:
    """One number."""
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is no number") from error


def weight(text: str) -> Any:  # noqa: ANN401 - whatever YAML holds; the recipe's schema checks it
    """A number, a gradient, or `{8-15: -1.5}` by layer, in YAML as in a recipe."""
    from wsmerge.recipe.document import read_value

    try:
        return read_value(text)
    except RecipeError as error:
        raise ValueError(f"{text!r} is no coefficient") from error


def template_args(given: Iterable[str] | None) -> dict[str, Any]:
    """The arguments of a chat template, each value as YAML reads it: `enable_thinking=false`.

    Raises:
        UsageError: a text that is no KEY=VALUE.
    """
    from wsmerge.recipe.document import read_value

    found: dict[str, Any] = {}
    for text in given or ():
        key, sign, value = text.partition("=")
        try:
            found[key] = read_value(value)
        except RecipeError:
            sign = ""
        if not sign or not key.isidentifier():
            raise UsageError(
                "no argument of a chat template",
                where=f"--template-arg {text}",
                hint="write --template-arg enable_thinking=false",
            )
    return found
