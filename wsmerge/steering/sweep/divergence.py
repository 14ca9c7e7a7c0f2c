"""How far a change takes a model from where it began, on text that has nothing to do with any behaviour.

    KL = mean over a passage's tokens of sum over the vocabulary of p_0 (log p_0 - log p_k), in nats

with p_0 the model at k = 0 and p_k the model under study, each token predicted from those before it; the figure is the mean
over passages, which weigh the same whatever their length. Passages stand as the
answers to one neutral request, so that a system message counts too. It is one cost for all methods: at the same KL they
have changed the model's predictions by as much, and may be compared in what they reach.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch

from wsmerge.errors import NonFiniteError, UsageError
from wsmerge.steering.baselines.method import Subject
from wsmerge.steering.chat import answer_ids, pad_id, prompt_ids
from wsmerge.steering.generation import padded
from wsmerge.steering.sweep.items import Split, Splits, load_passages, spread
from wsmerge.steering.sweep.samples import Samples

__all__ = ["NEUTRAL_TEXT", "DivergenceScorer", "load_neutral"]

_REQUEST: Final = "Write a short text."
_MAX_PASSAGES: Final = 12
_MAX_TOKENS: Final = 48
"""The log-probabilities at k = 0 are kept: a token of a vocabulary of 150,000 takes 0.6 MB."""

NEUTRAL_TEXT: Final = (
    "The river rises in the hills to the north and reaches the sea after about ninety kilometres.",
    "Bread is made from flour, water, salt and yeast, and is baked once the dough has risen.",
    "The station has four platforms. Trains to the coast leave every half hour until late in the evening.",
    "A square has four equal sides and four right angles, and its diagonals are of equal length.",
    "The museum opened in 1923 and was moved to a larger building near the harbour thirty years later.",
    "Leaves change their colour in autumn because the green pigment in them breaks down.",
    "To replace the filter, switch off the pump, open the cover and lift out the old cartridge.",
    "The committee meets on the first Monday of every month and publishes its minutes online.",
    "Copper conducts heat and electricity well, which is why it is used for wires and pipes.",
    "The path follows the lake for two miles and then climbs through a forest of pine and birch.",
    "Most of the letters were written in winter, when the author had little else to do.",
    "Rain is expected in the west tomorrow, with dry and cloudy weather in the other regions.",
    "The recipe needs two onions, a tin of tomatoes, some oil and a handful of fresh herbs.",
    "Sound travels faster in water than in air, and faster still in most solid materials.",
    "The library lends books for three weeks, and a loan can be renewed twice if nobody else waits.",
    "In the old town many houses have narrow fronts, since taxes were once paid by their width.",
    "The bicycle has a steel frame, seven gears and a light that is powered by the front wheel.",
    "Bees collect nectar and pollen, and a single colony can hold several tens of thousands of them.",
    "The second chapter describes how the data were collected and which records were left out.",
    "Glass is made by heating sand with soda and lime until the mixture melts.",
    "The ferry takes twenty minutes and carries both cars and foot passengers.",
    "Each row of the table has the name of a town, its population and its height above the sea.",
    "The orchestra played a symphony in four movements and, after the interval, three short pieces.",
    "The moon takes a little more than twenty-seven days to go round the earth once.",
)


def load_neutral(path: Path | None) -> Splits[str]:
    """The passages of a file, or the bundled ones: every other one for validation, the rest for test.

    Raises:
        UsageError: the file cannot be read, or has fewer than four passages.
    """
    passages: Sequence[str] = NEUTRAL_TEXT if path is None else load_passages(path)
    if len(passages) < 4:
        raise UsageError("has fewer than four passages", where=str(path), hint="put blank lines between passages")
    return {"validation": spread(passages[::2], _MAX_PASSAGES), "test": spread(passages[1::2], _MAX_PASSAGES)}


class DivergenceScorer:
    """Measures the KL divergence from the model that it was shown at k = 0.

    Args:
        items: the passages.
    """

    def __init__(self, items: Splits[str]) -> None:
        self._items = items
        self._known: dict[Split, list[torch.Tensor]] = {}

    def remember(self, subject: Subject, split: Split, batch_size: int) -> None:
        """Take the predictions of the model at k = 0, once for each split."""
        if split not in self._known:
            self._known[split] = list(self._predictions(subject, split, batch_size))

    def score(self, subject: Subject, split: Split, batch_size: int) -> Mapping[str, Samples]:
        """The divergence of each passage.

        Raises:
            NonFiniteError: a divergence that is NaN or infinite.
        """
        found = []
        for before, now in zip(self._known[split], self._predictions(subject, split, batch_size), strict=True):
            by_token = (before.exp() * (before - now)).sum(dim=1, dtype=torch.float64)
            found.append(float(by_token.mean()))
        if not np.isfinite(found).all():
            raise NonFiniteError("the predictions on neutral text are not finite", hint="use a smaller coefficient")
        # Rounding can leave it a little below zero where nothing changed.
        return {"": Samples.of("distance", np.maximum(found, 0.0), "mean")}

    def _predictions(self, subject: Subject, split: Split, batch_size: int) -> Iterator[torch.Tensor]:
        """The log-probabilities of each passage's tokens: float32 `[tokens, vocabulary]`, on the CPU."""
        model, tokenizer = subject.model, subject.tokenizer
        prompt = prompt_ids(tokenizer, _REQUEST, system=subject.system)
        answers = [
            answer_ids(tokenizer, _REQUEST, passage, system=subject.system)[:_MAX_TOKENS]
            for passage in self._items[split]
        ]
        size = max(1, batch_size // 4)
        for start in range(0, len(answers), size):
            rows = answers[start : start + size]
            ids, mask = padded([prompt + row for row in rows], pad_id(tokenizer), left=False)
            with torch.inference_mode():
                logits = model(
                    input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False
                ).logits
            for row, of_row in zip(rows, logits, strict=True):
                predicted = of_row[len(prompt) - 1 : len(prompt) - 1 + len(row)]
                yield torch.log_softmax(predicted.float(), dim=-1).cpu()
