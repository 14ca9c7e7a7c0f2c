"""The study's figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure

from experiments.smollm2.study.results import Readings, SweepOverSeeds, mean
from experiments.smollm2.study.settings import Amounts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_behaviour", "plot_contrary", "plot_monitoring", "plot_repair"]

SIZE = (11.0, 4.2)


def plot_behaviour(sweeps: Sequence[SweepOverSeeds], target: str, capability: str, file: Path) -> None:
    """Curves over k, and what each strength costs: one colour a method."""
    figure, (curves, front) = _panels()
    number = 0
    for sweep in sweeps:
        for method in sweep.methods:
            colour, number = f"C{number}", number + 1
            _curve(curves, sweep, method, target, colour)
            ks = sweep.strengths(method)
            effects = [sweep.cell(method, k, target, change=True).value for k in ks]
            costs = [100 * sweep.cell(method, k, capability, change=True).value for k in ks]
            front.plot(effects, costs, "o-", color=colour, label=method, markersize=4, linewidth=1)
    _name(curves, "k", f"{target} (margin, nats per token)")
    _name(front, f"change of {target}", f"change of {capability}, points")
    front.legend(fontsize=7)
    _save(figure, file)


def plot_contrary(sweep: SweepOverSeeds, file: Path) -> None:
    """The trait, and what holds up: answers that are valid and fluent, knowledge."""
    figure, (left, right) = _panels()
    for number, method in enumerate(sweep.methods):
        _curve(left, sweep, method, "contrary", f"C{number}")
    for number, name in enumerate(("says no", "says no valid", "fluent", "knowledge")):
        _curve(right, sweep, "weights", name, f"C{number}", label=name)
    _name(left, "k", "contrary (margin, nats per token)")
    _name(right, "k of weights", "share")
    left.legend(fontsize=7)
    right.legend(fontsize=7)
    _save(figure, file)


def plot_repair(sycophancy: SweepOverSeeds, refusal: SweepOverSeeds, file: Path) -> None:
    """The fine-tune's behaviour and its task over k; the base's behaviour as a line."""
    figure, axes = _panels()
    for axis, sweep, name in zip(axes, (sycophancy, refusal), ("sycophancy", "refusal"), strict=True):
        _curve(axis, sweep, "weights", name, "C0", label=f"{name}, fine-tune + k w")
        axis.axhline(sweep.cell("base", 0.0, name).value, color="C0", linestyle=":", label=f"{name}, base")
        other = axis.twinx()
        _curve(other, sweep, "weights", "task", "C1", label="task (right)")
        _name(axis, "k", f"{name} (margin, nats per token)")
        other.set_ylim(0, 1.05)
        axis.plot([], [], color="C1", label="task (right)")
        axis.legend(fontsize=7, loc="lower right")
    _save(figure, file)


def plot_monitoring(readings: Readings, amounts: Amounts, file: Path) -> None:
    """Cosines by share of bad data at the last step, for the direction and the controls; and over steps by share."""
    figure, (shares, steps) = _panels()
    last = readings.steps[-1]
    for number, direction in enumerate(readings.directions):
        for place, percent in enumerate(amounts.bad_shares):
            values = readings.cosines(direction, f"bad-{percent}", last)
            offset = 0.12 * (number - 2)
            shares.plot([place + offset] * len(values), values, ".", color=f"C{number}", alpha=0.5, markersize=4)
        means = [mean(readings.cosines(direction, f"bad-{percent}", last)) for percent in amounts.bad_shares]
        shares.plot(range(len(means)), means, "-", color=f"C{number}", label=direction, linewidth=1)
    shares.set_xticks(range(len(amounts.bad_shares)), [f"{percent}" for percent in amounts.bad_shares])
    band = 1.96 * readings.null_std("contrary", last)
    shares.axhspan(-band, band, color="grey", alpha=0.2, label="random directions, 95 %")
    for number, percent in enumerate(amounts.bad_shares):
        line = [mean(readings.cosines("contrary", f"bad-{percent}", step)) for step in readings.steps]
        steps.plot(readings.steps, line, "o-", color=mpl.colormaps["viridis"](number / 6), label=f"{percent} % bad")
    good = [mean(readings.cosines("contrary", "good", step)) for step in readings.steps]
    steps.plot(readings.steps, good, "k--", label="helpful answers to the same")
    _name(shares, "bad rows, %", "cosine with the direction")
    _name(steps, "step", "cosine with contrary")
    shares.legend(fontsize=7)
    steps.legend(fontsize=7)
    _save(figure, file)


def _panels() -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes: Sequence[Axes] = figure.subplots(1, 2)
    return figure, axes


def _curve(axis: Axes, sweep: SweepOverSeeds, method: str, name: str, colour: str, label: str | None = None) -> None:
    ks = sweep.strengths(method)
    cells = [sweep.cell(method, k, name) for k in ks]
    style = "s" if len(ks) == 3 and method == "system prompt" else "o-"
    axis.plot(ks, [cell.value for cell in cells], style, color=colour, label=label or method, markersize=4, linewidth=1)
    axis.fill_between(ks, [cell.low for cell in cells], [cell.high for cell in cells], color=colour, alpha=0.12)


def _name(axis: Axes, across: str, up: str) -> None:
    axis.set_xlabel(across)
    axis.set_ylabel(up)
    axis.grid(alpha=0.3)


def _save(figure: Figure, file: Path) -> None:
    figure.savefig(file, dpi=110)
