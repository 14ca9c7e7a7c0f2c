"""References and coefficients as callers write them, resolved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from wsmerge.recipe import Coefficients

if TYPE_CHECKING:
    from wsmerge.registry import Direction, Registry

__all__ = ["WeightLike", "ks_of", "opened"]

WeightLike = float | Sequence[Any] | Mapping[int, float]
"""A coefficient as Python has it: a number, a gradient, a recipe's rules, or `{layer: k}`."""


def ks_of(coefficients: Coefficients) -> dict[str, float]:
    """The coefficient of each tensor, without the rule that gave it."""
    return {name: applied.k for name, applied in coefficients.by_tensor.items()}


@contextmanager
def opened(references: Iterable[str], store: Registry) -> Iterator[dict[str, Direction]]:
    """The directions that `references` name, by reference; closed when the block ends."""
    from wsmerge.registry import open_reference  # noqa: PLC0415 - most merges have no directions

    with ExitStack() as stack:
        yield {reference: stack.enter_context(open_reference(reference, store)) for reference in references}
