"""A recipe's models and directions, opened; what cannot be opened is told at once, each with its line."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from wsmerge.engine.merging.models import Models
from wsmerge.engine.merging.references import inline_directions, input_references
from wsmerge.errors import WsmergeError
from wsmerge.recipe import LoadedRecipe

if TYPE_CHECKING:
    from wsmerge.registry import Direction, Registry

__all__ = ["OpenedDirections", "open_directions", "open_inputs"]


class OpenedDirections:
    """The directions of a recipe.

    Attributes:
        added: those under `directions`, in order.
        inline: those that stand where models stand, by reference.
    """

    def __init__(self) -> None:
        self.added: list[Direction] = []
        self.inline: dict[str, Direction] = {}

    @property
    def all(self) -> tuple[Direction, ...]:
        """Every direction that is open."""
        return (*self.added, *self.inline.values())


def open_inputs(loaded: LoadedRecipe, models: Models, store: Registry | None, opened: ExitStack) -> OpenedDirections:
    """Open every model of a recipe in `models`, and its directions; `opened` closes these.

    Raises:
        WsmergeError: of the kind of the first failure, with all of them.
    """
    failures: list[tuple[str, WsmergeError]] = []
    for keys, reference in input_references(loaded.recipe):
        try:
            models.open(reference)
        except WsmergeError as error:
            failures.append((loaded.where(*keys), error))
    directions = open_directions(loaded, store, opened, failures)
    if failures:
        raise _input_failure(failures)
    return directions


def open_directions(
    loaded: LoadedRecipe, store: Registry | None, opened: ExitStack, failures: list[tuple[str, WsmergeError]]
) -> OpenedDirections:
    """Open the directions of a recipe; what fails is added to `failures` with its place."""
    found = OpenedDirections()
    if not loaded.recipe.directions and not any(True for _ in inline_directions(loaded.recipe)):
        return found
    from wsmerge.registry import open_reference, open_registry  # noqa: PLC0415 - most merges have no directions

    shelf = store or open_registry()
    for number, entry in enumerate(loaded.recipe.directions):
        try:
            found.added.append(opened.enter_context(open_reference(entry.direction, shelf)))
        except WsmergeError as error:
            failures.append((loaded.where("directions", number, "direction"), error))
    for keys, reference in inline_directions(loaded.recipe):
        try:
            if reference not in found.inline:
                found.inline[reference] = opened.enter_context(open_reference(reference, shelf))
        except WsmergeError as error:
            failures.append((loaded.where(*keys), error))
    return found


def _input_failure(failures: Sequence[tuple[str, WsmergeError]]) -> WsmergeError:
    """One error for all inputs that cannot be opened; of the kind of the first."""
    unique = list({str(error): (place, error) for place, error in failures}.values())
    first = unique[0][1]
    if len(unique) == 1:
        where = f"{unique[0][0]}: {first.where}" if first.where else unique[0][0]
        return type(first)(first.message, where=where, hint=first.hint, details=first.details)
    details: list[str] = []
    for place, error in unique:
        subject = f"{error.where}: " if error.where else ""
        details += [f"{place}: {subject}{error.message}", *(f"{place}: {line}" for line in error.details)]
    hints = dict.fromkeys(error.hint for _, error in unique if error.hint)
    return type(first)("inputs of the recipe cannot be opened", hint="; ".join(hints) or None, details=tuple(details))
