"""Pairs as rows of token ids, and the order and the batches that they are read in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from wsmerge.errors import PairsError, Problems
from wsmerge.steering.chat import answer_ids, prompt_ids
from wsmerge.steering.generation import padded
from wsmerge.steering.pairs import Pair
from wsmerge.steering.training.config import Pole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Batch", "Example", "Order", "collate", "encode", "hold_out"]


@dataclass(frozen=True, slots=True)
class Example:
    """One row as token ids."""

    prompt: list[int]
    answer: list[int]


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows padded to one length.

    Attributes:
        input_ids, attention_mask, position_ids: int64 `[rows, length]`.
        answer_mask: bool `[rows, width]`, where an answer's tokens are among the last `width` positions.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    answer_mask: torch.Tensor


class Order:
    """Row numbers for ever, each row once an epoch in an order that the seed fixes.

    Args:
        count: number of rows.
        seed: of the order.
    """

    def __init__(self, count: int, seed: int) -> None:
        self._count = count
        self._generator = torch.Generator().manual_seed(seed)
        self._left: list[int] = []

    def take(self, count: int) -> list[int]:
        """Return the next `count` row numbers."""
        while len(self._left) < count:
            self._left += torch.randperm(self._count, generator=self._generator).tolist()
        taken, self._left = self._left[:count], self._left[count:]
        return taken

    def state(self) -> dict[str, Any]:
        """Return where it stands."""
        return {"generator": self._generator.get_state(), "left": list(self._left)}

    def load(self, state: dict[str, Any]) -> None:
        """Go back to where it stood."""
        self._generator.set_state(state["generator"])
        self._left = list(state["left"])


def encode(
    pairs: Sequence[Pair], pole: Pole, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None = None
) -> list[Example]:
    """Tokenise the prompts and the answers of one pole, in the tokenizer's chat template.

    Raises:
        PairsError: rows of more than `max_length` tokens; all of them are named.
    """
    problems = Problems()
    rows = []
    for pair in pairs:
        answer = pair.plus if pole == "plus" else pair.minus
        row = Example(prompt_ids(tokenizer, pair.prompt), answer_ids(tokenizer, pair.prompt, answer))
        length = len(row.prompt) + len(row.answer)
        if max_length is not None and length > max_length:
            problems.add(f"{pair.id}: {length} tokens with its {pole} answer")
        rows.append(row)
    problems.raise_if_any(
        PairsError, f"rows of more than max_length = {max_length} tokens", hint="raise max_length, or drop these rows"
    )
    return rows


def hold_out(pairs: Sequence[Pair], share: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Split rows into those to train on and a share, at least one, to validate on; both keep the rows' order.

    Raises:
        PairsError: nothing would be left to train on.
    """
    count = max(1, round(share * len(pairs)))
    if count >= len(pairs):
        raise PairsError(f"{len(pairs)} rows are too few to hold out a share of {share:g}")
    chosen = set(torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))[:count].tolist())
    kept = [pair for number, pair in enumerate(pairs) if number not in chosen]
    return kept, [pair for number, pair in enumerate(pairs) if number in chosen]


def collate(rows: Sequence[Example], padding: int, device: torch.device, *, left: bool = True) -> Batch:
    """Pad rows to one length: on the left, so that the answers end together and few logits are needed, or on the right."""
    input_ids, attention_mask = padded([row.prompt + row.answer for row in rows], padding, left=left)
    answer_mask = torch.zeros_like(attention_mask, dtype=torch.bool)
    for number, row in enumerate(rows):
        begin = attention_mask.shape[1] - len(row.answer) if left else len(row.prompt)
        answer_mask[number, begin : begin + len(row.answer)] = True
    answer_mask = answer_mask[:, int(answer_mask.any(dim=0).int().argmax()) :]
    position_ids = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
    return Batch(*(tensor.to(device) for tensor in (input_ids, attention_mask, position_ids, answer_mask)))
