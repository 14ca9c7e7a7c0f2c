"""A bias on the first token of an answer: the control for a direction that does no more than make a word likely at the start.

    logits += k * v    where the first token of an answer is predicted, and nowhere else
    v = mean over pairs of (onehot(first token of the plus answer) - onehot(first token of the minus answer))

These positions are known by the ids before them: those that the chat template puts between the user's turn and the answer.
Where a model reads a prompt in pieces, on top of a cache, the ids of earlier pieces are remembered with the cache.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from wsmerge.errors import UsageError
from wsmerge.steering.baselines.method import Subject
from wsmerge.steering.chat import answer_ids, opening_ids
from wsmerge.steering.pairs import Pair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["FirstTokenBias"]


class FirstTokenBias:
    """Logits that are added, times a strength k, where the first token of an answer is predicted.

    Args:
        label: how tables and plots name it.
        bias: what is added at k = 1, by token id; nothing to those that are not named.
        opening: the ids that stand before every answer.
    """

    def __init__(self, label: str, bias: Mapping[int, float], opening: Sequence[int]) -> None:
        self.label = label
        self.bias = dict(bias)
        self._opening = list(opening)

    @classmethod
    def from_pairs(cls, label: str, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]) -> FirstTokenBias:
        """The bias v of the answers of some pairs; those with the same two answers are left out.

        Raises:
            UsageError: plus answers begin as minus answers do, or the chat template puts nothing before an answer.
        """
        pairs = [pair for pair in pairs if pair.plus != pair.minus]
        counts: Counter[int] = Counter()
        for pair in pairs:
            counts[answer_ids(tokenizer, pair.prompt, pair.plus)[0]] += 1
            counts[answer_ids(tokenizer, pair.prompt, pair.minus)[0]] -= 1
        bias = {token: count / len(pairs) for token, count in sorted(counts.items()) if count != 0}
        if not bias:
            raise UsageError(
                "plus and minus answers begin with the same tokens, each as often",
                where=label,
                hint="leave the bias on the first token out",
            )
        return cls(label, bias, opening_ids(tokenizer))

    @contextmanager
    def apply(self, subject: Subject, strength: float) -> Iterator[Subject]:
        """The subject with k = `strength`; at 0 the model is left alone."""
        if strength == 0 or not self.bias:
            yield subject
            return
        added = {token: strength * value for token, value in self.bias.items()}
        handle = subject.model.register_forward_hook(_Adding(added, self._opening), with_kwargs=True)
        try:
            yield subject
        finally:
            handle.remove()


class _Adding:
    """The hook on the whole model. It remembers the last ids of every row that a cache has read."""

    def __init__(self, added: Mapping[int, float], opening: Sequence[int]) -> None:
        self._tokens = torch.tensor(list(added))
        self._values = torch.tensor(list(added.values()), dtype=torch.float32)
        self._opening = list(opening)
        self._read: WeakKeyDictionary[Any, list[list[int]]] = WeakKeyDictionary()

    def __call__(
        self,
        model: torch.nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,  # noqa: ANN401 - what transformers' models give
    ) -> Any:  # noqa: ANN401 - as above
        ids = kwargs.get("input_ids", args[0] if args else None)
        logits = getattr(output, "logits", None)
        if ids is None or logits is None:
            raise UsageError(
                "is given no token ids, or gives no logits, so that the first token of an answer is not found",
                where=type(model).__name__,
                hint="leave the bias on the first token out",
            )
        found = self._places(ids, kwargs, output)
        kept = _kept_positions(ids.shape[1], logits.shape[1], kwargs.get("logits_to_keep"))
        places = [(row, kept[position]) for row, position in found if position in kept]
        if places:
            self._check_width(logits.shape[-1])
            rows, positions = (torch.tensor(one, device=logits.device)[:, None] for one in zip(*places, strict=True))
            tokens, values = self._tokens.to(logits.device)[None], self._values.to(logits)
            # Of a tensor of their own: what a model gives may be needed elsewhere as it is.
            output.logits = logits.index_put((rows, positions, tokens), values.expand(len(places), -1), accumulate=True)
        return output

    def _places(self, ids: torch.Tensor, kwargs: Mapping[str, Any], output: Any) -> list[tuple[int, int]]:  # noqa: ANN401 - as above
        """Rows and positions of `ids` at which an opening ends, padding aside."""
        cache: Any = next((one for name in _CACHES if (one := kwargs.get(name)) is not None), None)
        read = self._before(cache, len(ids))
        mask = kwargs.get("attention_mask")
        real = [[1] * ids.shape[1]] * len(ids)
        if isinstance(mask, torch.Tensor) and mask.ndim == 2:
            real = mask[:, -ids.shape[1] :].tolist()
        found, size = [], len(self._opening)
        for row, (tokens, of_row) in enumerate(zip(ids.tolist(), real, strict=True)):
            seen = read[row]
            for position, token in enumerate(tokens):
                if of_row[position]:
                    seen.append(token)
                    if token == self._opening[-1] and seen[-size:] == self._opening:
                        found.append((row, position))
            read[row] = seen[-size:]
        if cache is None:  # the model may have made one
            cache = next((one for name in _CACHES if (one := getattr(output, name, None)) is not None), None)
        if cache is not None and type(cache).__weakrefoffset__:
            self._read[cache] = read
        return found

    def _before(self, cache: Any, rows: int) -> list[list[int]]:  # noqa: ANN401 - any of transformers' caches
        """The last ids that each row has read; a cache whose rows were repeated has each of them as often, side by side."""
        known = self._read.get(cache, []) if cache is not None and type(cache).__weakrefoffset__ else []
        if not known:
            return [[] for _ in range(rows)]
        if rows % len(known):
            raise UsageError(
                f"a cache of {len(known)} rows goes on with {rows}", hint="leave the bias on the first token out"
            )
        times = rows // len(known)
        return [list(one) for one in known for _ in range(times)]

    def _check_width(self, width: int) -> None:
        if int(self._tokens.max()) >= width:
            raise UsageError(
                f"token {int(self._tokens.max())} begins an answer, and the model's vocabulary has {width}",
                hint="use the tokenizer of the model",
            )


def _kept_positions(length: int, kept: int, wanted: Any) -> dict[int, int]:  # noqa: ANN401 - as transformers takes it
    """Where the logits of each position are: the last ones where not all are kept, or those that are named."""
    named: Sequence[int] = range(length - kept, length)
    if isinstance(wanted, torch.Tensor) and wanted.numel() == kept:
        named = wanted.tolist()
    return {position: place for place, position in enumerate(named)}


_CACHES = ("past_key_values", "cache_params")
