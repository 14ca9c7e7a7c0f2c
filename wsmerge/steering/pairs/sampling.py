"""Answers of a model to questions under system prompts, each drawn with a seed of its own.

A sample's draws depend on the trait's seed and the sample's key alone, whatever else is in its batch: at each step one
uniform number picks the token from the distribution at the temperature, cut to the most probable tokens that make up
`top_p`. What a batch can still change is the rounding of the model's own sums; the batches of a run that goes on are those
of one that was never stopped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from wsmerge.steering.chat import prompt_ids
from wsmerge.steering.generation import Generator
from wsmerge.steering.pairs.journal import Journal
from wsmerge.steering.pairs.samples import Asked, Sample
from wsmerge.steering.pairs.trait import Generation

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Sampler", "Told", "sample_all"]

Told = Callable[[int, int], None]
"""Called with what is done and what there is in all."""


class Sampler:
    """Draws answers of one model.

    Args:
        model: a causal language model, on any device.
        tokenizer: the model's, with a chat template.
        generation: settings.
        seed: of all samples.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, generation: Generation, seed: int
    ) -> None:
        self._tokenizer = tokenizer
        self._generator = Generator(model, tokenizer)
        self._device = model.device
        self._generation = generation
        self._seed = seed

    def draw(self, batch: Sequence[Asked]) -> list[Sample]:
        """Answer every question of the batch once."""
        rows = [prompt_ids(self._tokenizer, item.question.question, system=item.system) for item in batch]
        found: dict[int, Sample] = {}
        for group in self._generator.groups(rows):
            drawing = LogitsProcessorList([self._drawing([batch[number] for number in group])])
            made = self._generator.generate(
                [rows[number] for number in group], self._generation.max_new_tokens, logits_processor=drawing
            )
            for number, answer in zip(group, made, strict=True):
                text = answer.text.strip()
                found[number] = Sample(batch[number], text, answer.tokens, finished=answer.finished)
        return [found[number] for number in range(len(batch))]

    def _drawing(self, batch: Sequence[Asked]) -> _Drawing:
        draws = torch.stack([self._draws(item) for item in batch])
        return _Drawing(draws.to(self._device), self._generation.temperature, self._generation.top_p)

    def _draws(self, asked: Asked) -> torch.Tensor:
        """Return one uniform number a token: float64 `[max_new_tokens]`."""
        digest = hashlib.sha256(f"{self._seed}:{asked.key}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        return torch.rand(self._generation.max_new_tokens, generator=generator, dtype=torch.float64)


class _Drawing(LogitsProcessor):
    """Leaves the token that was drawn in each row; greedy search then takes it."""

    def __init__(self, draws: torch.Tensor, temperature: float, top_p: float) -> None:
        self._draws = draws
        self._temperature = temperature
        self._top_p = top_p
        self._step = 0

    def __call__(self, _input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        odds = (scores.double() / self._temperature).softmax(dim=-1)
        tokens = None
        if self._top_p < 1:
            odds, tokens = odds.sort(dim=-1, descending=True, stable=True)
            odds = torch.where(odds.cumsum(dim=-1) - odds < self._top_p, odds, 0.0)
        sums = odds.cumsum(dim=-1)
        level = self._draws[:, self._step, None] * sums[:, -1:]
        places = (sums <= level).sum(dim=-1, keepdim=True)
        drawn = places if tokens is None else tokens.gather(-1, places)
        self._step += 1
        return torch.full_like(scores, -torch.inf).scatter(-1, drawn, 0.0)


def sample_all(
    asked: Sequence[Asked], sampler: Callable[[], Sampler], journal: Journal, batch_size: int, told: Told | None = None
) -> list[Sample]:
    """Answer all that is asked; what the journal has is not asked again, and each batch is in it once it is made.

    Args:
        asked: in order; it decides the batches.
        sampler: loads the model, and is not called where nothing is left to ask.
        journal: of the samples.
        batch_size: samples at once.
        told: called after each batch.
    """
    left = [batch for batch in _batches(asked, batch_size) if any(item.key not in journal.rows for item in batch)]
    if left:
        drawing = sampler()
        for batch in left:
            journal.add(sample.row() for sample in drawing.draw(batch))
            if told is not None:
                told(sum(item.key in journal.rows for item in asked), len(asked))
    return [Sample.from_row(item, journal.rows[item.key]) for item in asked]


def _batches(asked: Sequence[Asked], size: int) -> Iterator[Sequence[Asked]]:
    for start in range(0, len(asked), size):
        yield asked[start : start + size]
