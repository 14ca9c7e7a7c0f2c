"""Scorers: each measures one model in one and the same way, on the validation items or on the test items."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol, cast

import numpy as np

from wsmerge.errors import Problems, UsageError, WsmergeError
from wsmerge.steering.baselines.method import Subject
from wsmerge.steering.evaluation import score_choices, text_losses
from wsmerge.steering.named import NOTHING, Allowed
from wsmerge.steering.pairs import Pair, load_pairs
from wsmerge.steering.sweep.answers import AnswerScorer, check_score
from wsmerge.steering.sweep.config import KL, Controls
from wsmerge.steering.sweep.divergence import DivergenceScorer, load_neutral
from wsmerge.steering.sweep.hints import load_hints
from wsmerge.steering.sweep.items import Split, Splits, load_passages, load_prompts, load_splits
from wsmerge.steering.sweep.journal import Figures, Notes
from wsmerge.steering.sweep.measuring import Answers, Measure, Role
from wsmerge.steering.sweep.samples import Samples
from wsmerge.steering.sweep.tasks import TaskScorer

__all__ = ["Scorer", "load_scorers", "measure"]


class Scorer(Protocol):
    """Measures a subject."""

    def score(self, subject: Subject, split: Split, batch_size: int) -> Mapping[str, Samples]:
        """Its figures on one split, by what is added to the measure's name: `""` for the main one."""


@dataclass(frozen=True, slots=True)
class ChoiceScorer:
    """Choices between two answers, by mean log-probability per token."""

    role: Role
    items: Splits[Pair]
    value: Literal["rate", "margin"]

    def score(self, subject: Subject, split: Split, batch_size: int) -> Mapping[str, Samples]:
        """The share of plus answers preferred; or the margin in nats per token, with the share as `rate`."""
        scores = score_choices(
            subject.model, subject.tokenizer, self.items[split], batch_size=batch_size, system=subject.system
        )
        rate = Samples.of(self.role, scores.margins > scores.threshold, clusters=scores.clusters)
        if self.value == "margin":
            return {"": Samples.of(self.role, scores.margins, "mean", scores.clusters), "rate": rate}
        return {"": rate}


@dataclass(frozen=True, slots=True)
class PassageScorer:
    """Perplexity of plain texts; no system message is given."""

    items: Splits[str]

    def score(self, subject: Subject, split: Split, batch_size: int) -> Mapping[str, Samples]:
        """The perplexity."""
        losses = text_losses(subject.model, subject.tokenizer, self.items[split], batch_size=max(1, batch_size // 4))
        return {"": Samples("perplexity", "perplexity", losses.nats, losses.tokens.astype(np.float64))}


def load_scorers(
    measures: Mapping[str, Measure], folder: Path, allowed: Allowed = NOTHING, controls: Controls | None = None
) -> dict[str, Scorer]:
    """Scorers for `measures`, by name, and for the distance that methods are compared at; files are relative to `folder`.

    Raises:
        UsageError: files that cannot be read, or have bad rows; functions that are not there or not allowed; a judge's
            key that is not set or not allowed; those of all measures at once.
    """
    problems = Problems()
    found: dict[str, Scorer] = {}
    for name, settings in measures.items():
        try:
            found[name] = _scorer(settings, folder, allowed)
        except WsmergeError as error:
            problems.add(f"measures.{name}: {error}")
    if controls is not None:
        try:
            found[KL] = DivergenceScorer(load_neutral(folder / controls.text if controls.text else None))
        except WsmergeError as error:
            problems.add(f"controls.text: {error}")
    problems.raise_if_any(UsageError, "measures that cannot be taken")
    return found


def measure(
    scorers: Mapping[str, Scorer],
    subject: Subject,
    split: Split,
    batch_size: int,
    notes: Callable[[str], Notes] = lambda _: Notes(),
) -> Figures:
    """All figures of one subject on one split, by name.

    Args:
        scorers: what is measured, by name.
        subject: the model.
        split: which items.
        batch_size: items at once.
        notes: of each measure; what they have is not measured again, and what is measured is noted.
    """
    figures: Figures = {}
    for number, (name, scorer) in enumerate(scorers.items(), start=1):
        known = notes(name)
        taken = known.figures
        if taken is None:
            noting = replace(scorer, notes=known) if isinstance(scorer, AnswerScorer) else scorer
            taken = dict(noting.score(subject, split, batch_size))
            if number < len(scorers):  # the last one finishes the point
                known.keep_figures(taken)
        figures |= {f"{name} {figure}".strip(): samples for figure, samples in taken.items()}
    return figures


def _scorer(settings: Measure, folder: Path, allowed: Allowed) -> Scorer:
    if settings.choice is not None:
        claim = settings.choice.claim

        def pairs(file: str) -> list[Pair]:
            return [pair for pair in load_pairs(folder / file) if claim in (None, pair.claim)]

        return ChoiceScorer(settings.role, load_splits(settings.choice, pairs), settings.choice.value)
    if settings.hints is not None:
        return load_hints(settings.hints, folder)
    if settings.perplexity is not None:
        return PassageScorer(load_splits(settings.perplexity, lambda file: load_passages(folder / file)))
    if settings.task is not None:
        if settings.task.include is not None:  # a task's YAML may call functions of the files beside it
            allowed.check_code(settings.task.include, "task.include")
        return TaskScorer(settings.role, settings.task, folder)
    answers = cast("Answers", settings.answers)  # the schema gives exactly one of the five
    check_score(answers.score, allowed)
    return AnswerScorer(settings.role, load_splits(answers, lambda file: load_prompts(folder / file)), answers, allowed)
