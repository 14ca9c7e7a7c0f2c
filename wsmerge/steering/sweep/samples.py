"""What was measured, item by item, and the figures that it comes to.

    share, mean     mean of the values
    perplexity      exp(sum of nats / sum of tokens)

A change is taken between two measurements of the same items: of a share or a mean the mean of the paired differences, of
a perplexity the relative change, ratio - 1. Its interval is over items or clusters of items, paired, so that what both
measurements have in common cancels.
Items without a value are left out, and of a change those that have none in either measurement.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from wsmerge.errors import UsageError
from wsmerge.steering.bootstrap import Interval, change_interval, mean_interval, ratio_interval, share_interval
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
        clusters: int64 `[items]`, the cluster of each item, or `[items, 2]`, the two of each; None where items have none.
    """

    role: Role
    kind: Kind
    values: npt.NDArray[np.float64]
    tokens: npt.NDArray[np.float64]
    clusters: npt.NDArray[np.int64] | None = None

    @classmethod
    def of(
        cls,
        role: Role,
        values: npt.ArrayLike,
        kind: Kind = "share",
        clusters: npt.NDArray[np.int64] | None = None,
    ) -> Samples:
        """Samples that weigh the same."""
        held = np.asarray(values, dtype=np.float64)
        return cls(role, kind, held, np.ones_like(held), clusters)

    @property
    def interval(self) -> Interval:
        """The figure."""
        if self.kind == "perplexity":
            return _mapped(math.exp, ratio_interval(self.values, self.tokens, self.clusters))
        return self._over_known(self.values, share_interval, 0.0)

    def change_from(self, reference: Samples) -> Interval:
        """By how much the figure differs from another measurement of the same items.

        Raises:
            UsageError: the items are not the same.
        """
        if len(self.values) != len(reference.values) or (self.tokens != reference.tokens).any():
            raise UsageError("two measurements of different items cannot be compared")
        differences = self.values - reference.values
        if reference is self:
            return Interval(0.0, 0.0, 0.0)
        if self.kind == "perplexity":
            return _mapped(math.expm1, ratio_interval(differences, self.tokens, self.clusters))
        return self._over_known(differences, change_interval, -1.0)

    def _over_known(
        self,
        values: npt.NDArray[np.float64],
        of_shares: Callable[[npt.NDArray[np.float64], npt.NDArray[np.int64] | None], Interval],
        low: float,
    ) -> Interval:
        """The mean of the values that are not NaN; of a share within its scale by `of_shares`."""
        known = ~np.isnan(values)
        if not known.any():
            return Interval(math.nan, math.nan, math.nan)
        held, clusters = values[known], None if self.clusters is None else self.clusters[known]
        # A score of one's own may have any scale.
        share = self.kind == "share" and low <= held.min() and held.max() <= 1
        return of_shares(held, clusters) if share else mean_interval(held, clusters)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; floats are written so that they are read back exactly."""
        weights = {} if (self.tokens == 1).all() else {"tokens": self.tokens.tolist()}
        values = [None if math.isnan(value) else value for value in self.values.tolist()]
        clusters = {} if self.clusters is None else {"clusters": self.clusters.tolist()}
        return {"role": self.role, "kind": self.kind, "values": values, **weights, **clusters}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Samples:
        """What `to_json` wrote."""
        clusters = np.asarray(fields["clusters"], dtype=np.int64) if "clusters" in fields else None
        plain = cls.of(fields["role"], fields["values"], fields["kind"], clusters)
        tokens = np.asarray(fields["tokens"], dtype=np.float64) if "tokens" in fields else plain.tokens
        return replace(plain, tokens=tokens)


def _mapped(function: Callable[[float], float], interval: Interval) -> Interval:
    return Interval(*(_finite(function, edge) for edge in (interval.value, interval.low, interval.high)))


def _finite(function: Callable[[float], float], value: float) -> float:
    try:
        return function(value)
    except OverflowError:
        return math.inf
