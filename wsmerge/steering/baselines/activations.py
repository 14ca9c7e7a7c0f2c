"""What a model's decoder layers give while it reads answers: the raw material of activation steering.

    a_l = mean over pairs of (mean over the plus answer's tokens of h_l - mean over the minus answer's tokens of h_l)

where h_l is the output of decoder layer l, counted from 0 and before the final norm. Prompts are read and not averaged; the
end of the turn counts as a token of the answer, as in training. The method is that of the difference of mean response
activations (Persona Vectors, arXiv 2507.21509, section 2), without its filter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from wsmerge.errors import UsageError
from wsmerge.steering.baselines.method import Subject
from wsmerge.steering.chat import answer_ids, pad_id, prompt_ids
from wsmerge.steering.generation import padded
from wsmerge.steering.pairs import Pair

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["decoder_layers", "hidden_of", "response_difference"]


def decoder_layers(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The decoder layers of `model`, in order.

    Raises:
        UsageError: the model has no one list of as many modules as its configuration says it has layers.
    """
    count = int(getattr(model.config.get_text_config(), "num_hidden_layers", 0))
    lists = [
        (name.count("."), module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == count
    ]
    if not count or not lists:
        raise UsageError(
            "its decoder layers are not found", where=type(model).__name__, hint="leave activation steering out"
        )
    return list(min(lists, key=lambda found: found[0])[1])


def hidden_of(output: Any) -> torch.Tensor:  # noqa: ANN401 - a layer gives a tensor or a tuple that begins with one
    """The hidden states `[rows, length, width]` in what a decoder layer returned."""
    hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def response_difference(subject: Subject, pairs: Sequence[Pair], *, batch_size: int = 16) -> torch.Tensor:
    """The difference a_l of every layer: float32 `[layers, width]`, on the CPU; sums are in float64.

    Raises:
        UsageError: there are no pairs, or none has two different answers.
    """
    pairs = [pair for pair in pairs if pair.plus != pair.minus]
    if not pairs:
        raise UsageError("no pair with two different answers to take activations of")
    plus, minus = (
        _mean_activations(
            subject, [(pair.prompt, answer) for pair, answer in zip(pairs, answers, strict=True)], batch_size
        )
        for answers in ([pair.plus for pair in pairs], [pair.minus for pair in pairs])
    )
    return (plus - minus).float()


def _mean_activations(subject: Subject, turns: Sequence[tuple[str, str]], batch_size: int) -> torch.Tensor:
    """Mean over `turns` of the mean over an answer's tokens: float64 `[layers, width]`."""
    encoded = [
        (prompt_ids(subject.tokenizer, prompt, system=subject.system),
         answer_ids(subject.tokenizer, prompt, answer, system=subject.system))
        for prompt, answer in turns
    ]  # fmt: skip
    encoded.sort(key=lambda ids: len(ids[0]) + len(ids[1]))
    total: torch.Tensor | float = 0.0
    for start in range(0, len(encoded), batch_size):
        total = total + _batch_sum(subject, encoded[start : start + batch_size])
    return torch.as_tensor(total) / len(turns)


def _batch_sum(subject: Subject, rows: Sequence[tuple[list[int], list[int]]]) -> torch.Tensor:
    ids, mask = padded([prompt + answer for prompt, answer in rows], pad_id(subject.tokenizer), left=False)
    of_answer = torch.zeros(ids.shape, dtype=torch.float64)
    for number, (prompt, answer) in enumerate(rows):
        of_answer[number, len(prompt) : len(prompt) + len(answer)] = 1 / len(answer)
    model = subject.model
    with torch.inference_mode(), _captured(model) as hidden:
        model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False, logits_to_keep=1)
        # Padding is finite garbage, and its weight is 0.
        return torch.stack([torch.einsum("rlw,rl->w", states.cpu().double(), of_answer) for states in hidden])


@contextmanager
def _captured(model: PreTrainedModel) -> Iterator[list[torch.Tensor]]:
    """What each layer gives in the passes within the block, in order."""
    found: list[torch.Tensor] = []
    handles = [
        layer.register_forward_hook(lambda _layer, _inputs, output: found.append(hidden_of(output)))
        for layer in decoder_layers(model)
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
