"""Answers of a steered model to prompts, at several strengths."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wsmerge.api.references import WeightLike, opened
from wsmerge.engine.locate import locate_model
from wsmerge.errors import UsageError
from wsmerge.registry import Registry, open_registry

__all__ = ["AnswerOptions", "Answers", "answers"]


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """How answers are made; always the most probable token.

    Attributes:
        max_new_tokens: where an answer is cut.
        system: a system message; None for the model's own, if any.
        batch_size: prompts read at once.
        template_args: arguments of the model's chat template, such as `{"enable_thinking": False}`.
        dtype: what the model computes in; `auto` is bfloat16 on a GPU and float32 elsewhere.
        device: as torch names it; `auto` is an accelerator if there is one.
    """

    max_new_tokens: int = 256
    system: str | None = None
    batch_size: int = 8
    template_args: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.batch_size < 1:
            raise UsageError("max_new_tokens and batch_size are at least 1", where="AnswerOptions")


@dataclass(frozen=True, slots=True)
class Answers:
    """What a model answers at one strength.

    Attributes:
        times: what every coefficient was multiplied by.
        texts: an answer a prompt.
        finished: for each whether the model ended its turn; if not, the answer was cut at `max_new_tokens`.
    """

    times: float
    texts: tuple[str, ...]
    finished: tuple[bool, ...]


def answers(
    base: str,
    weights: Mapping[str, WeightLike],
    prompts: Sequence[str],
    *,
    times: Sequence[float] = (1.0,),
    options: AnswerOptions | None = None,
    store: Registry | None = None,
) -> Iterator[Answers]:
    """Answer prompts by theta + t * sum_i k_i(layer, tensor) * w_i for each t; the model is loaded once.

        for found in wsmerge.answers("HuggingFaceTB/SmolLM2-135M-Instruct", {"sycophancy": 1.0}, prompts, times=(-1, 0, 1)):
            print(found.times, found.texts)

    Args:
        base: the model: a checkpoint folder, or a Hub id.
        weights: reference of each direction, and its coefficient k, or k by layer.
        prompts: the user's messages.
        times: what every coefficient is multiplied by, one after the other.
        options: how answers are made.
        store: where references are looked up.

    Raises:
        CheckpointError: the model cannot be loaded, or its tokenizer has no chat template.
        BaseMismatchError: a direction that does not fit the model.
        RecipeError: a coefficient that does not fit its direction.
        UsageError: no prompts, no such dtype or device.
    """
    from wsmerge.steering.baselines import Subject, WeightSteering  # noqa: PLC0415 - needs torch
    from wsmerge.steering.evaluation import answers_to  # noqa: PLC0415 - as above
    from wsmerge.steering.held import Steering  # noqa: PLC0415 - as above
    from wsmerge.steering.loading import load_model, load_tokenizer  # noqa: PLC0415 - as above

    if not prompts:
        raise UsageError("no prompt to answer", hint="give at least one")
    if not all(map(math.isfinite, times)):
        raise UsageError(f"a strength is not finite: {', '.join(f'{k:g}' for k in times)}", where="times")
    options = options or AnswerOptions()
    folder = locate_model(base)
    with opened(weights, store or open_registry()) as found:
        model = load_model(folder, dtype=options.dtype, device=options.device)
        tokenizer = load_tokenizer(folder, options.template_args)
        with Steering(model, found) as steering:
            method = WeightSteering("weights", steering, weights)
            for strength in times:
                with method.apply(Subject(model, tokenizer, options.system), strength):
                    made = answers_to(
                        model,
                        tokenizer,
                        prompts,
                        max_new_tokens=options.max_new_tokens,
                        batch_size=options.batch_size,
                        system=options.system,
                    )
                yield Answers(
                    strength, tuple(answer.text for answer in made), tuple(answer.finished for answer in made)
                )
