"""Generated answers and what they are worth: by a rule, by a function, by a judge.

A judge is a function of all prompts and answers of one point, so that it can ask for several at once:

    def judge(prompts: Sequence[str], answers: Sequence[str]) -> Sequence[float]: ...
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wsmerge.errors import NonFiniteError, UsageError
from wsmerge.steering.baselines.method import Subject
from wsmerge.steering.evaluation import generate
from wsmerge.steering.named import function_named
from wsmerge.steering.sweep.items import Prompt, Split, Splits
from wsmerge.steering.sweep.measuring import Answers, Role, Score
from wsmerge.steering.sweep.samples import Samples

__all__ = ["AnswerScorer", "repeated_share", "score_answers"]


@dataclass(frozen=True, slots=True)
class AnswerScorer:
    """Greedy answers to prompts, scored one by one."""

    role: Role
    items: Splits[Prompt]
    settings: Answers

    def score(self, subject: Subject, split: Split, batch_size: int) -> Mapping[str, Samples]:
        """The mean score, and `valid`: the share of valid answers, where that is asked for."""
        items = self.items[split]
        answers = generate(
            subject.model,
            subject.tokenizer,
            [item.prompt for item in items],
            max_new_tokens=self.settings.max_new_tokens,
            batch_size=batch_size,
            system=subject.system,
        )
        scores = score_answers(self.settings.score, items, answers)
        if self.settings.valid is None:
            return {"": self._samples(scores)}
        valid = [re.search(self.settings.valid, answer) is not None for answer in answers]
        kept = [score if counts else 0.0 for score, counts in zip(scores, valid, strict=True)]
        return {"": self._samples(kept), "valid": Samples.of("valid", valid)}

    def _samples(self, scores: Sequence[float]) -> Samples:
        return Samples.of(self.role, scores)


def score_answers(score: Score, items: Sequence[Prompt], answers: Sequence[str]) -> list[float]:
    """What each answer is worth.

    Raises:
        UsageError: a function that is not there, or gives not one number an answer; items without `answers`.
        NonFiniteError: a score that is NaN or infinite.
    """
    if score.judge is not None:
        given = list(function_named(score.judge)([item.prompt for item in items], answers))
        if len(given) != len(answers):
            raise UsageError(f"gave {len(given)} scores for {len(answers)} answers", where=score.judge)
        return [_number(value, score.judge) for value in given]
    if score.function is not None:
        function = function_named(score.function)
        pairs = zip(items, answers, strict=True)
        return [_number(function(item.prompt, answer), score.function) for item, answer in pairs]
    return [float(_rule(score, item, answer)) for item, answer in zip(items, answers, strict=True)]


def repeated_share(text: str) -> float:
    """The share of word triples that stood in the text before: 0 for none, near 1 for a phrase over and over."""
    words = text.lower().split()
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(triples)) / len(triples) if triples else 0.0


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
