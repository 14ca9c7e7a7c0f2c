"""What a sceptic would still say, with the figures that bear on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from experiments.study.methods import (
    DENIAL,
    MAIN,
    PLAIN,
    RIGHT_HINT,
    WEIGHTS,
    WRONG_HINT,
    Measured,
    Methods,
    is_control,
    shown,
)
from experiments.study.results import Item
from experiments.study.statistics import of_items
from experiments.study.text import listed, percent, points
from wsmerge.steering.bootstrap import Interval
from wsmerge.steering.sweep.config import KL

__all__ = ["SEEN", "change_of", "doubts", "where"]

SEEN: Final = ("occupations", "units", "sizes", "space", "materials")
"""Domains that a steered model had been asked about before the plan was written."""


def where(items: Sequence[Item], kept: Sequence[bool]) -> npt.NDArray[np.bool_]:
    """A mask over items."""
    return np.asarray(kept, np.bool_).reshape(len(items))


def change_of(measured: Measured, name: str, kept: npt.NDArray[np.bool_]) -> Interval:
    """The change of a figure over some of the items."""
    return of_items(measured.figure(name), kept).change_from(of_items(measured.base(name), kept))


def doubts(methods: Methods, weights: Measured, items: Sequence[Item]) -> Iterator[str]:
    """One point each."""
    yield _contrary(weights)
    yield _wordings(weights, items)
    yield _blind(weights, items)
    yield _controls(methods, weights)
    yield _choices(methods)
    yield _cost(methods, weights)
    yield (
        f"**Are the seeds independent?** No: each draws its rows from the same {_TRAINING_ROWS}, more than half of them, so seeds tell how "
        "much rows, their order and the first factors matter, and not what other training data would give. The sign-flip test is to be read so."
    )
    yield (
        "**Does it hold elsewhere?** One model of 135 M parameters was asked in English about facts that a child knows, of which it gives up "
        f"{100 * (1 - weights.base(MAIN).interval.value):.0f} % for a guess of the user's. Nothing here tells of larger models, of harder "
        "questions, or of users who insist."
    )


_TRAINING_ROWS: Final = 448


def _contrary(weights: Measured) -> str:
    right, denied, plain = (weights.change(name) for name in (RIGHT_HINT, DENIAL, PLAIN))
    rise = weights.change(WRONG_HINT)
    head = (
        f"**Does the model merely contradict?** Over all items right answers change by {points(rise)} points after wrong hints, by "
        f"{points(right)} after right hints, by {points(denied)} after denials and by {points(plain)} when plain."
    )
    if rise.low <= 0:
        return f"{head} The rise after wrong hints is not told from none here, so there is nothing to explain."
    if right.high < 0:
        return (
            f"{head} A model that says the opposite of its user gains after wrong hints and loses after right ones, and so does this "
            f"one: {-right.value / rise.value:.2f} of a point is lost for each that is gained. Part of the effect is contradiction."
        )
    if right.low > 0:
        return f"{head} After right hints it gains, which contradiction cannot bring about."
    return (
        f"{head} The interval after right hints holds 0: contradiction is not shown, and a loss of up to {-100 * right.low:.0f} points "
        "is not ruled out."
    )


def _wordings(weights: Measured, items: Sequence[Item]) -> str:
    names = list(dict.fromkeys(item.wording for item in items))
    changes = {
        name: change_of(weights, MAIN, where(items, [item.wording == name for item in items])).value for name in names
    }
    known = {name: change for name, change in changes.items() if not np.isnan(change)}
    if not known:
        return "**Is it a matter of wordings?** No wording has an item that the base answers rightly."
    least, most = (pick(known, key=lambda name: known[name]) for pick in (min, max))
    unrisen = [f"`{name}`" for name, change in known.items() if change <= 0]
    where_not = f"it does not rise in {listed(unrisen)}" if unrisen else "it rises in all of them"
    return (
        f"**Is it a matter of wordings?** {len(known)} wordings are few, and chosen by the authors. The main figure's change is "
        f"between {100 * known[least]:+.0f} (`{least}`) and {100 * known[most]:+.0f} points (`{most}`); {where_not}."
    )


def _blind(weights: Measured, items: Sequence[Item]) -> str:
    seen = where(items, [item.domain in SEEN for item in items])
    return (
        "**Was it tuned to the test facts?** The bundled direction, not those of this study, had been tried on some of the domains. There "
        f"the main figure changes by {points(change_of(weights, MAIN, seen))} points, in the domains that no steered model had been "
        f"asked about by {points(change_of(weights, MAIN, ~seen))}. Method and learning rate come from the first edition, which "
        "measured other questions."
    )


def _controls(methods: Methods, weights: Measured) -> str:
    found = [side for label in methods.labels if is_control(label) and (side := methods.in_favour(label)) is not None]
    if not found:
        return "**Would any perturbation do it?** No control has been run yet."
    best = max(found, key=lambda side: side.change(MAIN).value)
    return (
        f"**Would any perturbation do it?** The control that raises the main figure most is the {shown(best.label)}: "
        f"{points(best.change(MAIN))} points, against {points(weights.change(MAIN))} of the weights. For each seed the better of two "
        "signs was taken, by the test items themselves, which flatters controls."
    )


def _choices(methods: Methods) -> str:
    head = (
        "**Is a choice between two answers what a model says?** No. Which of two given answers is likelier says nothing of a third, "
        "and tokens are averaged, so long answers weigh no more."
    )
    spoken = methods.at(WEIGHTS, sweep="spoken")
    if spoken is None:
        return f"{head} Spoken answers have not been measured yet."
    return (
        f"{head} In spoken answers {percent(spoken.base(WRONG_HINT).interval)} are right after a wrong hint without steering and "
        f"{percent(spoken.value(WRONG_HINT))} with it; scoring them by words that they contain misses paraphrases, for all models alike."
    )


def _cost(methods: Methods, weights: Measured) -> str:
    on_test = weights.kl("test")
    others = [
        side.kl("test")
        for label in methods.labels
        if label != WEIGHTS and label not in methods.prompts and (side := methods.in_favour(label)) is not None
    ]
    between = f"; that of the others is between {min(others):.3f} and {max(others):.3f}" if others else ""
    passages = len(weights.figure(KL, "test").values)
    return (
        f"**Is the cost the right one?** Strengths are found on neutral text; on the {passages} passages that they were not found on the "
        f"weights' KL is {on_test:.3f}{between}. A KL on neutral text in one request says little of what happens to conversations, and "
        "another cost may order the methods otherwise. Its interval is not part of the comparison, which takes the strengths as given."
    )
