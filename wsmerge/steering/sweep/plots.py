"""A sweep's plots: every figure against k, and the target's change against its cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import StrMethodFormatter

from wsmerge.core.text import figure_text
from wsmerge.steering.sweep.picking import effect_of, pareto_front
from wsmerge.steering.sweep.results import Figure, Point, SweepResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["CURVES_FILE", "PARETO_FILE", "front_points", "write_plots"]

CURVES_FILE: Final = "curves.png"
PARETO_FILE: Final = "pareto.png"
_WIDTH: Final = 5.2


def write_plots(result: SweepResult, out: Path) -> list[Path]:
    """Write `curves.png` and `pareto.png` into `out`; of the test items where all strengths were measured on them."""
    names = list(result.figures)
    curves = Canvas(figsize=(_WIDTH * min(3, len(names)), 4.0 * -(-len(names) // 3)), layout="constrained")
    FigureCanvasAgg(curves)
    axes = curves.subplots(-(-len(names) // 3), min(3, len(names)), squeeze=False).flatten()
    for name, one in zip(names, axes, strict=False):
        _plot_curves(one, result, name)
    for one in axes[len(names) :]:
        one.axis("off")
    axes[0].legend(fontsize=8)
    curves.savefig(out / CURVES_FILE, dpi=110)
    pareto = Canvas(figsize=(_WIDTH * 1.4, 4.4), layout="constrained")
    FigureCanvasAgg(pareto)
    _plot_front(pareto.subplots(), result)
    pareto.savefig(out / PARETO_FILE, dpi=110)
    return [out / CURVES_FILE, out / PARETO_FILE]


def front_points(result: SweepResult) -> list[tuple[float, float, Point]]:
    """Every method's points as (largest cost, effect, point): of the test items where all were measured on them."""
    target, pick = result.config.target, result.config.pick
    original = result.original(result.shown)
    found = []
    for point in result.points:
        if point.key.split != result.shown or point.key.method not in result.methods:
            continue
        if target in point.figures:
            cost = max([0.0, *(figure.cost for figure in point.figures.values())])
            found.append((cost, effect_of(point.figures[target], pick, original), point))
    return [one for one in found if math.isfinite(one[0])]


def _plot_curves(axes: Axes, result: SweepResult, name: str) -> None:
    smallest = min((abs(p.key.strength) for p in result.points if p.key.strength != 0), default=1.0)
    for method in result.methods:
        points = [point for point in result.curve(method, result.shown) if name in point.figures]
        ks, figures = [point.key.strength for point in points], [point.figures[name] for point in points]
        values = [figure.value.value for figure in figures]
        if method in result.random:  # thin, and behind the others
            axes.plot(
                ks,
                values,
                color=_random_color(result, method),
                linewidth=0.8,
                zorder=1,
                label=_random_label(result, method),
            )
            continue
        line = axes.plot(ks, values, marker="o", markersize=3, label=figure_text(method))[0]
        edges = [(figure.value.low, figure.value.high) for figure in figures]
        low, high = ([edge if math.isfinite(edge) else math.nan for edge in side] for side in zip(*edges, strict=True))
        axes.fill_between(ks, low, high, color=line.get_color(), alpha=0.12)
        for picked in result.picks:
            if picked.method == method and picked.strength in ks:
                at = figures[ks.index(picked.strength)].value.value
                axes.plot([picked.strength], [at], marker="*", markersize=11, color=line.get_color())
    axes.set_xscale("symlog", linthresh=smallest)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    if any(figure.kind == "perplexity" for figure in _all(result, name)):
        axes.set_yscale("log")
    axes.set(xlabel="k", title=figure_text(name))
    axes.grid(alpha=0.3)


def _plot_front(axes: Axes, result: SweepResult) -> None:
    points = front_points(result)
    for method in result.methods:
        mine = [(cost, effect) for cost, effect, point in points if point.key.method == method]
        random = method in result.random
        axes.scatter(
            [cost for cost, _ in mine],
            [effect for _, effect in mine],
            s=8 if random else 22,
            color=_random_color(result, method) if random else None,
            label=_random_label(result, method) if random else figure_text(method),
        )
    front = pareto_front([(cost, effect, (cost, effect)) for cost, effect, _ in points])
    axes.step([cost for cost, _ in front], [effect for _, effect in front], where="post", color="grey", linewidth=1)
    axes.set_xscale("symlog", linthresh=1.0)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set(
        xlabel="largest cost: points lost, or percent of perplexity",
        ylabel=figure_text(f"effect on {result.config.target}"),
    )
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)


def _random_label(result: SweepResult, method: str) -> str:
    """Random directions of a kind stand in the legend once."""
    kinds = result.random_kinds
    first = next(label for label in result.methods if kinds.get(label) == kinds[method])
    if method != first:
        return "_nolegend_"
    return "random directions" if len({*kinds.values()}) == 1 else f"random directions ({kinds[method]})"


def _random_color(result: SweepResult, method: str) -> str:
    return {"isotropic": "grey", "subspaces": "tan"}[result.random_kinds[method]]


def _all(result: SweepResult, name: str) -> Sequence[Figure]:
    return [point.figures[name] for point in result.points if name in point.figures]
