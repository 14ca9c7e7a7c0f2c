"""How much of `sum_i k_i * w_i` is left after rounding to the output's dtype.

With d = written - merged (what the rounding left of the change) and u_i = k_i * w_i, over one tensor or over all:

    cosine     = <d, sum u_i> / (|d| |sum u_i|)
    norm_ratio = |d| / |sum u_i|
    kept_i     = x_i of the least-squares split  d ~ sum x_i u_i, of all such x the one nearest to 1

A kept_i of 1 means that the output holds all of k_i * w_i. In bfloat16 a small k*w is lost where it is below half a unit
in the last place of the weight it is added to. Directions that point the same way cannot be told apart in d: what is
missing is then shared among them, and they are flagged as collinear.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from wsmerge.engine.arithmetic import Moments
from wsmerge.engine.plan import MergePlan

__all__ = ["Fidelity", "FidelityReport", "fidelity_report"]

WARNING_COSINE: Final = 0.9
"""Below this cosine over all tensors, a merge warns."""

_COLLINEAR: Final = 1e-6
"""Smallest eigenvalue of the normalised Gram matrix under which a split is not believed."""


@dataclass(frozen=True, slots=True)
class Fidelity:
    """What is left of the change that was asked for.

    Attributes:
        cosine: between written and exact change; None where the exact change is zero: every k is, or the terms cancel.
        norm_ratio: norm of the written change over that of the exact one; None likewise.
        kept: share of each direction that is left, by its label; directions with k = 0 are not in it.
        collinear: whether the directions are too parallel for `kept` to be told apart.
    """

    cosine: float | None
    norm_ratio: float | None
    kept: Mapping[str, float]
    collinear: bool = False


@dataclass(frozen=True, slots=True)
class FidelityReport:
    """The fidelity of a merge: over all tensors, and by tensor."""

    overall: Fidelity
    tensors: Mapping[str, Fidelity]

    @property
    def warning(self) -> str | None:
        """What to tell the user where little is left, None where enough is."""
        cosine = self.overall.cosine
        if cosine is None or cosine >= WARNING_COSINE:
            return None
        return (
            f"rounding to the output's dtype distorts the directions (cosine {cosine:.2f} to what was asked for): "
            "the changes are small beside the weights; set out_dtype: float32, or raise the coefficients"
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {"overall": asdict(self.overall), "tensors": {name: asdict(item) for name, item in self.tensors.items()}}


def fidelity_report(plan: MergePlan, moments: Mapping[int, Moments]) -> FidelityReport:
    """The fidelity of a finished merge from the moments that its stream gathered."""
    labels = _labels(plan)
    total = np.zeros((len(labels) + 1,) * 2)
    tensors: dict[str, Fidelity] = {}
    for number in sorted(moments):
        tensor = plan.tensors[number]
        members = [term.direction for term in tensor.terms]
        tensors[tensor.spec.name] = _fidelity(moments[number], [labels[i] for i in members])
        places = np.array([*members, len(labels)])
        np.add.at(total, np.ix_(places, places), moments[number])
    taking_part = [i for i in range(len(labels)) if total[i, i] > 0]
    places = np.array([*taking_part, len(labels)], dtype=int)
    overall = _fidelity(total[np.ix_(places, places)], [labels[i] for i in taking_part])
    return FidelityReport(overall, tensors)


def _labels(plan: MergePlan) -> list[str]:
    """Labels of the directions, numbered where one occurs more than once."""
    names = [item.source.label for item in plan.directions]
    return [f"{name} ({names[:i].count(name) + 1})" if names.count(name) > 1 else name for i, name in enumerate(names)]


def _fidelity(moments: Moments, labels: Sequence[str]) -> Fidelity:
    gram, cross, written = moments[:-1, :-1], moments[:-1, -1], float(moments[-1, -1])
    asked = float(gram.sum())
    if asked <= 0:
        return Fidelity(None, None, {})
    scale = np.sqrt(np.where(np.diag(gram) > 0, np.diag(gram), 1.0))
    normalised = gram / np.outer(scale, scale)
    # Solved for the deviation from 1, so that parallel directions that lost nothing are told so.
    missing, *_ = np.linalg.lstsq(normalised, (cross - gram.sum(axis=1)) / scale, rcond=_COLLINEAR)
    smallest = float(np.linalg.eigvalsh(normalised)[0])
    return Fidelity(
        cosine=float(cross.sum()) / math.sqrt(asked * written) if written > 0 else 0.0,
        norm_ratio=math.sqrt(written / asked),
        kept=_by_label(labels, 1 + missing / scale),
        collinear=smallest < _COLLINEAR,
    )


def _by_label(labels: Sequence[str], values: Iterable[Any]) -> dict[str, float]:
    return {label: float(value) for label, value in zip(labels, values, strict=True)}
