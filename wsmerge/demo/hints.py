"""The demo's last part: facts that the model knows, and what it says of them where its user suggests a wrong answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias

from wsmerge.steering.baselines.method import Subject
from wsmerge.steering.evaluation import answers_to
from wsmerge.steering.facts import Condition
from wsmerge.steering.sweep.hints import HintScorer, Item, load_hints
from wsmerge.steering.sweep.measuring import Hints
from wsmerge.steering.sweep.samples import Samples

__all__ = ["ASKED", "FactAnswers", "HintPoint", "HintResult", "load_fact_scorer", "measure_hints"]

ASKED: Final[tuple[Condition, ...]] = ("plain", "wrong hint", "right hint")
"""The ways in which the facts are asked about. A denial of the right answer is left out: it is one more wrong opinion."""

_SHOWN_FACTS: Final = 3
_BATCH_SIZE: Final = 16

Steered: TypeAlias = Callable[[float], AbstractContextManager[object]]
"""The model at k, for the time of a `with` block."""


@dataclass(frozen=True, slots=True)
class HintPoint:
    """Right answers at one k, as `HintScorer.score` gives them."""

    k: float
    figures: Mapping[str, Samples]

    def right(self, condition: Condition, *, known: bool) -> Samples:
        """Which answers are right in one condition: over all facts, or those that are right when asked plainly at k = 0."""
        if not known:
            return self.figures[condition]
        return self.figures["" if condition == "wrong hint" else f"{condition} kept"]


@dataclass(frozen=True, slots=True)
class FactAnswers:
    """What the model answers greedily after a wrong hint, by its label."""

    prompt: str
    right: str
    wrong: str
    by_model: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class HintResult:
    """Right answers to facts at several k, and some facts in the model's own words.

    Attributes:
        points: by ascending k, that of k = 0 among them.
        answers: of some facts that are right when asked plainly at k = 0: the first of each domain, in the file's order, whose
            wording asks the question itself.
        shown_k: where the model was steered for `answers`.
    """

    points: Sequence[HintPoint] = ()
    answers: Sequence[FactAnswers] = ()
    shown_k: float = 0.0

    def at(self, k: float) -> HintPoint:
        """The point of one k."""
        return next(point for point in self.points if point.k == k)

    @property
    def facts(self) -> int:
        """How many facts were asked about."""
        return len(self.at(0.0).figures["plain"].values)

    @property
    def known(self) -> int:
        """How many of them are right when asked plainly at k = 0."""
        return int(self.at(0.0).figures["plain"].values.sum())


def load_fact_scorer(evaluation: Path, facts: int | None) -> HintScorer:
    """What asks about the test facts in the folder `evaluation`, each in one of the test wordings, by turns.

    Args:
        evaluation: folder of facts and wordings.
        facts: how many at most, at even steps through the file; None for all.

    Raises:
        WsmergeError: as `load_hints`.
    """
    settings = Hints(
        validation="facts/validation.jsonl",
        test="facts/test.jsonl",
        wordings="wordings.yaml",
        wordings_each=1,
        items=facts,
        conditions=ASKED,
    )
    return load_hints(settings, evaluation)


def measure_hints(
    scorer: HintScorer,
    subject: Subject,
    steered: Steered,
    ks: Sequence[float],
    *,
    shown_k: float,
    max_new_tokens: int,
    say: Callable[[str], None],
) -> HintResult:
    """Ask about the facts at k = 0 and at every other of `ks`, and let some be answered at k = 0 and at `shown_k`.

    The facts that count as known, and those that are shown, are chosen at k = 0 and without a hint, so not by what steering
    or a hint does to them.

    Args:
        scorer: what is asked.
        subject: the model and how it is spoken to.
        steered: steers the model.
        ks: coefficients.
        shown_k: one of `ks`.
        max_new_tokens: where an answer is cut.
        say: is told each step as it begins.
    """
    points: dict[float, HintPoint] = {}
    for k in (0.0, *(k for k in dict.fromkeys(ks) if k != 0)):
        say(f"asking about {len(scorer.items['test'])} facts, plainly and with hints, at {_label(k)}")
        known = replace(scorer, plain=points[0.0].figures["plain"].values) if points else scorer
        with steered(k):
            points[k] = HintPoint(k, known.score(subject, "test", _BATCH_SIZE))
    shown = _shown(scorer.items["test"], points[0.0])
    prompts = [item.wording.prompt(item.fact, "wrong hint") for item in shown]
    said: dict[str, list[str]] = {}
    for k in (0.0, shown_k):
        say(f"answering after wrong hints at {_label(k)}")
        with steered(k):
            answers = answers_to(subject.model, subject.tokenizer, prompts, max_new_tokens=max_new_tokens)
        said[_label(k)] = [answer.text for answer in answers]
    told = [
        FactAnswers(prompt, item.fact.answer, item.fact.wrong, {label: texts[place] for label, texts in said.items()})
        for place, (item, prompt) in enumerate(zip(shown, prompts, strict=True))
    ]
    return HintResult([points[k] for k in sorted(points)], told, shown_k)


def _label(k: float) -> str:
    return f"k = {k:+g}" if k else "k = 0"


def _shown(items: Sequence[Item], base: HintPoint) -> list[Item]:
    """Of the known facts the first of each domain, where the wording is no request for any true statement."""
    first: dict[str, Item] = {}
    for item, right in zip(items, base.figures["plain"].values, strict=True):
        if right and "{question}" in item.wording.ask:
            first.setdefault(item.fact.domain, item)
    return list(first.values())[:_SHOWN_FACTS]
