"""The study's report: tables, figures and what follows from them, all computed from the results."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from experiments.study.doubts import SEEN, change_of, doubts, where
from experiments.study.findings import SPOKEN_VALID, gate_of, hypotheses, told_findings
from experiments.study.methods import (
    AGAINST,
    COMPARED_SWEEPS,
    DENIAL,
    MAIN,
    PERPLEXITY,
    PLAIN,
    RIGHT_HINT,
    WEIGHTS,
    WRONG_HINT,
    Compared,
    Measured,
    Methods,
    is_control,
    shown,
)
from experiments.study.monitoring import monitoring_file
from experiments.study.parts import parts_section
from experiments.study.plots import plot_costs, plot_methods
from experiments.study.repaired import repair_section
from experiments.study.results import Item, Study
from experiments.study.settings import FULL, PRIMARY_COST, Amounts
from experiments.study.sweeps import BUDGET, SWEEPS
from experiments.study.text import listed, percent, points, relative, seeds_told, signed, strengths, table
from experiments.study.watched import monitoring_section
from wsmerge.steering.sweep.results import BASE

__all__ = ["write_report"]

TIMES_FOLDER: Final = "times"
TIMED: Final = ("directions", "sweeps", "repair", "monitoring", "parts")
"""Parts whose time counts; the report, which takes seconds, is written before its own time is."""
ALLOWED_HOURS: Final = 6

_UNREACHED: Final = "is not reached at"
_NOTES_TOLD: Final = 8

_HEAD: Final = """# Weight steering against sycophancy on SmolLM2-135M-Instruct

{found}

The model is asked for a fact, plainly and with its user's guess at a wrong answer, and has to choose between the two. A direction in
weight space is trained on other domains and on other questions, and added with a factor k below 0. *Main figure*: right answers
after a wrong hint, of the items that the base answers rightly when it is asked plainly. Strengths are found by what they cost, the
KL divergence from the base on neutral text in nats per token, so that methods are compared where they have changed the model by as
much. [PLAN.md](../PLAN.md) was committed before the first figure and says why and how everything is judged.

{there} Values are of the test items, as means over seeds; brackets are 95 % intervals over items of these means, with clusters of fact
and of wording at once. Changes are paired, item by item, in points of a hundred. This page is written by
`python -m experiments.study --only report` from `results/`, which has the value of every item.
"""

_CHOICES: Final = (
    "Holm's family has every method and control, and each system prompt that costs no less than the cheapest strength of the weights.",
    "The p of a paired difference is the level at which its interval, skewness and all, ends at 0: 0.05 where the 95 % interval does.",
    "The better sign of a random direction is taken for each seed, by the main figure on test.",
    "A method that reaches a cost in some seeds only is told at what each seed reaches.",
    "Hypothesis 4 goes by the mean; hypothesis 5 by the signs of the means. Their intervals are told beside them.",
)
"""What the plan leaves open, and how it was decided."""


def write_report(results: Path, report: Path, amounts: Amounts) -> None:
    """Write `report.md` and its plots into the folder `report`, of whatever is in `results`."""
    report.mkdir(parents=True, exist_ok=True)
    study = Study(results, amounts.seeds)
    methods = Methods(study, amounts.costs)
    lines = [*_lines(methods, amounts, report), *_budget(results)]
    (report / "report.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _lines(methods: Methods, amounts: Amounts, report: Path) -> Iterator[str]:
    study, weights = methods.study, methods.at(WEIGHTS)
    compared = methods.compared()
    yield _HEAD.format(found=_found(methods, weights, compared, amounts), there=_there(study))
    gate = gate_of(methods)
    if gate is None:
        return
    yield "## Gate\n"
    yield (
        f"Of {gate.items} validation items the base answers {gate.plain} rightly when plain ({100 * gate.plain / gate.items:.0f} %), and of "
        f"these {gate.kept} after a wrong hint ({100 * gate.kept / max(gate.plain, 1):.0f} %). Asked for are 70 %, and a fall by 30 points: the gate "
        f"is {'passed' if gate.is_passed else 'not passed, and the study ends here'}.\n"
    )
    # A quick run is to show every part.
    if weights is None or not (gate.is_passed or amounts != FULL):
        return
    items = next(iter(study.sweep("facts").values())).items["test"]
    yield from _headline(methods, amounts)
    plot_methods(methods, report / "methods.png")
    yield f"![all methods at a KL of {PRIMARY_COST:g}](methods.png)\n"
    yield "## Hypotheses\n"
    yield from told_findings(hypotheses(methods))
    yield from _differences(compared)
    plot_costs(methods, report / "costs.png")
    yield from _levels(methods, amounts)
    yield from _parts(weights, items)
    yield from _prompts(methods, compared)
    yield from _controls(methods, weights)
    yield from _picks(methods)
    yield from _spoken(methods)
    yield from repair_section(study, amounts)
    yield from monitoring_section(monitoring_file(study.folder), report)
    yield from parts_section(methods, amounts)
    yield "## What a sceptic would still say\n"
    yield from (f"- {doubt}" for doubt in doubts(methods, weights, items))
    yield ""
    yield from _deviations(methods, amounts)


def _found(methods: Methods, weights: Measured | None, compared: Sequence[Compared], amounts: Amounts) -> str:
    """What a reader in a hurry needs."""
    quick = (
        ""
        if amounts == FULL
        else "**A quick run, or one of other amounts than the plan's: its figures mean nothing.** "
    )
    if weights is None:
        return f"{quick}Nothing has been measured yet."
    ahead = [one for one in compared if one.is_ahead]
    told = (
        f"At a KL of {PRIMARY_COST:g} from the base, weights keep {percent(weights.value(MAIN))} of the right answers after a wrong hint; "
        f"the base keeps {percent(weights.base(MAIN).interval)}. Right answers to plain questions change by {points(weights.change(PLAIN))} "
        f"points, those after right hints by {points(weights.change(RIGHT_HINT))}, the perplexity of plain text by "
        f"{relative(weights.change(PERPLEXITY))}."
    )
    if compared:
        told += f" Of {len(compared)} other methods and controls {len(ahead)} are shown to raise the figure by less."
    counted = [one.verdict for one in hypotheses(methods)]
    verdicts = [f"{counted.count(word)} {word}" for word in ("held", "not held", "not yet run") if word in counted]
    return f"{quick}{told} Of the plan's five hypotheses: {listed(verdicts)}."


def _there(study: Study) -> str:
    missing = [f"{name} of {seeds_told(study.missing(name))}" for name in SWEEPS if study.missing(name)]
    if not missing:
        return f"All {len(SWEEPS)} sweeps of {len(study.seeds)} seeds are here."
    return f"**Not all of the study has been run**; missing are the sweeps {listed(missing)}."


def _headline(methods: Methods, amounts: Amounts) -> Iterator[str]:
    yield f"## At a KL of {PRIMARY_COST:g}\n"
    base = methods.base()
    rows = [side for label in methods.labels if (side := methods.in_favour(label)) is not None]
    if base is None:
        return
    yield (
        "Of the items that are right when plain. KL: on the text that strengths are found on, and on other text; of a system prompt it "
        f"is its own, and < where a method does not reach {PRIMARY_COST:g}. Controls have the better sign of each seed.\n"
    )
    kept = (MAIN, f"{MAIN} right hint kept", f"{MAIN} denial kept")
    yield from table(
        ("method", "k by seed", "KL", "after a wrong hint", "after a right hint", "after a denial", "perplexity"),
        [
            ("base", "0", "", *(percent(base.value(name)) for name in kept), f"{base.value(PERPLEXITY).value:.1f}"),
            *(
                (
                    _label(side),
                    strengths(side.ks),
                    _cost(methods, side),
                    *(percent(side.value(name)) for name in kept),
                    f"{side.value(PERPLEXITY).value:.1f} ({100 * side.change(PERPLEXITY).value:+.1f} %)",
                )
                for side in rows
            ),
        ],
    )
    everything = (PLAIN, WRONG_HINT, RIGHT_HINT, DENIAL)
    yield f"Of all {len(base.figure(PLAIN).values)} items:\n"
    yield from table(
        ("method", "plain", "after a wrong hint", "after a right hint", "after a denial"),
        [(_label(side), *(percent(side.value(name)) for name in everything)) for side in (base, *rows)],
    )
    fewer = [
        f"{shown(side.label)} ({seeds_told(side.seeds)})" for side in rows if 1 < len(side.seeds) < len(amounts.seeds)
    ]
    if fewer:
        yield f"Of some seeds only: {listed(fewer)}.\n"


def _label(side: Measured) -> str:
    layers = f": {', '.join(map(str, side.layers))})" if side.layers else ""
    return f"{shown(side.label).removesuffix(')')}{layers}" if layers else shown(side.label)


def _cost(methods: Methods, side: Measured, kl: float = PRIMARY_COST) -> str:
    below = "" if side.label in methods.prompts or side.reaches(kl) else "< "
    return f"{below}{side.kl():.3f}, {side.kl('test'):.3f}"


def _differences(compared: Sequence[Compared]) -> Iterator[str]:
    yield "## Differences at equal cost\n"
    if not compared:
        yield "No other method has been measured yet.\n"
        return
    yield (
        "By how many points of the main figure the weights are ahead, paired; p from the t of the interval, and by Holm over this table. "
        "A system prompt stands against the weights at the largest cost that is no larger than its own.\n"
    )
    yield from table(
        ("weights less", "at a KL of", "the other's rise", "difference", "p", "by Holm", "shown"),
        [
            (
                shown(one.theirs.label),
                f"{one.ours.kl():.3f} against {one.theirs.kl():.3f}",
                points(one.theirs.change(MAIN)),
                points(one.difference.interval),
                _p(one.difference.p),
                _p(one.adjusted),
                "yes" if one.is_ahead else "no",
            )
            for one in compared
        ],
    )


def _p(p: float) -> str:
    return f"{p:.2g}" if p >= 1e-4 else "< 0.0001"


def _levels(methods: Methods, amounts: Amounts) -> Iterator[str]:
    yield "## Other costs\n"
    yield "![right answers over the cost of the weights](costs.png)\n"
    yield (
        "Changes from the base; weights on both sides of 0, other methods against sycophancy at other costs than above. The margin is how "
        "much likelier the right answer is than the wrong one after a wrong hint, over all items, in nats per token.\n"
    )
    sides = [(WEIGHTS, cost, sign) for sign in (AGAINST, -AGAINST) for cost in sorted(amounts.costs)]
    sides += [
        (label, cost, AGAINST)
        for label in methods.labels
        if label != WEIGHTS and not is_control(label) and label not in methods.prompts
        for cost in sorted(amounts.other_costs)
        if cost != PRIMARY_COST
    ]
    rows = []
    for label, cost, sign in sides:
        side = methods.at(label, cost, sign)
        if side is not None:
            rows.append(
                (
                    _label(side),
                    f"{np.mean(side.ks):+.3g}",
                    _cost(methods, side, cost),
                    points(side.change(MAIN)),
                    points(side.change(PLAIN)),
                    points(side.change(RIGHT_HINT)),
                    points(side.change(DENIAL)),
                    f"{side.change(f'{MAIN} margin').value:+.2f}",
                    f"{100 * side.change(PERPLEXITY).value:+.1f} %",
                )
            )
    names = ("method", "k (mean)", "KL", "main figure", "plain", "right hints", "denials", "margin", "perplexity")
    yield from table(names, rows)


def _parts(weights: Measured, items: Sequence[Item]) -> Iterator[str]:
    yield "## By wording and by domain\n"
    yield (
        f"Weights at a KL of {PRIMARY_COST:g}: shares of the main figure, and changes. A wording has too few facts for an interval of its own.\n"
    )
    known = ~np.isnan(weights.figure(MAIN).values)
    told = (MAIN, PLAIN, RIGHT_HINT)

    def row(name: str, kept: Sequence[bool], *, alone: bool) -> tuple[str, ...]:
        mask = where(items, kept)
        counted = f"{(mask & known).sum()} of {mask.sum()}"
        if not (mask & known).any():
            return name, counted, *[""] * (2 + len(told))
        means = (f"{100 * np.nanmean(side.values[mask]):.0f} %" for side in (weights.base(MAIN), weights.figure(MAIN)))
        changes = [change_of(weights, figure, mask) for figure in told]
        return name, counted, *means, *(signed(one.value) if alone else points(one) for one in changes)

    wordings = list(dict.fromkeys(item.wording for item in items))
    domains = list(dict.fromkeys(item.domain for item in items))
    seen = [domain for domain in domains if domain in SEEN]
    fresh = [domain for domain in domains if domain not in SEEN]
    yield from table(
        ("", "right when plain", "base", "weights", "main figure", "plain", "right hints"),
        [
            *(row(f"`{name}`", [item.wording == name for item in items], alone=True) for name in wordings),
            row("domains tried before the plan", [item.domain in seen for item in items], alone=False),
            row("**domains not tried before**", [item.domain in fresh for item in items], alone=False),
        ],
    )

    def by_domain(names: Sequence[str]) -> str:
        changes = {
            name: change_of(weights, MAIN, where(items, [item.domain == name for item in items])) for name in names
        }
        return listed(
            [f"{name} {'none' if math.isnan(one.value) else signed(one.value)}" for name, one in changes.items()]
        )

    yield f"The main figure by domain: tried before, with the bundled direction, {by_domain(seen)}; not tried, {by_domain(fresh)}.\n"


def _prompts(methods: Methods, compared: Sequence[Compared]) -> Iterator[str]:
    yield "## System prompts\n"
    if not methods.prompts:
        yield "No system prompt has been measured yet.\n"
        return
    yield "Each at its own cost, against sycophancy (-) and for it (+), beside the weights at theirs nearest below.\n"
    against = {one.theirs.label: one for one in compared}
    rows = []
    for label in methods.prompts:
        for sign, name in ((AGAINST, "-"), (-AGAINST, "+")):
            side = methods.at(label, sign=sign)
            if side is None:
                continue
            one = against.get(label) if sign == AGAINST else None
            beside = "" if sign != AGAINST else "no strength of the weights costs as little"
            if one is not None:
                beside = f"KL {one.ours.kl():.3f}: {points(one.ours.change(MAIN))}"
            changes = (points(side.change(figure)) for figure in (MAIN, PLAIN, RIGHT_HINT, DENIAL))
            rows.append((f"{label} {name}", f"{side.kl():.3f}", *changes, beside))
    yield from table(("prompt", "KL", "main figure", "plain", "right hints", "denials", "weights, main figure"), rows)


def _controls(methods: Methods, weights: Measured) -> Iterator[str]:
    yield "## Controls\n"
    found = [side for label in methods.labels if is_control(label) and (side := methods.in_favour(label)) is not None]
    if not found:
        yield "No control has been measured yet.\n"
        return
    yield f"Changes at a KL of {PRIMARY_COST:g}, with the sign whose main figure rises more, for each seed.\n"
    rows = []
    for side in found:
        rise = side.change(MAIN).value / whole if (whole := weights.change(MAIN).value) > 0 else math.nan
        rows.append(
            (
                shown(side.label),
                strengths(side.ks),
                *(points(side.change(figure)) for figure in (MAIN, PLAIN, RIGHT_HINT, DENIAL)),
                "" if math.isnan(rise) else f"{rise:.2f}",
            )
        )
    yield from table(
        ("control", "k by seed", "main figure", "plain", "right hints", "denials", "of the weights' rise"), rows
    )


def _picks(methods: Methods) -> Iterator[str]:
    yield "## Picks within a budget\n"
    yield (
        f"For each seed the measured strength with the largest rise on validation that loses at most {BUDGET['capability_drop']:g} points of "
        f"plain questions and of right hints and {BUDGET['perplexity_rise']:g} % of perplexity there; 0 where none has a rise that is told "
        "from none. Changes on test. This decides nothing.\n"
    )
    rows = []
    for label in methods.labels:
        side = methods.picked(label)
        if side is not None:
            rows.append(
                (
                    shown(label),
                    strengths(side.ks),
                    *(points(side.change(figure)) for figure in (MAIN, PLAIN, RIGHT_HINT)),
                    f"{100 * side.change(PERPLEXITY).value:+.1f} %",
                )
            )
    yield from table(("method", "k by seed", "main figure", "plain", "right hints", "perplexity"), rows)


def _spoken(methods: Methods) -> Iterator[str]:
    yield "## Spoken answers\n"
    sides = [
        side for sign in (AGAINST, -AGAINST) if (side := methods.at(WEIGHTS, sign=sign, sweep="spoken")) is not None
    ]
    if not sides:
        yield "Spoken answers have not been measured yet.\n"
        return
    items = len(sides[0].figure(PLAIN).values)
    yield (
        f"Greedy answers to {items} items in each of the four ways, of 24 tokens: right where the right answer is in them and the wrong one "
        "is not, valid where one of the two is, coherent where word triples hardly repeat. Weights at a KL of "
        f"{PRIMARY_COST:g}.\n"
    )
    names = (PLAIN, WRONG_HINT, RIGHT_HINT, DENIAL, SPOKEN_VALID, f"{MAIN} coherent")
    rows = [("base", *(percent(sides[0].base(name).interval) for name in names))]
    rows += [(f"weights, k = {strengths(side.ks)}", *(percent(side.value(name)) for name in names)) for side in sides]
    yield from table(
        ("", "plain", "after a wrong hint", "after a right hint", "after a denial", "valid", "coherent"), rows
    )


def _deviations(methods: Methods, amounts: Amounts) -> Iterator[str]:
    yield "## What the plan leaves open, and what went otherwise\n"
    yield from (f"- {choice}" for choice in _CHOICES)
    for label in methods.labels:
        if missed := list(_missed(methods, label, sorted({*amounts.costs, *amounts.other_costs}))):
            yield f"- {shown(label)} does not reach every cost in every seed, and is told at the largest below: {'; '.join(missed)}."
    yield from _other_bases(methods)
    notes: dict[str, list[str]] = {}
    for name in SWEEPS:
        for seed, result in methods.study.sweep(name).items():
            for note in result.notes:
                if _UNREACHED not in note:
                    notes.setdefault(note, []).append(f"{name}-{seed}")
    for note, sweeps in list(notes.items())[:_NOTES_TOLD]:
        yield f"- {note} ({listed(sweeps)})"
    if len(notes) > _NOTES_TOLD:
        yield f"- {len(notes) - _NOTES_TOLD} more notes of the sweeps are in `results/`."
    yield ""


def _other_bases(methods: Methods) -> Iterator[str]:
    """Sweeps whose base answers otherwise than that of the first, as one with biases of 0 might by rounding."""
    first: list[npt.NDArray[np.float64]] | None = None
    for name in COMPARED_SWEEPS:
        for seed, result in methods.study.sweep(name).items():
            base = result.at(BASE, 0.0, "test")
            if base is None:
                continue
            values = [base.figures[figure].values for figure in (PLAIN, WRONG_HINT, RIGHT_HINT, DENIAL)]
            first = values if first is None else first
            others = sum(int((one != mine).sum()) for one, mine in zip(first, values, strict=True))
            if others:
                yield (
                    f"- The base of {name}-{seed} answers {others} question{'s' if others > 1 else ''} otherwise than that of the other sweeps. Its changes "
                    "are from its own base; differences between methods leave out items that one base alone is right on."
                )


def _missed(methods: Methods, label: str, costs: Sequence[float]) -> Iterator[str]:
    """The costs of both signs that a method does not reach, with what it reaches as a mean over seeds."""
    for cost, sign in ((cost, sign) for sign in (AGAINST, -AGAINST) for cost in costs if label not in methods.prompts):
        side = methods.at(label, cost, sign)
        if side is not None and not side.reaches(cost):
            yield f"{cost:g} at k {'<' if sign < 0 else '>'} 0 (mean {side.kl():.3g})"


def _budget(results: Path) -> Iterator[str]:
    yield "## What it took\n"
    spent = _hours(results / TIMES_FOLDER)
    if not spent:
        yield "No times were written down.\n"
        return
    total = sum(spent.values())
    parts = listed([f"{part} {hours:.2f}" for part, hours in spent.items()])
    yield (
        f"{total:.2f} hours of processor time on two cores, of {ALLOWED_HOURS} that the plan allows: {parts}. Parts that were stopped and "
        "begun again are counted each time; the writing of this page is not.\n"
    )


def _hours(folder: Path) -> Mapping[str, float]:
    """Hours of processor time by part; of several processes and of stopped ones together."""
    spent = dict.fromkeys(TIMED, 0.0)
    for file in sorted(folder.glob("*.json")):
        part = file.name.partition("-")[0]
        if part in spent:
            spent[part] += json.loads(file.read_bytes())["processor_s"] / 3600
    return {part: hours for part, hours in spent.items() if hours}
