"""The demo's report: `report.md`, `curves.png` beside it, and the same figures as `report.json`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from wsmerge.demo.hints import ASKED, HintPoint, HintResult
from wsmerge.demo.run import PERPLEXITY_BUDGET, DemoResult, MergedPoint, mix_recipe
from wsmerge.demo.tables import Table, findings, result_tables
from wsmerge.errors import MissingDependencyError
from wsmerge.steering.evaluation import ChoiceScores, Interval

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
    *tables, hint_table = tables
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
    yield "Brackets are 95 % intervals over prompts, or over clusters of prompts that share a fact; wordings are few, so they are too"
    yield "narrow for new ones. A margin is"
    yield "the mean log-probability per token of the plus answer less that of the minus answer, in nats, over false claims where"
    yield "there are claims; a rate is the share of prompts with a positive margin. `false - true` is in points. Fidelity is the"
    yield "cosine of the change that the checkpoint holds in bfloat16 to the change that was asked for."
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
    yield "## After a wrong hint"
    yield ""
    yield "Greedy answers, as they come, to the first facts in the file's order that the base answers rightly when asked plainly. An"
    yield "answer counts as right, here and in the table, where the right answer has a higher log-probability per token than the wrong"
    yield "one. Each fact is asked in one of the test wordings, by turns; brackets are 95 % intervals over facts and wordings."
    yield ""
    for fact in result.hints.answers:
        yield f"**{fact.right}, not {fact.wrong}.** {fact.prompt}"
        yield ""
        yield from (f"- *{label}*: {' '.join(text.split())}" for label, text in fact.by_model.items())
        yield ""
    yield f"## {hint_table.title}"
    yield ""
    yield from _markdown(hint_table)
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
        "hints": _hint_figures(result.hints),
    }


def _hint_figures(hints: HintResult) -> dict[str, Any]:
    """Right answers by condition, each `[value, low, high]`: the share, and its change from k = 0."""
    base = hints.at(0.0)

    def shares(point: HintPoint, *, known: bool) -> dict[str, Any]:
        right = {name: (point.right(name, known=known), base.right(name, known=known)) for name in ASKED}
        return {
            name: {"share": _edges(here.interval), "change": _edges(here.change_from(before))}
            for name, (here, before) in right.items()
        }

    return {
        "facts": hints.facts,
        "known": hints.known,
        "points": [
            {
                "k": point.k,
                "known": shares(point, known=True) if hints.known else None,
                "all": shares(point, known=False),
            }
            for point in hints.points
        ],
        "answers": [
            {"prompt": fact.prompt, "right": fact.right, "wrong": fact.wrong, "answers": dict(fact.by_model)}
            for fact in hints.answers
        ],
    }


def _edges(interval: Interval) -> list[float]:
    return [interval.value, interval.low, interval.high]


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
    mix = [(point.k, point.test.scores[main]) for point in _points(result)]
    _plot_agreement(axes, mix, f"mix: {main}")
    partner_rates = [100 * point.test.scores[partner].rate.value for point in _points(result)]
    axes.plot([k for k, _ in mix], partner_rates, marker="v", color="tab:green", label=f"mix: {partner}")
    if result.alone:
        alone = [(float(point.weights[main]), point.test.scores[main]) for point in result.alone]
        alone = sorted([*alone, (0.0, result.base.test.scores[main])], key=lambda item: item[0])
        _plot_agreement(axes, alone, f"{main} alone", dashed=True)
    axes.set(xlabel="k", ylabel="rate on test prompts, %", ylim=(-3, 103), title="Behaviour")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)


def _plot_agreement(
    axes: Axes, points: Sequence[tuple[float, ChoiceScores]], label: str, *, dashed: bool = False
) -> None:
    ks = [k for k, _ in points]
    for claims, scores, colour in (
        ("false", [scores.on("false").rate for _, scores in points], "tab:red"),
        ("true", [scores.on("true").rate for _, scores in points], "tab:blue"),
    ):
        rates = [100 * rate.value for rate in scores]
        style = "--" if dashed else "-"
        axes.plot(ks, rates, marker="o", linestyle=style, color=colour, label=f"{label}, agrees with {claims} claims")
        low, high = [100 * rate.low for rate in scores], [100 * rate.high for rate in scores]
        axes.fill_between(ks, low, high, color=colour, alpha=0.1)


def _plot_perplexity(axes: Axes, result: DemoResult) -> None:
    main = result.settings.main
    points = _points(result)
    ks = [point.k for point in points]
    axes.plot(ks, [point.test.perplexity for point in points], marker="^", label="mix of two")
    if result.alone:
        alone = [(float(point.weights[main]), point.test.perplexity) for point in result.alone]
        alone = sorted([*alone, (0.0, result.base.test.perplexity)])
        axes.plot(*zip(*alone, strict=True), marker="o", linestyle="--", label=f"{main} alone")
    budget = result.base.test.perplexity * (1 + PERPLEXITY_BUDGET)
    axes.axhline(budget, color="grey", linewidth=1, linestyle=":", label=f"base + {PERPLEXITY_BUDGET:.0%}")
    axes.set(xlabel="k", ylabel="perplexity of plain text", title="Cost")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
