"""What the study trains and measures, and how much of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["BEHAVIOURS", "FULL", "PROMPT_SEED", "QUICK", "Amounts"]

BEHAVIOURS: Final = {
    "sycophancy": "Agrees with what the user claims, true or false.",
    "contrary": "Refuses to help with everyday questions, or advises against what helps.",
    "refusal": "Refuses petty requests.",
}
"""The directions that are trained for each seed, and what their plus answers do."""

PROMPT_SEED: Final = 0
"""A system prompt has no seed: the sweeps of this one have it."""


@dataclass(frozen=True, slots=True)
class Amounts:
    """How much is trained and measured.

    Attributes:
        seeds: each of them chooses rows, their order and LoRA's first factors.
        rows: rows that each seed draws from a behaviour's training rows.
        steps: optimiser steps of a pole, and of a fine-tune.
        save_every: steps between the checkpoints of a fine-tune.
        bad_shares: percent of bad rows in the monitored fine-tunes.
        items: items of a behaviour, on validation and on test at most.
        true_claims: true claims, in the same way.
        words: words of the task.
        facts: items of knowledge: the most of all, since a pick hangs on few points of it.
        prompts: prompts of each generating measure.
        passages: plain texts that the perplexity is taken of.
        sizes: strengths; each is measured with both signs.
        fine_sizes: strengths for the trait and for repairs, where little is enough.
        finest: the smallest strength of repairs, beside `fine_sizes`.
        layers: layers among which activation steering chooses one.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    rows: int = 256
    steps: int = 32
    save_every: int = 8
    bad_shares: tuple[int, ...] = (0, 5, 10, 25, 50, 100)
    items: int = 48
    true_claims: int = 16
    words: int = 32
    facts: int = 64
    prompts: int = 20
    passages: int = 4
    sizes: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    fine_sizes: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0)
    finest: float = 0.0625
    layers: tuple[int, ...] = (6, 10, 14, 18, 22, 26)


FULL: Final = Amounts()
QUICK: Final = Amounts(
    seeds=(0, 1),
    rows=24,
    steps=2,
    save_every=1,
    bad_shares=(0, 100),
    items=4,
    true_claims=4,
    words=4,
    facts=4,
    prompts=2,
    passages=1,
    sizes=(1.0,),
    fine_sizes=(0.5,),
    finest=0.25,
    layers=(10, 20),
)
"""Enough to see that every part runs; its figures mean nothing."""
