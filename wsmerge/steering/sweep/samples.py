"""What was measured, item by item, and the figures that it comes to.

    share, mean     mean of the values
    perplexity      exp(sum of nats / sum of tokens)

A change is taken between two measurements of the same items: of a share or a mean the mean of the paired differences, of
a perplexity the relative change, ratio - 1. Its interval resamples items, so that what items have in common cancels.
Items without a value are left out, and of a change those that have none in either measurement.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from wsmerge.errors import UsageError
from wsmerge.steering.bootstrap import Interval, mean_interval, ratio_interval
from wsmerge.steering.sweep.measuring import Role

__all__ = ["Kind", "Samples"]

Kind: TypeAlias = Literal["share", "mean", "perplexity"]


@dataclass(frozen=True, slots=True)
class Samples:
    """One figure's items.

    Attributes:
        role: what the figure means to the pick.
        kind: how the items make the figure. Costs of a share are counted in points, hundredths of 1.
        values: float64 `[items]`, NaN where an item has none; of a perplexity the nats of each text.
        tokens: float64 `[items]`; of a perplexity the tokens of each text, else ones.
    """

    role: Role
    kind: Kind
    values: npt.NDArray[np.float64]
    tokens: npt.NDArray[np.float64]

    @classmethod
    def of(cls, role: Role, values: npt.ArrayLike, kind: Kind = "share") -> Samples:
        """Samples that weigh the same."""
        held = np.asarray(values, dtype=np.float64)
        return cls(role, kind, held, np.ones_like(held))

    @property
    def interval(self) -> Interval:
        """The figure."""
        if self.kind == "perplexity":
            return _mapped(math.exp, ratio_interval(self.values, self.tokens))
        return _mean(self.values)

    def change_from(self, reference: Samples) -> Interval:
        """By how much the figure differs from another measurement of the same items.

        Raises:
            UsageError: the items are not the same.
        """
        if len(self.values) != len(reference.values) or (self.tokens != reference.tokens).any():
            raise UsageError("two measurements of different items cannot be compared")
        differences = self.values - reference.values
        if self.kind == "perplexity":
            return _mapped(math.expm1, ratio_interval(differences, self.tokens))
        return _mean(differences)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; floats are written so that they are read back exactly."""
        weights = {} if (self.tokens == 1).all() else {"tokens": self.tokens.tolist()}
        values = [None if math.isnan(value) else value for value in self.values.tolist()]
        return {"role": self.role, "kind": self.kind, "values": values, **weights}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Samples:
        """What `to_json` wrote."""
        plain = cls.of(fields["role"], fields["values"], fields["kind"])
        tokens = np.asarray(fields["tokens"], dtype=np.float64) if "tokens" in fields else plain.tokens
        return cls(plain.role, plain.kind, plain.values, tokens)


def _mean(values: npt.NDArray[np.float64]) -> Interval:
    known = values[~np.isnan(values)]
    return mean_interval(known) if len(known) else Interval(math.nan, math.nan, math.nan)


def _mapped(function: Callable[[float], float], interval: Interval) -> Interval:
    return Interval(*(_finite(function, edge) for edge in (interval.value, interval.low, interval.high)))


def _finite(function: Callable[[float], float], value: float) -> float:
    try:
        return function(value)
    except OverflowError:
        return math.inf
