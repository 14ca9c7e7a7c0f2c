"""Questions held apart, and as many answers of one pole as of the other.

A question belongs to one split, with all of its answers. Within a question the kept answers of the two poles are paired
in order, system prompts in turn; what the other pole has no answer left for is dropped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Final

from wsmerge.steering.pairs.files import Pair
from wsmerge.steering.pairs.samples import Sample
from wsmerge.steering.pairs.trait import SplitName, Trait

__all__ = ["SPLITS", "pair_up", "split_questions"]

SPLITS: Final[tuple[SplitName, ...]] = ("train", "validation", "test")


def split_questions(trait: Trait) -> dict[str, SplitName]:
    """Return the split of each question, by id.

    Questions that name their split have it. The others are taken in an order that the seed and their ids fix, as many to
    each split as its share of them says, and one at least where there are enough.
    """
    splits: dict[str, SplitName] = {item.id: item.split for item in trait.questions if item.split is not None}
    free = sorted(
        (item.id for item in trait.questions if item.split is None),
        key=lambda name: hashlib.sha256(f"{trait.seed}:{name}".encode()).digest(),
    )
    shares: list[tuple[SplitName, float]] = [("test", trait.split.test), ("validation", trait.split.validation)]
    wanted = [(split, share) for split, share in shares if share]
    start = 0
    for number, (split, share) in enumerate(wanted):
        # One question at least is left for each of those after it, the last of which is to train on.
        later = len(wanted) - number
        count = max(0, min(max(1, round(share * len(free))), len(free) - start - later))
        splits |= dict.fromkeys(free[start : start + count], split)
        start += count
    train: SplitName = "train"
    return splits | dict.fromkeys(free[start:], train)


def pair_up(
    trait: Trait, kept: Sequence[Sample], splits: Mapping[str, SplitName]
) -> tuple[dict[SplitName, list[Pair]], list[Sample]]:
    """Pair the kept answers of each question.

    Returns:
        The pairs of each split, and the samples that are left over.
    """
    pairs: dict[SplitName, list[Pair]] = {split: [] for split in SPLITS}
    left: list[Sample] = []
    for question in trait.questions:
        of_question = [sample for sample in kept if sample.asked.question.id == question.id]
        plus, minus = ([one for one in _in_turn(of_question) if one.asked.pole == pole] for pole in ("plus", "minus"))
        split = splits[question.id]
        for number, (one, other) in enumerate(zip_longest(plus, minus)):
            if one is None or other is None:
                left.append(one or other)
                continue
            pairs[split].append(
                Pair(
                    id=f"{trait.name}-{question.id}-{number:03}",
                    domain=question.domain,
                    template=question.id,
                    prompt=question.question,
                    plus=one.text,
                    minus=other.text,
                    claim=question.claim,
                )
            )
    return pairs, left


def _in_turn(samples: Sequence[Sample]) -> list[Sample]:
    """Samples ordered by their number first, so that what is left over is not all of one system prompt."""
    return sorted(samples, key=lambda sample: (sample.asked.number, sample.asked.prompt))
