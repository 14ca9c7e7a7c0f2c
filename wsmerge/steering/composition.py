"""Several directions with coefficients as one: sum_i k_i(layer, tensor) * w_i, factored where all its parts are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import add

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.deltas import Delta, LowRankDelta
from wsmerge.core.reading import delta_values
from wsmerge.core.tensors import BaseIdentity, DeltaSource
from wsmerge.errors import BaseMismatchError, DirectionError, Problems

__all__ = ["Composition", "Part"]


@dataclass(frozen=True, slots=True)
class Part:
    """A direction and its coefficient for each of its tensors; what is not named has k = 0."""

    source: DeltaSource
    coefficients: Mapping[str, float]

    def k(self, name: str) -> float:
        """The coefficient of tensor `name`."""
        return self.coefficients.get(name, 0.0) if name in self.source.shapes else 0.0


class Composition:
    """The sum of `parts` as a `DeltaSource`: nothing is computed until it is read.

    Low-rank parts stay factored and their ranks add up; a tensor with a dense part becomes dense. Sums are in float64
    and rounded once to float32.

    Raises:
        BaseMismatchError: parts over different bases, or of one tensor with different shapes.
        DirectionError: no part at all.
    """

    def __init__(self, parts: Sequence[Part], *, label: str = "composition") -> None:
        if not parts:
            raise DirectionError("nothing to compose", hint="name at least one direction and its coefficient")
        self.label = label
        self.digest = ""
        self._parts = tuple(parts)
        _check_bases(parts)
        if not self.shapes:
            raise DirectionError(
                "every coefficient is 0, so nothing is left", where=label, hint="give a k other than 0"
            )

    @property
    def base(self) -> BaseIdentity:
        """The base of all parts."""
        return self._parts[0].source.base

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each tensor that any part changes with k other than 0."""
        return {name: shape for part in self._parts for name, shape in part.source.shapes.items() if part.k(name) != 0}

    def rank_or_none(self, name: str) -> int | None:
        """As `rank`, and None too for a tensor that no part changes."""
        return self.rank(name) if name in self.shapes else None

    def rank(self, name: str) -> int | None:
        """Sum of the parts' ranks; None where one of them is dense."""
        ranks = [part.source.rank(name) for part in self._taking_part(name)]
        return None if None in ranks else sum(rank for rank in ranks if rank is not None)

    def low_rank(self, name: str) -> LowRankDelta:
        """[k_1 b_1 | k_2 b_2 | ...] @ [a_1; a_2; ...], rounded to float32."""
        total: Delta = reduce(
            add, (part.source.low_rank(name).scaled(part.k(name)) for part in self._taking_part(name))
        )
        if not isinstance(total, LowRankDelta):
            raise DirectionError(f"the delta of {name} is dense", where=self.label)
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused when written
            return LowRankDelta(total.b.astype(np.float32), total.a.astype(np.float32))

    def read_dense(self, name: str, start: int, out: NDArray[np.float32]) -> None:
        """Fill `out` with the elements of the sum for `name` from element `start` on."""
        total = np.zeros(out.size)
        for part in self._taking_part(name):
            total += part.k(name) * delta_values(part.source, name, start, out.size)
        with np.errstate(over="ignore"):  # as above
            out[:] = total

    def _taking_part(self, name: str) -> list[Part]:
        return [part for part in self._parts if part.k(name) != 0]


def _check_bases(parts: Sequence[Part]) -> None:
    problems = Problems()
    first = parts[0].source
    shapes: dict[str, tuple[int, ...]] = {}
    for part in parts:
        base = part.source.base
        if (base.structure, base.weights) != (first.base.structure, first.base.weights):
            problems.add(f"{part.source.label} is over {base.model}, and {first.label} over {first.base.model}")
        for name, shape in part.source.shapes.items():
            if shapes.setdefault(name, shape) != shape:
                problems.add(f"{part.source.label}: {name} is {list(shape)}, elsewhere {list(shapes[name])}")
    problems.raise_if_any(
        BaseMismatchError, "directions over different bases do not compose", hint="compose directions of one base"
    )
