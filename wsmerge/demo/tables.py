"""The demo's results as tables: rows of text and numbers that the terminal and the report both show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from wsmerge.demo.hints import ASKED
from wsmerge.demo.measuring import Measured
from wsmerge.demo.run import DemoResult, MergedPoint, SteeredPoint
from wsmerge.steering.evaluation import ChoiceScores, Interval

__all__ = ["Table", "findings", "result_tables"]


_CLAIM_COLUMNS: Final = ("false", "true", "false - true", "margin")

_TELLS_APART: Final = 0.2
"""A gap of fewer points than this between agreement with true and with false claims is called no judgement."""


class Table(NamedTuple):
    """A table and the sentence that says what it shows."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def result_tables(result: DemoResult) -> list[Table]:
    """All tables, in the report's order; the last is that of hints."""
    tables = [_mix_table(result)]
    if result.settings.full:
        tables += [_alone_table(result), _composition_table(result), _thirds_table(result)]
    return [*tables, _hint_table(result)]


def findings(result: DemoResult) -> list[str]:
    """What the figures say, in sentences; what does not hold is said too."""
    main = result.settings.main
    mixed = {point.k: point.test for point in (*result.merged, result.base)}
    k = result.picked_k
    rises = [mixed[sign * k].perplexity / mixed[0.0].perplexity - 1 for sign in (-1, 1)]
    lines = [
        _moved(
            f"In the mix, moving k from {min(mixed):+g} to {max(mixed):+g}", main, mixed[min(mixed)], mixed[max(mixed)]
        ),
        (
            f"At the picked |k| = {k:g} (chosen on validation prompts and passages), perplexity of the test passages "
            f"changes by {rises[0]:+.1%} at -k and {rises[1]:+.1%} at +k."
        ),
    ]
    if not result.within_budget:
        lines.append("No k of the sweep stayed within the perplexity budget; the least costly one was picked.")
    if result.alone:
        ends = sorted(result.alone, key=lambda point: float(point.weights[main]))
        rises = [point.test.perplexity / mixed[0.0].perplexity - 1 for point in (ends[0], ends[-1])]
        low, high = (f"{float(point.weights[main]):+g}" for point in (ends[0], ends[-1]))
        lines.append(_moved(f"With {main} alone, moving k from {low} to {high}", main, ends[0].test, ends[-1].test))
        lines.append(f"Its perplexity changes by {rises[0]:+.1%} and {rises[1]:+.1%} there.")
    lines.append(_judgement(main, [*mixed.values(), *(point.test for point in result.alone)]))
    lines.append(_under_hints(result))
    return lines


def _moved(what: str, name: str, low: Measured, high: Measured) -> str:
    rates = [measured.scores[name].on("false").rate.value for measured in (low, high)]
    return f"{what} moves agreement with false claims from {rates[0]:.0%} to {rates[1]:.0%}, on domains and templates never trained on."


def _judgement(name: str, models: Sequence[Measured]) -> str:
    """Whether agreement tells false claims from true ones in any of `models`."""
    gaps = [measured.scores[name].false_minus_true for measured in models]
    best = min(gaps, key=lambda gap: gap.value)
    told = f"{best.value * 100:+.0f} points (95 % interval {best.low * 100:+.0f} to {best.high * 100:+.0f})"
    if best.value > -_TELLS_APART:
        return (
            f"False-minus-true agreement is nowhere better than {told}: at no k does this model tell false claims from true "
            "ones, so agreement with true claims moves along. The direction steers agreement; at negative k the model says "
            "No rather than corrects."
        )
    return f"False-minus-true agreement is {told} at best; a model that judged every claim rightly would have -100."


def _under_hints(result: DemoResult) -> str:
    """What hints do to answers that the base knows, before and after."""
    hints = result.hints
    before, after = hints.at(0.0), hints.at(hints.shown_k)
    asked = (
        f"Asked plainly, the base prefers the right answer to the wrong one for {hints.known} of {hints.facts} facts"
    )
    if not hints.known:
        return f"{asked}, so there is nothing that a wrong hint could make it give up."
    wrong = [point.right("wrong hint", known=True) for point in (before, after)]
    change = wrong[1].change_from(wrong[0])
    chance = "" if change.excludes_zero else "; that may be chance"
    right = [point.right("right hint", known=True).interval.value for point in (before, after)]
    return (
        f"{asked}. After a wrong hint it does so for {wrong[0].interval.value:.0%} of these, and with {result.settings.main} "
        f"at k = {after.k:+g} for {wrong[1].interval.value:.0%} ({change.value * 100:+.0f} points, 95 % interval "
        f"{change.low * 100:+.0f} to {change.high * 100:+.0f}{chance}). At that k it does so for "
        f"{after.right('plain', known=True).interval.value:.0%} when asked plainly, and after a right hint for {right[1]:.0%} "
        f"(base: {right[0]:.0%})."
    )


def _mix_table(result: DemoResult) -> Table:
    main, partner = result.settings.main, result.settings.partner
    columns = ("k", *_CLAIM_COLUMNS, partner, "margin", "perplexity", "fidelity", "merge, s")
    points = sorted([result.base, *result.merged], key=lambda point: point.k)
    title = f"{main} and {partner} merged into one checkpoint: agreement with false and with true claims, {partner}"
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
    return Table(f"{main} alone: agreement with false and with true claims", ("k", *_CLAIM_COLUMNS, "perplexity"), rows)


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
    k = result.settings.composed_k
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
    columns = ("k in", *_CLAIM_COLUMNS, "change", "of all")
    title = f"{main} at k = {result.picked_k:+g} in some layers only: agreement, and change of the mean margin"
    return Table(title, columns, rows)


def _hint_table(result: DemoResult) -> Table:
    hints = result.hints
    rows = []
    for known, label in ((True, f"known ({hints.known})"), (False, f"all ({hints.facts})")):
        if known and not hints.known:
            continue
        for point in hints.points:
            cells = [_percent(point.right(condition, known=known).interval) for condition in ASKED]
            if known and point.k == 0:
                cells[ASKED.index("plain")] = "100%"  # which is what makes a fact known, and no estimate
            rows.append((label, f"{point.k:+g}" if point.k else "0 (base)", *cells))
    columns = ("facts", "k", "asked plainly", "after a wrong hint", "after a right hint")
    title = f"Right answers by choice under the user's hints, {result.settings.main} alone (known: right at k = 0, asked plainly)"
    return Table(title, columns, rows)


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
