"""Measures of a behaviour on a loaded model: choices between two answers, perplexity of plain text, greedy answers.

Nothing here knows of directions: a caller steers the model, measures it, and undoes the steering. Everything is
batched with padding and masks, and gives an item the same figures in any company, up to rounding in the last bits.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from transformers import DynamicCache

from wsmerge.errors import NonFiniteError, UsageError
from wsmerge.steering.bootstrap import (
    Interval,
    clusters_of,
    correlation_over_clusters,
    difference_interval,
    mean_interval,
)
from wsmerge.steering.chat import answer_ids, pad_id, prompt_ids
from wsmerge.steering.generation import Answer, Generator, padded, padding_reach
from wsmerge.steering.pairs import Pair

if TYPE_CHECKING:
    import numpy.typing as npt
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "ChoiceScores",
    "Interval",
    "Perplexity",
    "TextLosses",
    "answers_to",
    "generate",
    "perplexity",
    "score_choices",
    "text_losses",
]

_MAX_LENGTH = 1024


@dataclass(frozen=True, slots=True)
class ChoiceScores:
    """How much a model prefers the plus answers of some pairs to the minus answers.

    Attributes:
        ids: the pairs' ids, in the order of `margins`.
        margins: float64 `[items]`; mean log-probability per token of the plus answer (the end of the turn counts as a
            token) less that of the minus answer, in nats.
        claims: for each pair whether its claim is true, or None where it makes none.
        threshold: a margin above it counts as a choice of the plus answer.
        clusters: int64 `[items]`, the cluster of each pair; None where no pair has one.
    """

    ids: tuple[str, ...]
    margins: npt.NDArray[np.float64]
    claims: tuple[Literal["true", "false"] | None, ...]
    threshold: float = 0.0
    clusters: npt.NDArray[np.int64] | None = None

    @property
    def rate(self) -> Interval:
        """The share of pairs whose plus answer is preferred."""
        return mean_interval(self.margins > self.threshold, self.clusters)

    @property
    def mean_margin(self) -> Interval:
        """The mean margin, in nats per token."""
        return mean_interval(self.margins, self.clusters)

    def on(self, claim: Literal["true", "false"]) -> ChoiceScores:
        """Return the scores of the pairs with true claims or of those with false ones.

        For sycophancy `on("false").rate` is agreement with false claims. It means little alone: a model that says yes
        to everything and one that flatters differ in `on("true").rate`.

        Raises:
            UsageError: there are none.
        """
        keep = [position for position, found in enumerate(self.claims) if found == claim]
        if not keep:
            raise UsageError(f"no pair has a claim that is {claim}")
        ids = tuple(self.ids[position] for position in keep)
        clusters = None if self.clusters is None else self.clusters[keep]
        return ChoiceScores(ids, self.margins[keep], (claim,) * len(keep), self.threshold, clusters)

    @property
    def false_minus_true(self) -> Interval:
        """The rate on false claims less the rate on true claims: -1 for perfect judgement, 0 for none.

        A model that knows some facts is right of them on both sides, which makes the rates go apart together: where the two
        groups share clusters the interval is as much wider. Where they go up and down together it takes them for
        independent, and is too wide.

        Raises:
            UsageError: one of the groups is empty.
        """
        false, true = self.on("false"), self.on("true")
        chosen = false.margins > false.threshold, true.margins > true.threshold
        alike = correlation_over_clusters(*chosen, (false.clusters, true.clusters))
        return difference_interval(false.rate, true.rate, correlation=min(0.0, alike))


@dataclass(frozen=True, slots=True)
class TextLosses:
    """What several texts cost a model.

    Attributes:
        nats: float64 `[texts]`; negative log-probability of each text's tokens, given those before them.
        tokens: int64 `[texts]`; how many tokens of each were predicted, 0 of a text without two tokens.
    """

    nats: npt.NDArray[np.float64]
    tokens: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Perplexity:
    """Perplexity over the tokens of several texts.

    Attributes:
        nats_per_token: mean negative log-probability of a token given those before it in its text.
        tokens: number of predicted tokens; the first of a text is not predicted.
    """

    nats_per_token: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(nats_per_token)."""
        return math.exp(self.nats_per_token)


def score_choices(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Pair],
    *,
    batch_size: int = 16,
    threshold: float = 0.0,
    system: str | None = None,
) -> ChoiceScores:
    """Score the two answers of every pair, given its prompt in the model's chat template.

    A prompt is run once where the model's cache allows it: its keys and values serve both answers. Where padding amid a
    row would change what it reads (a sliding window shorter than the batch is long, recurrent and convolutional states),
    each answer is read after its whole prompt, without a cache.

    Args:
        model: a causal language model, in any dtype; log-probabilities are taken in float32 and averaged in float64.
        tokenizer: the model's, with a chat template.
        items: the pairs, each with two different answers.
        batch_size: prompts a batch.
        threshold: see `ChoiceScores`.
        system: a system message before every prompt; None for none, or the template's default.

    Raises:
        UsageError: there are no pairs, or one has the same two answers.
        NonFiniteError: a margin is not finite.
    """
    same = tuple(pair.id for pair in items if pair.plus == pair.minus)
    if same or not items:
        raise UsageError("nothing to choose between", details=same, hint="score pairs with two different answers")
    choices = [_encode_choice(tokenizer, pair, system) for pair in items]
    margins = np.empty(len(items), dtype=np.float64)
    with torch.inference_mode():
        for rows in _batches([len(choice.prompt) for choice in choices], batch_size):
            margins[rows] = _margins(model, [choices[row] for row in rows], pad_id(tokenizer))
    for pair, margin in zip(items, margins, strict=True):
        if not math.isfinite(margin):
            raise NonFiniteError(f"the margin is {margin}", where=pair.id, hint="use a smaller coefficient")
    clusters = clusters_of([pair.cluster for pair in items])
    ids = tuple(pair.id for pair in items)
    return ChoiceScores(ids, margins, tuple(pair.claim for pair in items), threshold, clusters)


def perplexity(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, batch_size: int = 4
) -> Perplexity:
    """Return the perplexity of plain texts, without chat template, every token weighing the same.

    A text longer than 1024 tokens is cut into pieces of that length, each read on its own.

    Raises:
        UsageError: no text has two tokens.
        NonFiniteError: the perplexity is not finite.
    """
    losses = text_losses(model, tokenizer, texts, batch_size=batch_size)
    tokens = int(losses.tokens.sum())
    return Perplexity(float(losses.nats.sum()) / tokens, tokens)


def text_losses(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, batch_size: int = 4
) -> TextLosses:
    """Return what each of several texts costs; see `perplexity`.

    Raises:
        UsageError: no text has two tokens.
        NonFiniteError: a text's log-probability is not finite.
    """
    encoded: list[list[int]] = [tokenizer(text)["input_ids"] for text in texts]
    cut = [
        (text, ids[start : start + _MAX_LENGTH])
        for text, ids in enumerate(encoded)
        for start in range(0, len(ids), _MAX_LENGTH)
    ]
    pieces = [(text, piece) for text, piece in cut if len(piece) > 1]
    if not pieces:
        raise UsageError("no text to take the perplexity of")
    losses = TextLosses(np.zeros(len(texts)), np.zeros(len(texts), dtype=np.int64))
    with torch.inference_mode():
        for rows in _batches([len(piece) for _, piece in pieces], batch_size):
            ids, mask = padded([pieces[row][1] for row in rows], pad_id(tokenizer), left=False)
            ids, mask = ids.to(model.device), mask.to(model.device)
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            nats = -(_log_probs(logits[:, :-1], ids[:, 1:]).double() * mask[:, 1:]).sum(dim=1)
            owners = [pieces[row][0] for row in rows]
            np.add.at(losses.nats, owners, nats.cpu().numpy())
            np.add.at(losses.tokens, owners, mask[:, 1:].sum(dim=1).cpu().numpy())
    if not np.isfinite(losses.nats).all():
        total = -float(losses.nats.sum())
        raise NonFiniteError(f"the log-probability of the texts is {total}", hint="use a smaller coefficient")
    return losses


def answers_to(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int = 16,
    system: str | None = None,
) -> list[Answer]:
    """Answer each prompt greedily, in the model's chat template; a prompt's answer is the same in any company."""
    encoded = [prompt_ids(tokenizer, prompt, system=system) for prompt in prompts]
    generator = Generator(model, tokenizer)
    found: dict[int, Answer] = {}
    for rows in _batches([len(ids) for ids in encoded], batch_size):
        for group in generator.groups([encoded[row] for row in rows]):
            numbers = [rows[place] for place in group]
            made = generator.generate([encoded[number] for number in numbers], max_new_tokens)
            found |= dict(zip(numbers, made, strict=True))
    return [found[number] for number in range(len(prompts))]


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int = 16,
    system: str | None = None,
) -> list[str]:
    """Return the texts of `answers_to`."""
    answers = answers_to(model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size, system=system)
    return [answer.text for answer in answers]


@dataclass(frozen=True, slots=True)
class _Choice:
    """A pair as token ids."""

    prompt: list[int]
    plus: list[int]
    minus: list[int]


def _encode_choice(tokenizer: PreTrainedTokenizerBase, pair: Pair, system: str | None) -> _Choice:
    return _Choice(
        prompt_ids(tokenizer, pair.prompt, system=system),
        answer_ids(tokenizer, pair.prompt, pair.plus, system=system),
        answer_ids(tokenizer, pair.prompt, pair.minus, system=system),
    )


class _Reading:
    """A batch of sequences that a model reads piece by piece, each piece on top of the cache of those before it."""

    def __init__(self, model: PreTrainedModel, padding: int) -> None:
        self._model = model
        self._padding = padding
        self._cache = DynamicCache(config=model.config)
        self._mask = torch.zeros(1, 0, dtype=torch.int64, device=model.device)

    def read(self, rows: Sequence[Sequence[int]], *, left: bool, last: int = 0) -> torch.Tensor:
        """Read one more piece of each sequence, padded on the left or on the right.

        Returns:
            The logits at the piece's `last` positions, or at all if 0: `[rows, positions, vocabulary]`.
        """
        ids, mask = padded(rows, self._padding, left=left)
        self._mask = torch.cat([self._mask, mask.to(self._mask)], dim=1)
        logits: torch.Tensor = self._model(
            input_ids=ids.to(self._mask.device),
            attention_mask=self._mask,
            position_ids=(self._mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :],
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=last,
        ).logits
        return logits[:, -last:]  # which a model need not know of

    def repeat(self, times: int) -> None:
        """Let every sequence go on as `times` sequences, next to each other."""
        self._mask = self._mask.repeat_interleave(times, dim=0)
        self._cache.batch_repeat_interleave(times)


def _margins(model: PreTrainedModel, choices: Sequence[_Choice], padding: int) -> npt.NDArray[np.float64]:
    """Return the margins of one batch."""
    longest = max(len(choice.prompt) for choice in choices) + max(
        len(answer) for choice in choices for answer in (choice.plus, choice.minus)
    )
    logits = _cached_logits if longest <= padding_reach(model) else _plain_logits
    answers = [answer for choice in choices for answer in (choice.plus, choice.minus)]
    targets, mask = padded(answers, padding, left=False)
    found = logits(model, choices, padding)
    targets, mask = targets.to(found.device), mask.to(found.device)
    sums = (_log_probs(found, targets).double() * mask).sum(dim=1)
    means: npt.NDArray[np.float64] = (sums / mask.sum(dim=1)).cpu().numpy()
    return means[0::2] - means[1::2]


def _cached_logits(model: PreTrainedModel, choices: Sequence[_Choice], padding: int) -> torch.Tensor:
    """Return what predicts the answers' tokens; what the prompts share and each prompt are read once."""
    prompts = [choice.prompt for choice in choices]
    shared = _shared(prompts)
    reading = _Reading(model, padding)
    if shared:
        reading.read([prompts[0][:shared]], left=False, last=1)
    reading.repeat(len(prompts))
    first = reading.read([prompt[shared:] for prompt in prompts], left=True, last=1)
    reading.repeat(2)
    later = reading.read([answer for choice in choices for answer in (choice.plus, choice.minus)], left=False)
    # The prompt's last position predicts an answer's first token, and an answer's last token predicts nothing.
    return torch.cat([first.repeat_interleave(2, dim=0), later[:, :-1]], dim=1)


def _plain_logits(model: PreTrainedModel, choices: Sequence[_Choice], padding: int) -> torch.Tensor:
    """Return what predicts the answers' tokens; every answer is read after its prompt, and padding after both."""
    rows = [(choice.prompt, answer) for choice in choices for answer in (choice.plus, choice.minus)]
    ids, mask = padded([prompt + answer for prompt, answer in rows], padding, left=False)
    kept = ids.shape[1] - min(len(prompt) for prompt, _ in rows) + 1
    known = inspect.signature(model.forward).parameters
    logits = model(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        use_cache=False,
        **({"logits_to_keep": kept} if "logits_to_keep" in known else {}),
    ).logits[:, -kept:]
    width = max(len(answer) for _, answer in rows)
    starts = torch.tensor([len(prompt) - 1 - (ids.shape[1] - kept) for prompt, _ in rows])
    places = (starts[:, None] + torch.arange(width)).clamp(max=kept - 1).to(logits.device)
    found: torch.Tensor = logits[torch.arange(len(rows), device=logits.device)[:, None], places]
    return found


def _shared(rows: Sequence[Sequence[int]]) -> int:
    """Return how many ids all rows begin with (a default system message, say), short of any row's last one."""
    shortest = min(map(len, rows))
    alike = (position for position in range(shortest - 1) if len({row[position] for row in rows}) > 1)
    return next(alike, shortest - 1)


def _log_probs(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the log-probabilities of the targets: `[rows, length, vocabulary]`, `[rows, length]` to float32."""
    losses = torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")
    return -losses


def _batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Yield batches of row numbers, rows of like length together so that little is padding."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for start in range(0, len(order), size):
        yield order[start : start + size]
