"""The demo's results as tables: rows of text and numbers that the terminal and the report both show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from wsmerge.demo.measuring import Measured
from wsmerge.demo.run import DemoResult, MergedPoint, SteeredPoint
from wsmerge.steering.evaluation import ChoiceScores, Interval

__all__ = ["Table", "findings", "result_tables"]


class Table(NamedTuple):
    """A table and the sentence that says what it shows."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def result_tables(result: DemoResult) -> list[Table]:
    """All tables, in the report's order."""
    return [_mix_table(result), _alone_table(result), _composition_table(result), _thirds_table(result)]


def findings(result: DemoResult) -> list[str]:
    """What the figures say, in sentences; what does not hold is said too."""
    main = result.settings.main
    low, high = (_steered(result.alone, main, k) for k in (-1.0, 1.0))
    rates = [point.test.scores[main].on("false").rate.value for point in (low, high)]
    picked = {point.k: point for point in result.merged}
    rises = [_rise(picked[sign * result.picked_k].test, result.base.test) for sign in (-1, 1)]
    lines = [
        (
            f"Moving k of {main} from -1 to +1 moves agreement with false claims from {rates[0]:.0%} to {rates[1]:.0%} "
            f"on test prompts of domains and templates never trained on."
        ),
        (
            f"At the picked |k| = {result.picked_k:g} (chosen on validation prompts and passages), perplexity of the test "
            f"passages changes by {rises[0]:+.1%} at -k and {rises[1]:+.1%} at +k."
        ),
    ]
    if not result.within_budget:
        lines.append("No k of the sweep stayed within the perplexity budget; the least costly one was picked.")
    gaps = {point.label: point.test.scores[main].false_minus_true for point in result.alone}
    base_gap = result.base.test.scores[main].false_minus_true
    lines.append(
        f"The base agrees with false claims {base_gap.value:+.0%} more often than with true ones "
        f"(95 % interval {base_gap.low:+.0%} to {base_gap.high:+.0%})."
    )
    if all(gap.low > -0.2 for gap in gaps.values()):
        lines.append(
            "At no k does this model tell false claims from true ones by 20 points or more: agreement with true claims moves "
            "along. The direction steers agreement, and at negative k it says No more often than it corrects."
        )
    return lines


def _mix_table(result: DemoResult) -> Table:
    main, partner = result.settings.main, result.settings.partner
    columns = (
        "k",
        *_claim_columns(main),
        f"{partner} rate",
        f"{partner} margin",
        "perplexity",
        "fidelity (cosine)",
        "merge, s",
    )
    points = sorted([result.base, *result.merged], key=lambda point: point.k)
    title = f"{main} and {partner} merged into one checkpoint, test prompts"
    return Table(title, columns, [_mix_row(point, main, partner) for point in points])


def _mix_row(point: MergedPoint, main: str, partner: str) -> tuple[str, ...]:
    other = point.test.scores[partner]
    cosine = point.fidelity.cosine if point.fidelity else None
    return (
        f"{point.k:+g}" if point.k else "0 (base)",
        *_claim_cells(point.test.scores[main]),
        _percent(other.rate),
        _nats(other.mean_margin),
        f"{point.test.perplexity:.2f}",
        f"{cosine:.3f}" if cosine is not None else "",
        f"{point.merge_s:.1f}" if point.merge_s else "",
    )


def _alone_table(result: DemoResult) -> Table:
    main = result.settings.main
    base = SteeredPoint("base", {main: 0.0}, result.base.test)
    points = sorted([*result.alone, base], key=lambda point: float(point.weights[main]))
    rows = [
        (f"{point.weights[main]:+g}", *_claim_cells(point.test.scores[main]), f"{point.test.perplexity:.2f}")
        for point in points
    ]
    return Table(f"{main} alone, test prompts", ("k", *_claim_columns(main), "perplexity"), rows)


def _composition_table(result: DemoResult) -> Table:
    names = (result.settings.main, result.settings.partner)
    alone = dict(zip(names, result.composition[:2], strict=True))
    both = result.composition[2]
    rows = []
    for name in names:
        base = result.base.test.scores[name].mean_margin.value
        one = alone[name].test.scores[name].mean_margin.value
        two = both.test.scores[name].mean_margin.value
        kept = (two - base) / (one - base) if one != base else float("nan")
        rows.append((name, f"{base:+.3f}", f"{one:+.3f}", f"{two:+.3f}", f"{kept:.0%}"))
    k = result.picked_k / 2
    title = f"Two directions at once, each at k = {k:+g}: mean margin in nats, and the share of its own effect that each keeps"
    return Table(title, ("direction", "base", "alone", "with the other", "kept"), rows)


def _thirds_table(result: DemoResult) -> Table:
    main = result.settings.main
    base = result.base.test.scores[main].mean_margin.value
    everywhere = result.thirds[-1].test.scores[main].mean_margin.value - base
    rows = []
    for point in result.thirds:
        scores = point.test.scores[main]
        change = scores.mean_margin.value - base
        rows.append((point.label, *_claim_cells(scores), f"{change:+.3f}", f"{change / everywhere:.0%}"))
    columns = ("k in", *_claim_columns(main), "change of margin", "of all layers'")
    return Table(f"{main} at k = {result.picked_k:+g} in some layers only", columns, rows)


def _claim_columns(name: str) -> tuple[str, ...]:
    return (f"{name}: agrees, false claims", "agrees, true claims", "false - true", "margin, false claims")


def _claim_cells(scores: ChoiceScores) -> tuple[str, ...]:
    false, true = scores.on("false"), scores.on("true")
    gap = scores.false_minus_true
    return (
        _percent(false.rate),
        _percent(true.rate),
        f"{gap.value * 100:+.0f} [{gap.low * 100:+.0f}, {gap.high * 100:+.0f}]",
        _nats(false.mean_margin),
    )


def _percent(interval: Interval) -> str:
    return f"{interval.value:.0%} [{interval.low:.0%}, {interval.high:.0%}]"


def _nats(interval: Interval) -> str:
    return f"{interval.value:+.3f}"


def _steered(points: Sequence[SteeredPoint], name: str, k: float) -> SteeredPoint:
    found: Iterator[SteeredPoint] = (point for point in points if point.weights[name] == k)
    return next(found)


def _rise(measured: Measured, base: Measured) -> float:
    return measured.perplexity / base.perplexity - 1
