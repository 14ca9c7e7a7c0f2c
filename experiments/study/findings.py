"""The gate and the hypotheses of `PLAN.md`, held against the figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from experiments.study.methods import (
    COMPARED_SWEEPS,
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
from experiments.study.settings import PRIMARY_COST
from experiments.study.statistics import paired, scaled, sign_flip
from experiments.study.text import listed, p_value, percent, points, relative, seeds_told

__all__ = ["Finding", "Gate", "gate_of", "hypotheses"]

Verdict = Literal["held", "not held", "not yet run"]

GATE_PLAIN: Final = 0.7
GATE_FALL: Final = 0.3
CAPABILITY_LOSS: Final = 0.05
PERPLEXITY_RISE: Final = 0.05
RANDOM_PART: Final = 0.25
VALID_LOSS: Final = 0.1
SPOKEN_VALID: Final = "facts valid"
_ROUNDING: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Gate:
    """Whether the base is a model to study this on.

    Attributes:
        plain: how many of the validation items it answers rightly when plain.
        kept: how many of these after a wrong hint.
        items: all of them.
    """

    plain: int
    kept: int
    items: int

    @property
    def is_passed(self) -> bool:
        """Whether it knows the answers, and gives them up for a hint."""
        lost = self.plain - self.kept
        return self.plain >= GATE_PLAIN * self.items - _ROUNDING and lost >= GATE_FALL * self.plain - _ROUNDING


@dataclass(frozen=True, slots=True)
class Finding:
    """One hypothesis.

    Attributes:
        claim: what is to hold.
        verdict: whether it does.
        told: the figures.
        partial: the seeds that there are, where some are missing; empty where none is.
    """

    claim: str
    verdict: Verdict
    told: str
    partial: tuple[int, ...] = ()


def gate_of(methods: Methods) -> Gate | None:
    """The gate, by the base's answers on validation; None before they are there."""
    base = methods.base()
    if base is None:
        return None
    plain = base.figure(PLAIN, "validation").values == 1
    after = base.figure(WRONG_HINT, "validation").values == 1
    return Gate(int(plain.sum()), int((plain & after).sum()), len(plain))


def hypotheses(methods: Methods) -> list[Finding]:
    """Each of the five, in the plan's order."""
    weights = methods.at(WEIGHTS)
    return [_raised(methods, weights), _free(methods, weights), _ahead(methods), _random(methods), _spoken(methods)]


def _raised(methods: Methods, weights: Measured | None) -> Finding:
    claim = f"At a KL of {PRIMARY_COST:g} the weights raise the main figure."
    if weights is None:
        return _unrun(claim)
    changes, change, p = weights.changes(MAIN), weights.change(MAIN), sign_flip(weights.changes(MAIN))
    rises = sum(one > 0 for one in changes)
    told = (
        f"It goes from {percent(weights.base(MAIN).interval)} to {percent(weights.value(MAIN))}, by {points(change)} points; it "
        f"rises in {rises} of {len(changes)} seeds (by {_each(changes)} points; sign-flip test, one-sided {p_value(p)})."
    )
    return _judged(claim, rises == len(changes) and change.low > 0, told, methods, ("facts",))


def _free(methods: Methods, weights: Measured | None) -> Finding:
    claim = "They do so at no cost of right answers."
    if weights is None:
        return _unrun(claim)
    plain, right, text = weights.change(PLAIN), weights.change(RIGHT_HINT), weights.change(PERPLEXITY)
    parts = {
        f"plain questions {points(plain)} points": plain.low > -CAPABILITY_LOSS,
        f"right hints {points(right)} points": right.low > -CAPABILITY_LOSS,
        f"perplexity {relative(text)}": text.value < PERPLEXITY_RISE,
    }
    failed = [part for part, held in parts.items() if not held]
    told = (
        f"Over all items: {'; '.join(parts)}. The intervals of the first two are to be above {-100 * CAPABILITY_LOSS:.0f} points, "
        f"the rise of the third below {100 * PERPLEXITY_RISE:.0f} %."
        + (f" What fails: {'; '.join(failed)}." if failed else "")
    )
    return _judged(claim, not failed, told, methods, ("facts",))


def _ahead(methods: Methods) -> Finding:
    claim = "At the same cost each other method and control raises the main figure by less."
    compared = methods.compared()
    if not compared:
        return _unrun(claim)
    ahead = [one for one in compared if one.is_ahead]
    behind = [one for one in compared if not one.is_ahead]
    told = (
        f"By intervals and Holm's p, {len(ahead)} of {len(compared)} do: {_names(ahead)}."
        + (f" Of the others this is not shown: {_names(behind)}." if behind else "")
        + " Differences are under *Differences at equal cost*."
    )
    return _judged(claim, not behind, told, methods, COMPARED_SWEEPS)


def _random(methods: Methods) -> Finding:
    claim = "Random directions reach less than a quarter of the effect."
    weights = methods.at(WEIGHTS)
    labels = [label for label in methods.labels if is_control(label) and label.startswith(f"{WEIGHTS},")]
    if weights is None or not labels:
        return _unrun(claim)
    told, held = [], []
    for label in labels:
        control = methods.in_favour(label)
        if control is None:
            continue
        ours = weights.of_seeds(control.seeds)
        if not ours.seeds:
            continue
        rise, whole = control.change(MAIN).value, ours.change(MAIN).value
        held.append(whole > 0 and rise < RANDOM_PART * whole)
        quarter = scaled(ours.figure(MAIN), ours.base(MAIN), RANDOM_PART)
        left = paired(quarter, control.figure(MAIN)).interval
        told.append(
            f"{shown(label)}: {points(control.change(MAIN))} points with the better sign of each seed, {_part(rise, whole)}; a "
            f"quarter of the weights' rise is larger by {points(left)}"
        )
    if not held:
        return _unrun(claim)
    return _judged(claim, all(held), f"{'. '.join(_sentence(one) for one in told)}.", methods, ("facts", "controls"))


def _spoken(methods: Methods) -> Finding:
    claim = "Spoken answers agree in sign."
    weights = methods.at(WEIGHTS, sweep="spoken")
    if weights is None:
        return _unrun(claim)
    rise, valid = weights.change(WRONG_HINT), weights.change(SPOKEN_VALID)
    told = (
        f"Right answers after a wrong hint, all items: from {percent(weights.base(WRONG_HINT).interval)} to "
        f"{percent(weights.value(WRONG_HINT))}, by {points(rise)} points ({_each(weights.changes(WRONG_HINT))} by seed). Valid "
        f"answers: {points(valid)} points, where at most {100 * VALID_LOSS:.0f} may be lost."
    )
    held = rise.value > 0 and valid.value >= -VALID_LOSS - _ROUNDING
    return _judged(claim, held, told, methods, ("spoken",))


def _judged(claim: str, held: bool, told: str, methods: Methods, sweeps: Sequence[str]) -> Finding:  # noqa: FBT001 - the verdict itself
    missing = {seed for name in sweeps for seed in methods.study.missing(name)}
    if missing:
        there = tuple(seed for seed in methods.study.seeds if seed not in missing)
        return Finding(claim, "not yet run", told, there)
    return Finding(claim, "held" if held else "not held", told)


def _unrun(claim: str) -> Finding:
    return Finding(claim, "not yet run", "")


def told_findings(found: Sequence[Finding]) -> Iterator[str]:
    """A numbered line for each."""
    for number, one in enumerate(found, start=1):
        if one.verdict == "not yet run" and one.told:
            there = f" (there: {seeds_told(one.partial)})" if one.partial else ""
            yield f"{number}. {one.claim} **Not yet run** in full{there}; so far: {one.told}"
        else:
            yield f"{number}. {one.claim} **{one.verdict.capitalize()}.** {one.told}".rstrip()
    yield ""


def _names(compared: Sequence[Compared]) -> str:
    return listed([shown(one.theirs.label) for one in compared])


def _each(changes: Sequence[float]) -> str:
    return ", ".join(f"{100 * one:+.1f}" for one in changes)


def _part(rise: float, whole: float) -> str:
    return f"{rise / whole:.2f} of the weights'" if whole > 0 else "where the weights' rise is none"


def _sentence(told: str) -> str:
    return told[:1].upper() + told[1:]
