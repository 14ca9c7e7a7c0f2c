"""Signed strengths in a sweep file: a list, sizes at equal ratios on both sides of 0, or those of given KL divergences.

k: [-2, -1, 1]
k: {from: 0.25, to: 16, points: 7}
k: {kl: [0.01, 0.04, 0.15]}                # where the KL from k = 0 on the validation part of the neutral text is so much
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, Discriminator, Field, PositiveFloat, PositiveInt, Tag, model_validator

from wsmerge.recipe.values import Number

__all__ = ["Grid", "KLStrength", "KLStrengths", "Settings", "Signs", "Strengths", "strengths_of"]

Signs: TypeAlias = Literal["both", "plus", "minus"]
"""Whether strengths stand above 0, below 0, or both."""

_Positive = Annotated[Number, Field(gt=0)]


class Settings(BaseModel):
    """What all parts of a sweep file have in common: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Grid(Settings):
    """Strengths at equal ratios.

    Attributes:
        start: the smallest, above 0; `from` in the file.
        to: the largest.
        points: how many.
        signs: whether they stand above 0, below 0, or both.
        stop: whether those beyond the first that is over the budget are left out, each sign apart.
    """

    start: Annotated[PositiveFloat, Field(alias="from")]
    to: PositiveFloat
    points: PositiveInt
    signs: Signs = "both"
    stop: bool = False

    @model_validator(mode="after")
    def _check_order(self) -> Grid:
        if self.start > self.to or (self.points == 1) != (self.start == self.to):
            raise ValueError("from must be below to, with two points or more, or both the same with one point")
        return self

    def values(self) -> tuple[float, ...]:
        """The strengths in ascending order, each rounded to six digits."""
        sizes = [float(f"{size:.6g}") for size in np.geomspace(self.start, self.to, self.points)]
        below = [-size for size in reversed(sizes)] if self.signs != "plus" else []
        return (*below, *(sizes if self.signs != "minus" else ()))


class KLStrength(Settings):
    """The strength at which the KL divergence from k = 0 has one value.

    Attributes:
        kl: nats per token.
    """

    kl: _Positive


class KLStrengths(Settings):
    """The strengths at which the KL divergence from k = 0 has some values, found for each method and sign.

    Attributes:
        kl: nats per token.
        signs: whether the strengths stand above 0, below 0, or both.
    """

    kl: Annotated[tuple[_Positive, ...], Field(min_length=1)]
    signs: Signs = "both"

    @property
    def values(self) -> tuple[float, ...]:
        """The divergences in ascending order, each once."""
        return tuple(sorted(set(self.kl)))

    @property
    def factors(self) -> tuple[float, ...]:
        """-1.0 and 1.0, or one of them."""
        return tuple(sign for sign, word in ((-1.0, "plus"), (1.0, "minus")) if self.signs != word)


def _form(value: Any) -> str:  # noqa: ANN401 - whatever YAML or a caller gave
    if isinstance(value, KLStrengths) or (isinstance(value, Mapping) and "kl" in value):
        return "<kl>"
    return "<grid>" if isinstance(value, Grid | Mapping) else "<list>"


Strengths: TypeAlias = Annotated[
    Annotated[Grid, Tag("<grid>")]
    | Annotated[KLStrengths, Tag("<kl>")]
    | Annotated[tuple[Number, ...], Field(min_length=1), Tag("<list>")],
    Discriminator(_form),
]


def strengths_of(k: Strengths) -> tuple[float, ...]:
    """The strengths that `k` gives, in ascending order, each once and 0 never: that is measured once for all methods.

    Those of given KL divergences have to be found, and are none here.
    """
    if isinstance(k, KLStrengths):
        return ()
    return k.values() if isinstance(k, Grid) else tuple(sorted({value for value in k if value != 0}))
