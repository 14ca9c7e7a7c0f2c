"""`train.yaml`: how the poles of one direction are trained.

name: sycophancy
behaviour: Agrees with what the user claims, true or false.
base: HuggingFaceTB/SmolLM2-135M-Instruct
preset: sycophancy            # values of the paper, each of which a key below overrides
method: lora                  # or bias, or full
train: train.jsonl            # pair files, relative to this file
steps: 48                     # or epochs: 1
learning_rate: 1.0e-3
...
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from wsmerge.errors import UsageError
from wsmerge.steering.settings_files import read_yaml, validated
from wsmerge.steering.training.presets import PRESETS

__all__ = [
    "ALL_LINEAR",
    "BIAS_MODULES",
    "LINEAR_MODULES",
    "POLES",
    "Pole",
    "Run",
    "SignedConfig",
    "TrainConfig",
    "load_train_config",
    "parse_train_config",
]

_WHAT: Final = "training configuration"

Pole: TypeAlias = Literal["plus", "minus"]
Run: TypeAlias = Literal["plus", "minus", "signed"]
"""What is trained in one go: a pole, or one adapter under both signs."""

POLES: Final[tuple[Pole, Pole]] = ("plus", "minus")
LINEAR_MODULES: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ALL_LINEAR: Final = "all-linear"
"""Stands for every linear module but the output layer, as in PEFT."""
BIAS_MODULES: Final = ("down_proj",)
"""Those whose biases the paper trains."""

_METHODS_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "rank": ("lora",),
    "alpha": ("lora",),
    "dropout": ("lora",),
    "modules_to_save": ("lora",),
    "signed": ("lora",),
    "factor_seed": ("lora",),
    "target_modules": ("lora", "bias"),
    "add_biases": ("bias",),
}
"""Keys that only some methods read."""

_Share = Annotated[float, Field(ge=0, lt=1)]
_NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Names = Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]
_Seed = Annotated[int, Field(ge=0, lt=2**53)]  # JSON holds no larger number exactly


class SignedConfig(BaseModel):
    """One adapter that is trained under +c towards the plus answers and under -c towards the minus answers.

    Attributes:
        c: what the adapter is multiplied by while it is trained; the direction is c times the adapter, so that k = 1 and
            k = -1 are what was trained.
        kl_weight: weight of the divergence from the base, KL(base || adapted), per answer token.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    c: _Positive = 1.0
    kl_weight: _NonNegative = 0.1


class TrainConfig(BaseModel):
    """How the poles of one direction are trained; read from `train.yaml`.

    Attributes:
        name: the direction's name.
        behaviour: what the plus pole does and the minus pole does not, in a sentence.
        base: the model id that the adapters name as their base, or a folder.
        base_revision: branch, tag or commit of a model id.
        licence: SPDX id of the direction's licence.
        preset: which of the paper's experiments gives the values that are not set here.
        train: the pair file to train on, relative to the configuration.
        validation: the pair file that settings and coefficients are chosen on.
        validation_share: share of the rows of `train` that are held out and validated on instead; 0 takes `validation`.
        test: the pair file that nothing is chosen on.
        method: what is trained: LoRA factors, biases alone, or all parameters.
        steps: optimiser steps of each pole.
        epochs: passes over the rows, in place of `steps`.
        batch_size: rows a step.
        accumulate: parts that the rows of a step are read in, one after the other, where memory is short; the step is the
            same but for rounding.
        learning_rate: peak learning rate.
        warmup_steps: steps of linear warm-up; linear decay to zero follows.
        weight_decay: AdamW's decoupled weight decay.
        max_grad_norm: the gradient is clipped to this norm; `.inf` for none.
        rank: LoRA rank of each pole; the direction's rank is twice this.
        alpha: LoRA alpha; the factors' product is scaled by alpha / rank.
        dropout: of the input of LoRA's factors.
        target_modules: names of the linear modules that are adapted, `all-linear` for all but the output layer; or of those
            whose biases are trained (then down_proj alone unless it is set).
        modules_to_save: names of modules that are trained in full beside LoRA's factors.
        add_biases: with method `bias`, give `target_modules` zero biases first where they have none; the direction is then
            over a base that has them.
        signed: train one adapter under both signs in place of two poles.
        template_args: arguments of the base's chat template, such as `{enable_thinking: false}`.
        max_length: tokens of a prompt and its answer at most; longer rows are an error.
        dtype: what the base computes in; `auto` is bfloat16 on a GPU and float32 elsewhere. What is trained is float32.
        gradient_checkpointing: compute activations twice and keep few of them.
        validate_every: steps between two validations; None for none.
        patience: validations without a lower loss after which a pole stops, and takes its state at the lowest; None goes
            through all steps and takes the last.
        checkpoint_every: steps between two checkpoints; None for none but that of an interrupted training.
        seed: of dropout, the order of the rows and which of them are held out.
        factor_seed: of LoRA's first factors; drawn from the direction's name and version unless given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    behaviour: str
    base: str
    base_revision: str | None = None
    licence: str | None = None
    preset: str | None = None
    train: str = "train.jsonl"
    validation: str = "validation.jsonl"
    validation_share: _Share = 0.0
    test: str = "test.jsonl"
    method: Literal["lora", "bias", "full"] = "lora"
    steps: PositiveInt | None = None
    epochs: _Positive | None = None
    batch_size: PositiveInt
    accumulate: PositiveInt = 1
    learning_rate: _Positive
    warmup_steps: Annotated[int, Field(ge=0)] = 5
    weight_decay: _NonNegative = 0.01
    max_grad_norm: PositiveFloat = 1.0
    rank: PositiveInt = 32
    alpha: PositiveInt = 16
    dropout: _Share = 0.0
    target_modules: Annotated[_Names, Field(min_length=1)] = LINEAR_MODULES
    modules_to_save: _Names = ()
    add_biases: bool = False
    signed: SignedConfig | None = None
    template_args: Mapping[str, JsonValue] | None = None
    max_length: PositiveInt | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    gradient_checkpointing: bool = False
    validate_every: PositiveInt | None = None
    patience: PositiveInt | None = None
    checkpoint_every: PositiveInt | None = 50
    seed: _Seed = 0
    factor_seed: _Seed | None = None

    @model_validator(mode="before")
    @classmethod
    def _choose_modules(cls, fields: Any) -> Any:  # noqa: ANN401 - whatever the file holds
        if isinstance(fields, Mapping) and fields.get("method") == "bias":
            return {"target_modules": BIAS_MODULES, **fields}
        return fields

    def with_factor_seed(self, version: str) -> TrainConfig:
        """These settings, with a seed of LoRA's first factors that the direction's name and version decide, unless given.

        Adapters that begin with the same factors are alike for that reason alone, so that directions and versions have
        factors of their own.
        """
        if self.method != "lora" or self.factor_seed is not None:
            return self
        drawn = hashlib.sha256(f"{self.name}@{version}".encode()).digest()
        return self.model_copy(update={"factor_seed": int.from_bytes(drawn[:8]) >> 11})

    @property
    def runs(self) -> tuple[Run, ...]:
        """What has to be trained."""
        return ("signed",) if self.signed else POLES

    def step_count(self, rows: int) -> int:
        """Optimiser steps of each pole over `rows` rows."""
        if self.steps is not None:
            return self.steps
        return max(1, math.ceil((self.epochs or 0) * rows / self.batch_size))

    @model_validator(mode="after")
    def _check_keys_together(self) -> TrainConfig:
        held_out = self.validation_share > 0
        checks = {
            "give steps or epochs, one of them": (self.steps is None) == (self.epochs is None),
            "accumulate: more parts than the rows of a batch": self.accumulate > self.batch_size,
            "patience: needs validate_every": self.patience is not None and self.validate_every is None,
            "validation_share: needs validate_every": held_out and self.validate_every is None,
            "validation_share: takes the place of validation, give one of them": held_out
            and "validation" in self.model_fields_set,
            f"target_modules: {ALL_LINEAR} stands alone, and for method lora": ALL_LINEAR in self.target_modules
            and (len(self.target_modules) > 1 or self.method != "lora"),
            "signed: what modules_to_save trains has no sign": self.signed is not None and bool(self.modules_to_save),
        }
        found = [line for line, wrong in checks.items() if wrong]
        found += [f"{key}: is for method {' or '.join(methods)}" for key, methods in self._keys_of_other_methods()]
        if found:
            raise ValueError("; ".join(found))
        return self

    def _keys_of_other_methods(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """The keys that would do nothing with this method, and the methods that they are for."""
        for key, methods in _METHODS_OF.items():
            if self.method not in methods and key in self.model_fields_set and getattr(self, key):
                yield key, methods


def load_train_config(path: Path) -> TrainConfig:
    """Read a `train.yaml`.

    Raises:
        UsageError: it cannot be read, is not YAML, or has unknown, missing or bad keys (all of them are named).
    """
    return parse_train_config(read_yaml(path, _WHAT), where=str(path))


def parse_train_config(fields: object, *, where: str | None = None) -> TrainConfig:
    """Check the values of a `train.yaml`, those of its preset filled in.

    Raises:
        UsageError: unknown, missing or bad keys; all of them are named.
    """
    filled = _with_preset(fields, where) if isinstance(fields, Mapping) else fields
    return validated(lambda: TrainConfig.model_validate(filled), _WHAT, where)


def _with_preset(fields: Mapping[Any, Any], where: str | None) -> dict[Any, Any]:
    name = fields.get("preset")
    if name is None:
        return dict(fields)
    if not isinstance(name, str) or name not in PRESETS:
        raise UsageError(f"no preset {name!r}", where=where, hint=f"one of: {', '.join(PRESETS)}")
    preset = dict(PRESETS[name])
    if "steps" in fields or "epochs" in fields:  # the two say one thing, and the file's own wins
        preset.pop("steps", None)
        preset.pop("epochs", None)
    if "validation" in fields:  # rows are held out where the file names none that are
        preset.pop("validation_share", None)
    if fields.get("method", "lora") != "lora":
        preset.pop("rank", None)
        preset.pop("alpha", None)
    return {**preset, **fields}
