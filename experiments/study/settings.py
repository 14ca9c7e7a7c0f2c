"""What the study trains and measures, and how much of it; `PLAN.md` has the reasons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["FULL", "PRIMARY_COST", "PROMPT_SEED", "QUICK", "Amounts"]

PRIMARY_COST: Final = 0.04
"""The KL divergence, in nats per token of neutral text, at which methods are compared."""

PROMPT_SEED: Final = 0
"""A system prompt and a bundled direction have no seed: the sweeps of this one have them."""


@dataclass(frozen=True, slots=True)
class Amounts:
    """How much is trained and measured.

    Attributes:
        seeds: each of them chooses rows, their order and LoRA's first factors.
        rows: rows that each seed draws from the training rows.
        steps: optimiser steps of a pole.
        items: facts of each split at most; None for all.
        passages: plain texts that the perplexity is taken of.
        costs: the KL divergences that weights are measured at, with both signs.
        other_costs: those that the other methods are measured at, towards less sycophancy.
        layers: layers among which activation steering chooses one.
        activation_pairs: rows that activations are taken of at most; None for all that a seed is trained on.
        spoken: facts that are answered in text.
        runs: fine-tunes of each task and kind that monitoring watches.
        run_rows: rows of each.
        run_steps: optimiser steps of each.
        refusal_seeds: those of `seeds` that refusals are measured of.
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    rows: int = 256
    steps: int = 32
    items: int | None = None
    passages: int = 4
    costs: tuple[float, ...] = (0.01, PRIMARY_COST, 0.16)
    other_costs: tuple[float, ...] = (PRIMARY_COST,)
    layers: tuple[int, ...] = (10, 14, 18, 22)
    activation_pairs: int | None = None
    spoken: int = 24
    runs: int = 6
    run_rows: int = 128
    run_steps: int = 32
    refusal_seeds: tuple[int, ...] = (0, 1, 2)


FULL: Final = Amounts()
QUICK: Final = Amounts(
    seeds=(0, 1),
    rows=24,
    steps=2,
    items=8,
    passages=1,
    costs=(PRIMARY_COST,),
    other_costs=(PRIMARY_COST,),
    layers=(10, 20),
    activation_pairs=8,
    spoken=4,
    runs=2,
    run_rows=16,
    run_steps=2,
    refusal_seeds=(0,),
)
"""Enough to see that every part runs; its figures mean nothing."""
