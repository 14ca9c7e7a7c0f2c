"""Updates of training runs against directions, with what random and control directions give for comparison."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, get_args

import numpy as np

from wsmerge.core.tensors import DeltaSource
from wsmerge.steering.bootstrap import TWO_SIDED_95
from wsmerge.steering.similarity.estimates import estimated_products
from wsmerge.steering.similarity.groups import Alignment, Groups, Scopes, scopes_of
from wsmerge.steering.similarity.nulls import NullDirection
from wsmerge.steering.similarity.products import Gram, inner_products
from wsmerge.steering.similarity.rows import Sample
from wsmerge.steering.similarity.vectors import Vector, lay_over

__all__ = ["MEASURES", "MIN_DRAWS", "Band", "Measure", "Question", "Reading", "compare", "value_of"]

Measure = Literal[
    "cosine",
    "projection",
    "norm",
    "cosine-without-embeddings",
    "projection-without-embeddings",
    "norm-without-embeddings",
]
"""What is plotted, compared with a threshold and told apart by: `norm` is the update's own."""

MEASURES: Final[tuple[Measure, ...]] = get_args(Measure)
_MAX_TOGETHER: Final = 8
"""Updates that share one pass over the base: each takes some buffers a thread."""
MIN_DRAWS: Final = 39
"""Fewer draws have no 2.5 % quantile: the lowest of n draws has 1 / (n + 1) of all below it."""


class Band(NamedTuple):
    """Cosines of the update with directions that mean nothing.

    Attributes:
        mean: their mean.
        std: their standard deviation.
        low: 2.5 % lie below it.
        high: 2.5 % lie above it.
        drawn: how many were drawn; 0 where the band is computed and not drawn.
    """

    mean: float
    std: float
    low: float
    high: float
    drawn: int


@dataclass(frozen=True, slots=True)
class Reading:
    """One update against one direction.

    Attributes:
        direction: the direction's name.
        control: whether it is there for comparison only.
        scopes: cosine, projection and norms, as a whole and by parts.
        drawn: cosines of the update with random directions of the same spectrum, over all tensors.
        drawn_without_embeddings: the same over all but embeddings.
    """

    direction: str
    control: bool
    scopes: Scopes
    drawn: tuple[float, ...] = ()
    drawn_without_embeddings: tuple[float, ...] = ()

    def value(self, measure: Measure) -> float | None:
        """The value of `measure`; None where it is not defined."""
        return value_of(self.scopes, measure)

    def standard_error(self, measure: Measure) -> float | None:
        """The standard error of `measure`; None where it is exact or not defined."""
        errors = _scope_of(self.scopes, measure).errors
        if errors is None:
            return None
        return dict(zip(("cosine", "projection", "norm"), errors, strict=True))[measure.partition("-")[0]]

    def band(self, *, embeddings: bool = True) -> Band:
        """The band of cosines that mean nothing: of `MIN_DRAWS` drawn directions or more, else by the standard deviation.

        Without draws the quantiles are those of a normal distribution, which sums over many tensors are close to. Of a
        sample, drawn cosines are estimated over the rows that are read, so that the band holds the error of estimates too;
        without draws it is that of exact cosines, and the standard error comes on top of it.
        """
        drawn = self.drawn if embeddings else self.drawn_without_embeddings
        if len(drawn) >= MIN_DRAWS:
            low, high = np.quantile(drawn, [0.025, 0.975])
            return Band(float(np.mean(drawn)), float(np.std(drawn, ddof=1)), float(low), float(high), len(drawn))
        std = (self.scopes.whole if embeddings else self.scopes.without_embeddings).null_std
        return Band(0.0, std, -TWO_SIDED_95 * std, TWO_SIDED_95 * std, 0)


def value_of(scopes: Scopes, measure: Measure) -> float | None:
    """The value of `measure`; None where it is not defined."""
    where = _scope_of(scopes, measure)
    match measure.partition("-")[0]:
        case "cosine":
            return where.cosine
        case "projection":
            return where.projection
        case _:
            return where.update_norm


def _scope_of(scopes: Scopes, measure: Measure) -> Alignment:
    return scopes.without_embeddings if measure.endswith("-without-embeddings") else scopes.whole


@dataclass(frozen=True, slots=True)
class Question:
    """What updates are compared with.

    Attributes:
        directions: those that are watched for.
        controls: those that stand for comparison only.
        null_draws: random directions to draw for each of `directions`. Each costs as much as a direction.
        seed: of the draws, and of the sample.
        threads: tensors in work at once; None for the number of cores.
        sample: the share of the rows of every tensor that is read, for estimates; None for all of them.
    """

    directions: Sequence[DeltaSource]
    controls: Sequence[DeltaSource] = ()
    null_draws: int = 0
    seed: int = 0
    threads: int | None = None
    sample: float | None = None

    @property
    def shown(self) -> int:
        """How many directions and controls there are."""
        return len(self.directions) + len(self.controls)


def compare(
    updates: Sequence[DeltaSource],
    question: Question,
    shapes: Mapping[str, tuple[int, ...]],
    tied: Mapping[str, str],
    progress: Callable[[int, int], None] | None = None,
) -> list[tuple[Reading, ...]]:
    """Each update against every direction and control, in this order; some updates share one pass over the base.

    Args:
        updates: over one base.
        question: what they are compared with.
        shapes: name and shape of every tensor of the base.
        tied: output and input of each pair that is one tensor in the base.
        progress: called with elements done and elements in all.

    Raises:
        BaseMismatchError: directions that do not fit the base; every tensor.
        NonFiniteError: weights or deltas that are NaN or infinite.
        UsageError: a share that is none, or updates and directions of which nothing would be sampled.
    """
    draws = [
        NullDirection(source, seed=question.seed, draw=draw, keep_subspaces=True)
        for source in question.directions
        for draw in range(question.null_draws)
    ]
    where = updates[0].base.model if updates else "base"
    columns = lay_over([*question.directions, *question.controls, *draws], shapes, tied, where=where)
    rows = lay_over(updates, shapes, tied, where=where)
    passes = [rows[start : start + _MAX_TOGETHER] for start in range(0, len(rows), _MAX_TOGETHER)]
    found: list[tuple[Reading, ...]] = []
    for number, together in enumerate(passes):

        def step(done: int, total: int, number: int = number) -> None:
            if progress is not None:
                progress(number * total + done, len(passes) * total)

        found += _pass(together, columns, question, step)
    return found


def _pass(
    rows: Sequence[Vector], columns: Sequence[Vector], question: Question, progress: Callable[[int, int], None]
) -> list[tuple[Reading, ...]]:
    vectors = [*rows, *columns]
    first = len(rows)
    gram = _products(vectors, first, question, progress)
    groups = Groups(gram.names)
    watched, shown = len(question.directions), question.shown

    def reading(row: int, place: int) -> Reading:
        scopes = scopes_of(gram, groups, row, first + place)
        drawn: list[Scopes] = []
        if place < watched:
            start = first + shown + place * question.null_draws
            drawn = [scopes_of(gram, groups, row, start + draw) for draw in range(question.null_draws)]
        whole, without = (
            tuple(item.cosine for item in items if item.cosine is not None and math.isfinite(item.cosine))
            for items in ([one.whole for one in drawn], [one.without_embeddings for one in drawn])
        )
        return Reading(columns[place].label, place >= watched, scopes, whole, without)

    return [tuple(reading(row, place) for place in range(shown)) for row in range(first)]


def _products(
    vectors: Sequence[Vector], updates: int, question: Question, progress: Callable[[int, int], None]
) -> Gram:
    bands = frozenset((row, column) for row in range(updates) for column in range(updates, updates + question.shown))
    if question.sample is not None:
        sample = Sample(question.sample, question.seed)
        return estimated_products(vectors, updates, sample, bands=bands, threads=question.threads, progress=progress)
    pairs = {(row, column) for row in range(updates) for column in range(updates, len(vectors))}
    pairs |= {(number, number) for number in range(len(vectors))}
    return inner_products(vectors, pairs, bands=bands, threads=question.threads, progress=progress)
