"""What a step lowers: the loss of one pole, or that of one adapter under both signs.

    pole     -log p(answer)
    signed   the mean, over +c with the plus answers and -c with the minus answers, of
             -log p(answer) + kl_weight * KL(base || adapted)

Both are means over the tokens of the answers, in nats. The divergence is taken at the same tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import torch
from peft import PeftModel
from peft.helpers import rescale_adapter_scale

from wsmerge.steering.generation import masks_padding
from wsmerge.steering.training.data import Batch, Example, collate
from wsmerge.steering.training.models import Trainee

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Objective", "Side"]

_VALIDATION_ROWS: Final = 8


@dataclass(frozen=True, slots=True)
class Side:
    """Answers that are learnt, and the sign of the adapter that learns them; None where there is no other side.

    Attributes:
        train: the rows to train on.
        validation: those that are held out.
        sign: 1 or -1.
    """

    train: Sequence[Example]
    validation: Sequence[Example] = ()
    sign: int | None = None


class Objective:
    """The loss over one side, or the mean of that over two.

    Args:
        trainee: what is trained.
        sides: their rows agree in number and order.
        padding: id to pad with.
        kl_weight: of the divergence from the base; needs an adapter.
    """

    def __init__(self, trainee: Trainee, sides: Sequence[Side], padding: int, *, kl_weight: float = 0.0) -> None:
        self._trainee = trainee
        self._sides = sides
        self._padding = padding
        self._kl_weight = kl_weight
        base = trainee.model.get_base_model() if isinstance(trainee.model, PeftModel) else trainee.model
        # On the left few logits are needed; on the right padding harms no model that reads from left to right.
        self._left = masks_padding(cast("PreTrainedModel", base))
        self._keeps = "logits_to_keep" in inspect.signature(base.forward).parameters

    @property
    def has_validation(self) -> bool:
        """Whether rows are held out."""
        return bool(self._sides[0].validation)

    def add_gradients(self, numbers: Sequence[int], parts: int) -> float:
        """Add the gradients of the loss over the rows `numbers`, read in `parts` parts; return the loss."""
        total = 0.0
        for side in self._sides:
            rows = [side.train[number] for number in numbers]
            for part, share in _parts(rows, -(-len(rows) // parts)):
                weight = share / len(self._sides)
                with self._signed(side):  # the backward pass may compute activations again
                    loss = self._loss(part)
                    (loss if weight == 1 else weight * loss).backward()  # type: ignore[no-untyped-call]  # torch ships no type for it
                total += weight * float(loss.detach())
        return total

    def validate(self) -> float:
        """Return the loss over the rows that are held out."""
        self._trainee.model.eval()
        total = 0.0
        with torch.no_grad():
            for side in self._sides:
                rows = sorted(side.validation, key=lambda row: len(row.prompt) + len(row.answer))
                with self._signed(side):
                    for part, share in _parts(rows, _VALIDATION_ROWS):
                        total += share / len(self._sides) * float(self._loss(part))
        self._trainee.model.train()
        return total

    def _signed(self, side: Side) -> AbstractContextManager[Any]:
        if side.sign is None:
            return nullcontext()
        scaled: AbstractContextManager[Any] = rescale_adapter_scale(self._trainee.model, side.sign)
        return scaled

    def _loss(self, rows: Sequence[Example]) -> torch.Tensor:
        """Return the loss over rows: a float32 scalar."""
        batch = collate(rows, self._padding, self._trainee.device, left=self._left)
        base = self._base_logits(batch) if self._kl_weight else None
        logits = self._logits(batch)
        targets = batch.input_ids[:, -batch.answer_mask.shape[1] :][batch.answer_mask]
        loss = torch.nn.functional.cross_entropy(logits, targets)
        return loss if base is None else loss + self._kl_weight * _divergence(base, logits)

    def _base_logits(self, batch: Batch) -> torch.Tensor:
        model = cast("PeftModel", self._trainee.model)
        with torch.no_grad(), model.disable_adapter():
            return self._logits(batch)

    def _logits(self, batch: Batch) -> torch.Tensor:
        """Return the logits of the answers' tokens: float32 `[tokens, vocabulary]`."""
        kept = batch.answer_mask.shape[1] + 1  # position i predicts token i + 1
        with self._trainee.precision():
            logits = self._trainee.model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                **({"position_ids": batch.position_ids} if self._left else {}),
                **({"logits_to_keep": kept} if self._keeps else {}),
                use_cache=False,
            ).logits[:, -kept:-1]
        answers: torch.Tensor = logits[batch.answer_mask].float()
        return answers


def _divergence(base: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Return the mean of KL(base || adapted) over tokens, in nats."""
    log_base, log_adapted = base.log_softmax(dim=-1), logits.log_softmax(dim=-1)
    return (log_base.exp() * (log_base - log_adapted)).sum(dim=-1).mean()


def _parts(rows: Sequence[Example], size: int) -> Iterator[tuple[Sequence[Example], float]]:
    """Yield rows by `size`, and the share of the answers' tokens that each part has."""
    tokens = sum(len(row.answer) for row in rows)
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        yield part, sum(len(row.answer) for row in part) / tokens
