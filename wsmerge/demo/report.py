"""The demo's report: `report.md`, `curves.png` beside it, and the same figures as `report.json`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from wsmerge.demo.run import PERPLEXITY_BUDGET, DemoResult, MergedPoint, mix_recipe
from wsmerge.demo.tables import Table, findings, result_tables
from wsmerge.errors import MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["write_report"]

PLOT_FILE = "curves.png"


def write_report(result: DemoResult) -> Path:
    """Write the report into the demo's folder and return its path.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    out = result.settings.out
    _write_plot(result, out / PLOT_FILE)
    tables = result_tables(result)
    (out / "report.json").write_text(json.dumps(_figures(result, tables), indent=2) + "\n", encoding="utf-8")
    report = out / "report.md"
    report.write_text("\n".join(_lines(result, tables)), encoding="utf-8")
    return report


def _lines(result: DemoResult, tables: Sequence[Table]) -> Iterator[str]:
    settings = result.settings
    yield "# Behaviour directions, merged into a model"
    yield ""
    yield f"`wsmerge demo` on the embedded model, {result.elapsed_s:.0f} s. Every figure below is of this run."
    yield ""
    for line in findings(result):
        yield f"- {line}"
    yield ""
    yield f"![behaviour and perplexity against k]({PLOT_FILE})"
    yield ""
    for table in tables:
        yield f"## {table.title}"
        yield ""
        yield from _markdown(table)
        yield ""
    yield "Rates and gaps carry 95 % bootstrap intervals; gaps are in points. A margin is the mean log-probability per token"
    yield "of the plus answer less that of the minus answer, in nats; a rate is the share of prompts with a positive margin."
    yield ""
    yield "## Answers to held-out prompts"
    yield ""
    for item in result.answers:
        yield f"**{item.behaviour}.** {item.prompt}"
        yield ""
        yield from (f"- *{label}*: {' '.join(text.split())}" for label, text in item.by_model.items())
        yield ""
    yield f"## The recipe of the checkpoint (k = {result.picked_k:+g})"
    yield ""
    yield "```yaml"
    recipe = mix_recipe(settings, Path("the embedded model's folder"), result.picked_k)
    yield yaml.safe_dump(recipe, sort_keys=False).rstrip()
    yield "```"
    yield ""


def _markdown(table: Table) -> Iterator[str]:
    yield f"| {' | '.join(table.columns)} |"
    yield f"|{'---|' * len(table.columns)}"
    for row in table.rows:
        yield f"| {' | '.join(row)} |"


def _figures(result: DemoResult, tables: Sequence[Table]) -> dict[str, Any]:
    return {
        "picked_k": result.picked_k,
        "within_budget": result.within_budget,
        "elapsed_s": result.elapsed_s,
        "findings": findings(result),
        "tables": [{"title": t.title, "columns": list(t.columns), "rows": [list(r) for r in t.rows]} for t in tables],
        "answers": [
            {"behaviour": item.behaviour, "prompt": item.prompt, "answers": dict(item.by_model)}
            for item in result.answers
        ],
    }


def _write_plot(result: DemoResult, path: Path) -> None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - an extra
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError as error:
        raise MissingDependencyError("the plot needs matplotlib", hint="pip install 'wsmerge[plot]'") from error
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    rates, costs = figure.subplots(1, 2)
    _plot_rates(rates, result)
    _plot_perplexity(costs, result)
    figure.savefig(path, dpi=120)


def _points(result: DemoResult) -> list[MergedPoint]:
    return sorted([result.base, *result.merged], key=lambda point: point.k)


def _plot_rates(axes: Axes, result: DemoResult) -> None:
    main, partner = result.settings.main, result.settings.partner
    alone = [(float(point.weights[main]), point.test.scores[main]) for point in result.alone]
    alone = sorted([*alone, (0.0, result.base.test.scores[main])], key=lambda item: item[0])
    for claim, marker in (("false", "o"), ("true", "s")):
        rates = [scores.on("false" if claim == "false" else "true").rate for _, scores in alone]
        ks = [k for k, _ in alone]
        axes.plot(
            ks, [100 * rate.value for rate in rates], marker=marker, label=f"{main} alone: agrees, {claim} claims"
        )
        axes.fill_between(ks, [100 * rate.low for rate in rates], [100 * rate.high for rate in rates], alpha=0.15)
    points = _points(result)
    ks = [point.k for point in points]
    mixed = [100 * point.test.scores[main].on("false").rate.value for point in points]
    other = [100 * point.test.scores[partner].rate.value for point in points]
    axes.plot(ks, mixed, marker="^", linestyle="--", label=f"mix: {main}, false claims")
    axes.plot(ks, other, marker="v", linestyle="--", label=f"mix: {partner}")
    axes.set(xlabel="k", ylabel="rate on test prompts, %", ylim=(-3, 103), title="Behaviour")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)


def _plot_perplexity(axes: Axes, result: DemoResult) -> None:
    main = result.settings.main
    alone = [(float(point.weights[main]), point.test.perplexity) for point in result.alone]
    alone = sorted([*alone, (0.0, result.base.test.perplexity)], key=lambda item: item[0])
    axes.plot([k for k, _ in alone], [value for _, value in alone], marker="o", label=f"{main} alone")
    points = _points(result)
    axes.plot(
        [point.k for point in points],
        [point.test.perplexity for point in points],
        marker="^",
        linestyle="--",
        label="mix of two",
    )
    budget = result.base.test.perplexity * (1 + PERPLEXITY_BUDGET)
    axes.axhline(budget, color="grey", linewidth=1, linestyle=":", label="base + 5 %")
    axes.set(xlabel="k", ylabel="perplexity of plain text", title="Cost")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
