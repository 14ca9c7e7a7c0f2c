"""Generated answers and what they are worth: by a rule, by a function, by a judge.

A judge that is named as `module:function` is a function of all prompts and answers of one point, so that it can ask for
several at once:

    def judge(prompts: Sequence[str], answers: Sequence[str]) -> Sequence[float]: ...    # 1 for fully

Any other is asked about one answer after another, several at once, and tells from 0 to 100 (`wsmerge.steering.judging`).
Answers and scores are noted as they come: when a judge fails, the same sweep goes on with what there is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from wsmerge.errors import JudgeError, NonFiniteError, UsageError
from wsmerge.steering.baselines.method import Subject
from wsmerge.steering.bootstrap import clusters_of
from wsmerge.steering.evaluation import answers_to
from wsmerge.steering.judging.asking import Exchange, ask_all
from wsmerge.steering.judging.client import check_key, make_judge, naming
from wsmerge.steering.named import NOTHING, Allowed, function_named
from wsmerge.steering.sweep.items import Prompt, Split, Splits
from wsmerge.steering.sweep.journal import Notes
from wsmerge.steering.sweep.measuring import Answers, AnswersJudge, Role, Score
from wsmerge.steering.sweep.samples import Samples

__all__ = ["AnswerScorer", "UnjudgedError", "check_score", "repeated_share", "score_answers"]

_KEPT: Final = "the answers of this point are kept: run the same command again to go on"


class UnjudgedError(JudgeError):
    """A judge that answers, and gives most answers of a point no score that can be read."""


@dataclass(frozen=True, slots=True)
class AnswerScorer:
    """Greedy answers to prompts, scored one by one.

    Attributes:
        role: what the score means to the pick.
        items: the prompts.
        settings: how they are answered and scored.
        allowed: what the score may use.
        notes: of the point that is measured; what it has is not made again.
    """

    role: Role
    items: Splits[Prompt]
    settings: Answers
    allowed: Allowed = NOTHING
    notes: Notes = field(default_factory=Notes)

    def score(self, subject: Subject, split: Split, batch_size: int) -> Mapping[str, Samples]:
        """The mean score, and the shares of answers that were cut, and where asked for that are valid or have a score.

        `cut`, those that reached `max_new_tokens`, costs nothing; `valid` and `judged`, those with a score, do.

        Raises:
            JudgeError: the judge or the function failed; answers and scores are noted.
            UnjudgedError: not more than half of the answers have a score.
            UsageError, NonFiniteError: as of `score_answers`.
        """
        items = self.items[split]
        answers, cut = self._answers(subject, items, batch_size)
        scores = score_answers(self.settings.score, items, answers, self.notes, self.allowed)
        clusters = clusters_of([item.cluster for item in items])
        figures = {"cut": Samples.of("behaviour", [place in cut for place in range(len(items))], clusters=clusters)}
        if self.settings.valid is not None:
            valid = [re.search(self.settings.valid, answer) is not None for answer in answers]
            scores = [score if counts else 0.0 for score, counts in zip(scores, valid, strict=True)]
            figures["valid"] = Samples.of("valid", valid, clusters=clusters)
        if isinstance(self.settings.score.judge, AnswersJudge):
            judged = [not math.isnan(score) for score in scores]
            _check_judged(self.settings.score.judge, judged)
            figures["judged"] = Samples.of("valid", judged, clusters=clusters)
        return {"": Samples.of(self.role, scores, clusters=clusters), **figures}

    def _answers(
        self, subject: Subject, items: Sequence[Prompt], batch_size: int
    ) -> tuple[Sequence[str], Sequence[int]]:
        """The answers' texts, and the numbers of those that were cut."""
        if self.notes.answers is not None:
            return self.notes.answers, self.notes.cut
        made = answers_to(
            subject.model,
            subject.tokenizer,
            [item.prompt for item in items],
            max_new_tokens=self.settings.max_new_tokens,
            batch_size=batch_size,
            system=subject.system,
        )
        answers = [answer.text for answer in made]
        cut = [place for place, answer in enumerate(made) if not answer.finished]
        if self.settings.score.judge is not None or self.settings.score.function is not None:
            self.notes.keep_answers(answers, cut)  # a rule needs nobody, and takes no time
        return answers, cut


def check_score(score: Score, allowed: Allowed) -> None:
    """Refuse a score that names what is not there or not allowed, before anything is generated.

    Raises:
        UsageError: no such function or none that is allowed, or the variable with a judge's key is not set or not
            allowed.
    """
    if isinstance(score.judge, AnswersJudge):
        check_key(score.judge, allowed)
        make_judge(score.judge, score.judge.behaviour or "", allowed)
    for name in (score.function, score.judge):
        if isinstance(name, str):
            function_named(name, allowed)


def score_answers(
    score: Score,
    items: Sequence[Prompt],
    answers: Sequence[str],
    notes: Notes | None = None,
    allowed: Allowed = NOTHING,
) -> list[float]:
    """What each answer is worth; NaN where an endpoint's reply has no score that can be read.

    Args:
        score: the rule, the function or the judge.
        items: the prompts.
        answers: one to each.
        notes: have the scores that a judge gave before, and get those that it gives.
        allowed: what the score may use.

    Raises:
        JudgeError: the function or the judge failed; it is named, and where it was asked about one answer the item too.
        UsageError: a function that is not there or not allowed, or gives not one number an answer; items without `answers`.
        NonFiniteError: a function's score that is NaN or infinite.
    """
    if isinstance(score.judge, AnswersJudge):
        return _judged(score.judge, items, answers, notes or Notes(), allowed)
    if score.judge is not None:
        judge = function_named(score.judge, allowed)
        with naming(score.judge, _KEPT):
            given = list(judge([item.prompt for item in items], answers))
        if len(given) != len(answers):
            raise UsageError(f"gave {len(given)} scores for {len(answers)} answers", where=score.judge)
        return [_number(value, score.judge) for value in given]
    if score.function is not None:
        function = function_named(score.function, allowed)
        return [_scored(score.function, function, item, answer) for item, answer in zip(items, answers, strict=True)]
    return [float(_rule(score, item, answer)) for item, answer in zip(items, answers, strict=True)]


def repeated_share(text: str) -> float:
    """The share of word triples that stood in the text before: 0 for none, near 1 for a phrase over and over."""
    words = text.lower().split()
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(triples)) / len(triples) if triples else 0.0


def _scored(name: str, function: Callable[..., object], item: Prompt, answer: str) -> float:
    with naming(f"{name}, item {item.id}", _KEPT):
        value = function(item.prompt, answer)
    return _number(value, name)


def _judged(
    judge: AnswersJudge, items: Sequence[Prompt], answers: Sequence[str], notes: Notes, allowed: Allowed
) -> list[float]:
    """A score from 0 to 1 for each answer, NaN where the judge gave none."""
    left = [place for place in range(len(items)) if place not in notes.scores]

    def keep(place: int, score: float | None) -> None:
        # Without a score in it a reply is asked for again, where the sweep stops before the point is finished.
        if score is not None:
            notes.keep_score(left[place], score)

    def hint() -> str:
        return (
            f"all answers and {len(notes.scores)} of {len(answers)} scores of this point are kept: "
            "run the same command again to go on"
        )

    exchanges = [Exchange(f"item {items[place].id}", items[place].prompt, answers[place]) for place in left]
    ask_all(exchanges, make_judge(judge, judge.behaviour or "", allowed), judge.workers, keep, hint)
    return [notes.scores.get(place, math.nan) / 100 for place in range(len(items))]


def _check_judged(judge: AnswersJudge, judged: Sequence[bool]) -> None:
    # Any two points then have an answer in common that was scored in both.
    if 2 * sum(judged) <= len(judged):
        raise UnjudgedError(
            f"gave {len(judged) - sum(judged)} of {len(judged)} answers no score that can be read",
            where=judge.base_url or judge.function,
            hint="the answers are kept: run the same command again, or begin anew with another prompt or another judge",
        )


def _rule(score: Score, item: Prompt, answer: str) -> bool:
    if score.regex is not None:
        return re.search(score.regex, answer) is not None
    if score.fluent is not None:
        return bool(re.search(r"\w", answer)) and repeated_share(answer) <= score.fluent
    wanted = item.answers if score.contains == "answers" else score.contains or ()
    if not wanted:
        raise UsageError("has no answers to look for", where=item.id, hint="add `answers`, or list them under contains")
    return any(text.lower() in answer.lower() for text in wanted)


def _number(value: object, where: str) -> float:
    if not isinstance(value, int | float):
        raise UsageError(f"gave {type(value).__name__}, not a number", where=where)
    if not math.isfinite(value):
        raise NonFiniteError(f"gave {value}", where=where)
    return float(value)
