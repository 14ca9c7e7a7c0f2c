"""The scores of samples: a judge is asked about those that have none in the journal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from wsmerge.steering.judging.asking import Exchange, ask_all
from wsmerge.steering.judging.client import Judge
from wsmerge.steering.pairs.journal import Journal
from wsmerge.steering.pairs.samples import Sample

__all__ = ["judge_all"]


def judge_all(
    samples: Sequence[Sample],
    judge: Judge,
    journal: Journal,
    workers: int,
    told: Callable[[int, int], None] | None = None,
) -> dict[str, float | None]:
    """Score all samples; what the journal has is not scored again, and each score is in it once it is there.

    Args:
        samples: to score.
        judge: called from threads.
        journal: of the scores.
        workers: samples in work at once.
        told: called after each score.

    Returns:
        The scores by key; None where the judge gave none that can be read.

    Raises:
        JudgeError: the judge failed. What is in work is waited for, and what it gives is kept.
    """

    def scored() -> int:
        return sum(sample.asked.key in journal.rows for sample in samples)

    def keep(place: int, score: float | None) -> None:
        journal.add([{"key": left[place].key, "score": score}])
        if told is not None:
            told(scored(), len(samples))

    def hint() -> str:
        return f"every sample and {scored()} of {len(samples)} scores are kept: run the same command again to go on"

    asked = [Exchange(sample.asked.key, sample.asked.question.question, sample.text) for sample in samples]
    left = [exchange for exchange in asked if exchange.key not in journal.rows]
    ask_all(left, judge, workers, keep, hint)
    return {exchange.key: journal.rows[exchange.key]["score"] for exchange in asked}
