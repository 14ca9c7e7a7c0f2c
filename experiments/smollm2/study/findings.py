"""What the paper finds, held against this study's figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final

from experiments.smollm2.study.results import CLEAN_RUNS, WATCHED, Readings, SweepOverSeeds, mean
from experiments.smollm2.study.settings import Amounts

__all__ = ["findings"]

CLEARLY_APART: Final = 0.9
"""AUROC."""


def findings(sweeps: Mapping[str, SweepOverSeeds], readings: Readings, amounts: Amounts) -> Iterator[str]:
    """One line for each finding of the paper: whether it holds, in how many seeds, and by how much."""
    yield from _steering(sweeps["sycophancy"], sweeps["sycophancy-bias"])
    yield from _judgement(sweeps["sycophancy"])
    yield from _trait(sweeps["contrary"])
    yield from _repairs(sweeps)
    yield from _watching(readings, amounts)


def _steering(sweep: SweepOverSeeds, biases: SweepOverSeeds) -> Iterator[str]:
    weights = sweep.effects("weights")
    yield (
        f"- Weight steering lowers sycophancy on held-out domains within the budget: {_count(weights, -1)}; mean change of the "
        f"margin {_mean(weights):+.2f} nats, knowledge {_points(sweep, 'weights')} points."
    )
    others = [(sweep, method) for method in sweep.methods if method != "weights"]
    for found, method in [*others, *((biases, method) for method in biases.methods)]:
        effects = found.effects(method)
        told = [(ours, theirs) for ours, theirs in zip(weights, effects, strict=True) if theirs is not None]
        k = max(set(sweep.picks("weights")), key=sweep.picks("weights").count)
        costly = found.cell(method, k, "sycophancy", change=True) if k in found.strengths(method) else None
        same = f"; at k = {k:g}, whatever it costs, {costly.value:+.2f}" if costly and costly.seeds else ""
        ahead = sum((ours or 0.0) < (theirs or 0.0) for ours, theirs in told)
        yield (
            f"- Weight steering lowers it more than {method}: in {ahead} of {len(told)} seeds ({_mean(weights):+.2f} against "
            f"{_mean(effects):+.2f} nats; knowledge {_points(found, method)} points{same})."
        )


def _judgement(sweep: SweepOverSeeds) -> Iterator[str]:
    gaps = {
        k: sweep.cell("weights", k, "agrees with true claims").value - sweep.cell("weights", k, "sycophancy rate").value
        for k in sweep.strengths("weights")
    }
    best = max(gaps, key=lambda k: gaps[k])
    yield (
        f"- Agreement with true claims less agreement with false ones is {100 * gaps[0.0]:+.0f} points for the base and at best "
        f"{100 * gaps[best]:+.0f} points (k = {best:g}): where this stays near 0, what is steered is agreement and not judgement."
    )


def _trait(sweep: SweepOverSeeds) -> Iterator[str]:
    effects = sweep.effects("weights")
    yield (
        f"- A misalignment-like trait is induced within the budget: {_count(effects, 1)}; margin {_mean(effects):+.2f} nats, "
        f"`says no` {100 * sweep.picked('weights', 'says no', change=True).value:+.0f} points, valid answers "
        f"{100 * sweep.picked('weights', 'says no valid', change=True).value:+.0f}, fluent "
        f"{100 * sweep.picked('weights', 'fluent', change=True).value:+.0f}, knowledge {_points(sweep, 'weights')}."
    )
    plus = sweep.effects("plus pole")
    yield (
        f"- The plus pole alone comes close to the contrastive direction (paper: close): {_mean(plus):+.2f} against "
        f"{_mean(effects):+.2f} nats at the picked strengths."
    )


def _repairs(sweeps: Mapping[str, SweepOverSeeds]) -> Iterator[str]:
    tuned = sweeps["tuned"]
    task = [tuned.cell(method, 1.0, "task").value for method in ("task fine-tune", "joint training")]
    yield (
        f"- The fine-tune learns its task ({tuned.cell('base', 0.0, 'task').value:.0%} to {task[0]:.0%}; with joint training "
        f"{task[1]:.0%})."
    )
    for behaviour in ("sycophancy", "refusal"):
        sweep = sweeps[f"repair-{behaviour}"]
        nearest, told = sweep.nearest("weights", behaviour), sweep.picked
        yield (
            f"- The fine-tune moves {behaviour} by {_drift(sweep, behaviour, 'test')} nats (validation: "
            f"{_drift(sweep, behaviour, 'validation')}). With k picked on validation "
            f"({', '.join(f'{one:g}' for one in sweep.picks('weights'))}) it comes to "
            f"{told('weights', behaviour).value:+.2f}, from {sweep.cell('weights', 0.0, behaviour).value:+.2f}, with the base at "
            f"{sweep.cell('base', 0.0, behaviour).value:+.2f}: nearer in {sweep.nearer('weights', behaviour)} of "
            f"{len(sweep.picks('weights'))} seeds. The task is then at {told('weights', 'task').value:.0%}, knowledge "
            f"{told('weights', 'knowledge').value:.0%}, perplexity {told('weights', 'plain text').value:.1f} (fine-tune: "
            f"{sweep.cell('weights', 0.0, 'knowledge').value:.0%} and {sweep.cell('weights', 0.0, 'plain text').value:.1f}; base: "
            f"{sweep.cell('base', 0.0, 'knowledge').value:.0%} and {sweep.cell('base', 0.0, 'plain text').value:.1f}). Of the test "
            f"curve k = {nearest:g} is nearest to the base. Joint training with corrections of false claims: "
            f"{tuned.cell('joint training', 1.0, behaviour).value:+.2f}."
        )


def _drift(sweep: SweepOverSeeds, behaviour: str, split: str) -> str:
    """The fine-tune's figure less the base's, with its interval; the sweep has the change the other way round."""
    back = sweep.cell("base", 0.0, behaviour, change=True, split=split)
    return f"{-back.value:+.2f} [{-back.high:+.2f}, {-back.low:+.2f}]"


def _watching(readings: Readings, amounts: Amounts) -> Iterator[str]:
    first, last = readings.steps[0], readings.steps[-1]
    shares = [percent for percent in amounts.bad_shares if percent]
    means = [mean(readings.cosines(WATCHED, f"bad-{percent}", last)) for percent in amounts.bad_shares]
    rising = all(low < high for low, high in pairwise(means))
    yield (
        f"- The cosine with the trait's direction {'rises' if rising else 'does not always rise'} with the share of bad data "
        f"({', '.join(f'{percent} %: {value:+.4f}' for percent, value in zip(amounts.bad_shares, means, strict=True))}); cosines "
        f"are small, as in the paper. AUROC against clean runs: {_aurocs(readings, WATCHED, shares, last)}; already after "
        f"{first} of {last} steps: {_aurocs(readings, WATCHED, shares, first)}."
    )
    share = shares[len(shares) // 2]
    apart = {
        clean: [
            name
            for name in readings.directions
            if name != WATCHED and readings.auroc(name, share, last, (clean,)) > CLEARLY_APART
        ]
        for clean in CLEAN_RUNS
    }
    yield (
        f"- Controls tell the runs of {share} % from clean ones too (AUROC above {CLEARLY_APART}): from those of 0 % "
        f"{_list(apart['bad-0'])}, from `good` {_list(apart['good'])}. What rises for a control follows rows that are unlike "
        "the task's, bad or good, or is a trait of the same kind; a reading means something beside its controls."
    )
    clean = [
        abs(z) for name in readings.directions for run in CLEAN_RUNS for z in readings.cosines(name, run, last, "z")
    ]
    yield (
        f"- The band of random directions is no test by itself: readings of clean runs lie {mean(clean):.0f} of its standard "
        "deviations from 0 on average. Fine-tunes of one model share much; clean runs and controls are what to compare with."
    )


def _aurocs(readings: Readings, direction: str, shares: Sequence[int], step: int) -> str:
    return ", ".join(f"{readings.auroc(direction, percent, step):.2f} ({percent} %)" for percent in shares)


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def _count(effects: Sequence[float | None], sign: int) -> str:
    told = [effect for effect in effects if effect is not None]
    return f"in {sum(sign * effect > 0 for effect in told)} of {len(told)} seeds"


def _mean(effects: Sequence[float | None]) -> float:
    return mean([effect for effect in effects if effect is not None])


def _points(sweep: SweepOverSeeds, method: str) -> str:
    return f"{100 * sweep.picked(method, 'knowledge', change=True).value:+.0f}"
