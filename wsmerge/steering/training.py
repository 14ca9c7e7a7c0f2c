"""Training of the two poles of a direction: LoRA fine-tunes towards a behaviour and towards its opposite.

The method is contrastive weight steering (arXiv 2511.05408, section 3): both poles start at the same base, with the
same seed, data order and schedule, and differ in nothing but the answers. What both learn alike (the manner of the
data, the length of its answers) then cancels in `w = theta_plus - theta_minus`. As there: AdamW with weight decay
0.01, a short warm-up, linear decay, no dropout, and a loss on the assistant's answer only.

Both poles are trained in float32 and saved as plain PEFT adapters, whose factors make w exactly; nothing is merged.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, TypeAlias, cast

import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from wsmerge.errors import NonFiniteError, OutputError, Problems, UsageError
from wsmerge.steering.chat import answer_ids, pad_id, prompt_ids
from wsmerge.steering.pairs import Pair, load_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["LINEAR_MODULES", "Pole", "Step", "TrainConfig", "load_train_config", "train_pair", "train_pole"]

Pole: TypeAlias = Literal["plus", "minus"]

POLES: Final[tuple[Pole, Pole]] = ("plus", "minus")
LINEAR_MODULES: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class TrainConfig(BaseModel):
    """How the poles of one direction are trained; read from `train.yaml`.

    Attributes:
        name: the direction's name.
        behaviour: what the plus pole does and the minus pole does not, in a sentence.
        base: the model id that the adapters name as their base.
        train: the pair file to train on, relative to the configuration.
        validation: the pair file that settings and coefficients are chosen on.
        test: the pair file that nothing is chosen on.
        steps: optimiser steps of each pole.
        batch_size: rows a step.
        learning_rate: peak learning rate.
        warmup_steps: steps of linear warm-up; linear decay to zero follows.
        weight_decay: AdamW's decoupled weight decay.
        max_grad_norm: the gradient is clipped to this norm.
        rank: LoRA rank of each pole; the direction's rank is twice this.
        alpha: LoRA alpha; the factors' product is scaled by alpha / rank.
        target_modules: names of the linear modules that are adapted.
        seed: seeds the initial factors and the order of the rows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    behaviour: str
    base: str
    train: str = "train.jsonl"
    validation: str = "validation.jsonl"
    test: str = "test.jsonl"
    steps: PositiveInt
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    warmup_steps: Annotated[int, Field(ge=0)] = 5
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    max_grad_norm: PositiveFloat = 1.0
    rank: PositiveInt
    alpha: PositiveInt
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)] = LINEAR_MODULES
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """What a progress callback is told after an optimiser step.

    Attributes:
        pole: the pole in training.
        step: steps done, from 1.
        steps: steps in all.
        loss: mean negative log-probability per answer token of this step's rows, in nats, before the step.
        seconds_left: estimate for this pole.
    """

    pole: Pole
    step: int
    steps: int
    loss: float
    seconds_left: float


@dataclass(frozen=True, slots=True)
class _Example:
    """One row as token ids."""

    prompt: list[int]
    answer: list[int]


@dataclass(frozen=True, slots=True)
class _Batch:
    """Rows padded on the left, so that the answers end together.

    Attributes:
        input_ids, attention_mask, position_ids: int64 `[rows, length]`.
        answer_mask: bool `[rows, width]`, where an answer's tokens are among the last `width` positions.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    answer_mask: torch.Tensor


def load_train_config(path: Path) -> TrainConfig:
    """Read a `train.yaml`.

    Raises:
        UsageError: it cannot be read, is not YAML, or has unknown, missing or bad keys (all of them are named).
    """
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"cannot read the training configuration: {error}", where=str(path)) from error
    try:
        return TrainConfig.model_validate(fields)
    except ValidationError as error:
        problems = Problems()
        for problem in error.errors():
            problems.add(f"{'.'.join(map(str, problem['loc'])) or 'file'}: {problem['msg']}")
        raise UsageError("bad training configuration", where=str(path), details=problems.lines) from error


def train_pair(
    config_file: Path,
    base: Path,
    out_dir: Path,
    *,
    device: str = "cpu",
    progress: Callable[[Step], None] | None = None,
) -> dict[Pole, Path]:
    """Train both poles of a direction and save them as `out_dir/plus` and `out_dir/minus`.

    Args:
        config_file: a `train.yaml`, beside its pair files.
        base: checkpoint folder of the base, with its tokenizer and chat template.
        out_dir: folder for the two adapters; made if missing.
        device: where to train, as torch names it.
        progress: called after every optimiser step.

    Returns:
        The adapter folder of each pole.

    Raises:
        UsageError: the configuration is bad.
        PairsError: the pair file is bad.
        OutputError: an adapter of either pole is there already.
        NonFiniteError: a loss is not finite.
    """
    config = load_train_config(config_file)
    pairs = load_pairs(config_file.parent / config.train)
    folders: dict[Pole, Path] = {pole: out_dir / pole for pole in POLES}
    for folder in folders.values():
        _refuse_existing(folder)
    for pole, folder in folders.items():
        train_pole(config, pairs, pole, base, folder, device=device, progress=progress)
    return folders


def train_pole(
    config: TrainConfig,
    pairs: Sequence[Pair],
    pole: Pole,
    base: Path,
    folder: Path,
    *,
    device: str = "cpu",
    progress: Callable[[Step], None] | None = None,
) -> None:
    """Train one pole and save it as a plain PEFT adapter.

    The result is a function of the arguments on one machine with one number of threads; torch's own generators are as
    before afterwards.

    Raises:
        OutputError: `folder` holds an adapter already.
        NonFiniteError: a loss is not finite.
    """
    _refuse_existing(folder)
    tokenizer = AutoTokenizer.from_pretrained(base)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)  # the initial factors come from torch's global generator
        model = _adapted(config, base).to(device)
    _optimise(model, _encoded(pairs, pole, tokenizer), config, _Reporter(pole, config.steps, progress), tokenizer)
    _save(model, folder)


def _refuse_existing(folder: Path) -> None:
    if (folder / "adapter_config.json").exists():
        raise OutputError("an adapter is there already", where=str(folder), hint="choose another folder or delete it")


def _adapted(config: TrainConfig, base: Path) -> PeftModel:
    """Load the base in float32 and put fresh LoRA factors on it: A random, B zero."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=0.0,
        target_modules=list(config.target_modules),
        bias="none",
        task_type="CAUSAL_LM",
    )
    adapted = cast("PeftModel", get_peft_model(model, lora))
    # PEFT writes the local folder here, which means nothing to whoever loads the adapter elsewhere.
    lora.base_model_name_or_path = config.base
    # PEFT keeps a set, whose order in the saved file would change from run to run.
    lora.target_modules = sorted(config.target_modules)
    return adapted


def _encoded(pairs: Sequence[Pair], pole: Pole, tokenizer: PreTrainedTokenizerBase) -> list[_Example]:
    answers = [pair.plus if pole == "plus" else pair.minus for pair in pairs]
    return [
        _Example(prompt_ids(tokenizer, pair.prompt), answer_ids(tokenizer, pair.prompt, answer))
        for pair, answer in zip(pairs, answers, strict=True)
    ]


class _Reporter:
    """Tells the progress callback about each step, with an estimate of the time left."""

    def __init__(self, pole: Pole, steps: int, progress: Callable[[Step], None] | None) -> None:
        self._pole = pole
        self._steps = steps
        self._progress = progress
        self._start = time.monotonic()

    def __call__(self, step: int, loss: float) -> None:
        if not math.isfinite(loss):
            raise NonFiniteError(
                f"the loss of the {self._pole} pole is {loss} at step {step}", hint="lower the learning rate"
            )
        if self._progress is not None:
            left = (time.monotonic() - self._start) / step * (self._steps - step)
            self._progress(Step(self._pole, step, self._steps, loss, left))


def _optimise(
    model: PeftModel,
    examples: Sequence[_Example],
    config: TrainConfig,
    report: _Reporter,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Train the model's LoRA factors in place."""
    factors = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(factors, lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, _linear(config.warmup_steps, config.steps))
    order = _order(len(examples), config.seed)
    model.train()
    for step in range(1, config.steps + 1):
        rows = [examples[next(order)] for _ in range(config.batch_size)]
        loss = _loss(model, _collate(rows, pad_id(tokenizer), model.device))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(factors, config.max_grad_norm)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad(set_to_none=True)
        report(step, float(loss.detach()))


def _linear(warmup: int, steps: int) -> Callable[[int], float]:
    """Return the factor on the learning rate before step `done`: linear up over the warm-up, then linear down."""

    def factor(done: int) -> float:
        if done < warmup:
            return (done + 1) / (warmup + 1)
        return max(0.0, (steps - done) / max(1, steps - warmup))

    return factor


def _order(count: int, seed: int) -> Iterator[int]:
    """Yield row numbers for ever, each row once an epoch in an order that the seed fixes."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=generator).tolist()


def _collate(rows: Sequence[_Example], padding: int, device: torch.device) -> _Batch:
    length = max(len(row.prompt) + len(row.answer) for row in rows)
    width = max(len(row.answer) for row in rows)
    input_ids = torch.full((len(rows), length), padding)
    attention_mask = torch.zeros_like(input_ids)
    answer_mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for number, row in enumerate(rows):
        ids = row.prompt + row.answer
        input_ids[number, length - len(ids) :] = torch.tensor(ids)
        attention_mask[number, length - len(ids) :] = 1
        answer_mask[number, width - len(row.answer) :] = True
    position_ids = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
    return _Batch(*(tensor.to(device) for tensor in (input_ids, attention_mask, position_ids, answer_mask)))


def _loss(model: PeftModel, batch: _Batch) -> torch.Tensor:
    """Return the mean negative log-probability of the answers' tokens: a float32 scalar, in nats."""
    width = batch.answer_mask.shape[1]
    logits = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        logits_to_keep=width + 1,  # position i predicts token i + 1
        use_cache=False,
    ).logits[:, :-1]
    targets = batch.input_ids[:, -width:]
    return torch.nn.functional.cross_entropy(logits[batch.answer_mask], targets[batch.answer_mask])


def _save(model: PeftModel, folder: Path) -> None:
    """Save the adapter's two files, and not the empty model card that PEFT adds."""
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
