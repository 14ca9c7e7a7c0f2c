"""The study's figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from experiments.study.methods import (
    AGAINST,
    MAIN,
    PERPLEXITY,
    PLAIN,
    RIGHT_HINT,
    WEIGHTS,
    Measured,
    Methods,
    is_control,
    shown,
)
from experiments.study.settings import PRIMARY_COST
from experiments.study.sweeps import BUDGET
from wsmerge.steering.bootstrap import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_costs", "plot_methods"]

Float64 = npt.NDArray[np.float64]

DPI: Final = 150
SMALL: Final = 9
"""Points: legible where the figure is half a page wide."""
_CURVES: Final = (
    (MAIN, "after a wrong hint, of those right when plain", "C0", "o"),
    (PLAIN, "plain", "C2", "s"),
    (RIGHT_HINT, "after a right hint", "C1", "^"),
)
_COLOURS: Final = {"weights": "C0", "other": "C7", "control": "C3"}


def plot_costs(methods: Methods, file: Path) -> None:
    """Right answers over the signed cost of the weights; hollow where the budget is passed."""
    base = methods.base()
    found = [
        (sign, side)
        for sign in (AGAINST, -AGAINST)
        for cost in methods.costs
        if (side := methods.at(WEIGHTS, cost, sign))
    ]
    if base is None or not found:
        return
    sides = sorted(found, key=lambda one: one[0] * one[1].kl())
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axis: Axes = figure.subplots()
    costs = [sign * side.kl() for sign, side in sides]
    below = sum(cost < 0 for cost in costs)
    across = np.array([*costs[:below], 0.0, *costs[below:]])
    for name, label, colour, marker in _CURVES:
        told = [side.value(name) for _, side in sides]
        told.insert(below, base.value(name))
        values, lows, highs = (100 * np.array([getattr(one, end) for one in told]) for end in ("value", "low", "high"))
        axis.plot(across, values, "-", color=colour, linewidth=1.4)
        axis.plot([], [], f"{marker}-", color=colour, linewidth=1.4, label=label)
        axis.fill_between(across, lows, highs, color=colour, alpha=0.13, linewidth=0)
        within = [is_within_budget(side) for _, side in sides]
        within.insert(below, True)
        for held, face in ((True, colour), (False, "white")):
            kept = np.array(within) == held
            axis.plot(
                across[kept], values[kept], marker, color=colour, markerfacecolor=face, markersize=6, linestyle="none"
            )
        if name != MAIN:
            limit = 100 * base.value(name).value - BUDGET["capability_drop"]
            axis.axhline(limit, color=colour, linestyle=":", linewidth=1)
    for (_, side), cost in zip(sides, costs, strict=True):
        # Names stand below the axis' upper end, off the curves.
        axis.annotate(
            f"k = {np.mean(side.ks):+.2g}", (cost, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 3),
            textcoords="offset points", fontsize=SMALL, rotation=45, ha="left", va="bottom",
        )  # fmt: skip
    # KL grows with the square of k: over its root the strengths stand as they are.
    axis.set_xscale("function", functions=(_signed_root, _signed_square))
    axis.set_xticks(across, [f"{abs(cost):.2g}" for cost in across])
    axis.tick_params(labelsize=SMALL)
    axis.set_ylim(-3, 103)
    axis.set_xlabel("KL from the base, nats per token    (left: against sycophancy; right: for it)", fontsize=SMALL + 1)
    axis.set_ylabel("right answers, %", fontsize=SMALL + 1)
    axis.grid(alpha=0.3)
    axis.plot([], [], "o", color="0.3", markerfacecolor="white", label="over the budget on validation")
    axis.plot([], [], ":", color="0.3", label=f"budget: base less {BUDGET['capability_drop']:g} points")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=SMALL, frameon=False)
    figure.savefig(file, dpi=DPI)


def plot_methods(methods: Methods, file: Path) -> None:
    """Every method at the cost that is compared at: what it brings, and what it takes."""
    sides = [side for label in methods.labels if (side := methods.in_favour(label)) is not None]
    if not sides:
        return
    sides.sort(key=lambda side: side.change(MAIN).value)
    figure = Figure(figsize=(7.2, 1.6 + 0.3 * len(sides)), layout="constrained")
    axes: Sequence[Axes] = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for place, side in enumerate(sides):
        kind = "weights" if side.label == WEIGHTS else "control" if is_control(side.label) else "other"
        _dot(axes[0], place, side.change(MAIN), _COLOURS[kind], "o")
        _dot(axes[1], place + 0.16, side.change(PLAIN), "C2", "s")
        _dot(axes[1], place - 0.16, side.change(RIGHT_HINT), "C1", "^")
    axes[0].set_yticks(range(len(sides)), [_named(methods, side) for side in sides], fontsize=SMALL)
    for axis in axes:
        axis.axvline(0, color="0.4", linewidth=0.8)
        axis.grid(axis="x", alpha=0.3)
        axis.tick_params(labelsize=SMALL)
    axes[1].axvline(-BUDGET["capability_drop"], color="0.4", linestyle=":", linewidth=1)
    axes[0].set_xlabel("change of the main figure\n(after wrong hints), points", fontsize=SMALL)
    axes[1].set_xlabel("change of plain questions\nand right hints, points", fontsize=SMALL)
    for name, colour in _COLOURS.items():
        axes[0].plot([], [], "o", color=colour, label={"other": "other methods", "control": "controls"}.get(name, name))
    for _, label, colour, marker in _CURVES[1:]:
        axes[1].plot([], [], marker, color=colour, label=label)
    axes[1].plot([], [], ":", color="0.4", label=f"-{BUDGET['capability_drop']:g} points")
    handles, labels = zip(*(axis.get_legend_handles_labels() for axis in axes), strict=True)
    figure.legend(
        [one for each in handles for one in each], [one for each in labels for one in each],
        loc="outside lower center", ncols=3, fontsize=SMALL, frameon=False,
    )  # fmt: skip
    figure.suptitle(f"KL {PRIMARY_COST:g} nats per token; system prompts at their own", fontsize=SMALL + 1)
    figure.savefig(file, dpi=DPI)


def is_within_budget(side: Measured) -> bool:
    """Whether the means over seeds on validation lose no more than a pick may."""
    lost = max(-100 * side.change(name, "validation").value for name in (PLAIN, RIGHT_HINT))
    risen = 100 * side.change(PERPLEXITY, "validation").value
    return lost <= BUDGET["capability_drop"] + 1e-9 and risen <= BUDGET["perplexity_rise"] + 1e-9


def _named(methods: Methods, side: Measured) -> str:
    if side.label in methods.prompts:
        return f"{shown(side.label)} ({side.kl():.2g})"
    return shown(side.label) if side.reaches(PRIMARY_COST) else f"{shown(side.label)} (< {side.kl():.2g})"


def _dot(axis: Axes, place: float, change: Interval, colour: str, marker: str) -> None:
    axis.plot([100 * change.low, 100 * change.high], [place, place], "-", color=colour, linewidth=1.3)
    axis.plot(100 * change.value, place, marker, color=colour, markersize=5)


def _signed_root(values: Float64) -> Float64:
    return np.copysign(np.sqrt(np.abs(values)), values)


def _signed_square(values: Float64) -> Float64:
    return np.copysign(np.square(values), values)
