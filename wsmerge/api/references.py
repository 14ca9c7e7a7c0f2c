"""References and coefficients as callers write them, resolved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from wsmerge.errors import UsageError
from wsmerge.recipe import Coefficients

if TYPE_CHECKING:
    from wsmerge.registry import Direction, Registry

__all__ = ["WeightLike", "ks_of", "opened"]

Key = TypeVar("Key")
"""A reference, the folder of a direction, or an opened direction."""

WeightLike = float | Sequence[Any] | Mapping[int, float]
"""A coefficient as Python has it: a number, a gradient, a recipe's rules, or `{layer: k}`."""


def ks_of(coefficients: Coefficients) -> dict[str, float]:
    """The coefficient of each tensor, without the rule that gave it."""
    return {name: applied.k for name, applied in coefficients.by_tensor.items()}


@contextmanager
def opened(references: Iterable[Key], store: Registry) -> Iterator[dict[Key, Direction]]:
    """The directions that `references` name, by reference; those that this opens are closed when the block ends.

    Raises:
        UsageError: something that is no reference.
    """
    from wsmerge.registry import open_reference  # noqa: PLC0415 - most merges have no directions
    from wsmerge.registry.resolve import reference_text  # noqa: PLC0415 - as above

    with ExitStack() as stack:
        found: dict[Key, Direction] = {}
        for one in references:
            if isinstance(one, str | Path):
                found[one] = stack.enter_context(open_reference(reference_text(one), store))
            elif hasattr(one, "shapes"):
                found[one] = cast("Direction", one)
            else:
                raise UsageError(f"{one!r} is no direction", hint="give a reference, a folder, or an opened direction")
        yield found
