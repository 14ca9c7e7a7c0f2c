"""What is trained of a base, and how it is saved.

    lora   factors beside the linear modules     saved as a plain PEFT adapter
    bias   the biases that the base has          saved as a checkpoint
    full   every parameter                       saved as a checkpoint, in float32

What is trained is held in float32. Where the base computes in bfloat16, torch's autocast does it; a step as small as
those at the end of a schedule would vanish in bfloat16 parameters.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig
from transformers.pytorch_utils import Conv1D

from wsmerge.errors import Problems, UsageError
from wsmerge.steering.loading import chosen_dtype, load_model, quiet_transformers
from wsmerge.steering.training.config import ALL_LINEAR, TrainConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Trainee", "modules_named", "prepare", "save"]

_WITH_FACTORS: Final = (torch.nn.Linear, torch.nn.Embedding, Conv1D)


@dataclass(frozen=True, slots=True)
class Trainee:
    """A base with what is trained of it.

    Attributes:
        model: called as a causal language model.
        trained: the parameters that change, by name.
        low: the dtype that it computes in where that is not float32.
        stored: the dtype that the base is stored in.
    """

    model: PreTrainedModel | PeftModel
    trained: dict[str, torch.nn.Parameter]
    low: torch.dtype | None
    stored: torch.dtype

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(iter(self.trained.values())).device

    def precision(self) -> AbstractContextManager[Any]:
        """Return the context that a forward pass runs in."""
        return nullcontext() if self.low is None else torch.autocast(self.device.type, dtype=self.low)

    def values(self) -> dict[str, torch.Tensor]:
        """Return copies of the trained parameters, in main memory."""
        return {name: parameter.detach().to("cpu", copy=True) for name, parameter in self.trained.items()}

    def set_values(self, values: dict[str, torch.Tensor]) -> None:
        """Overwrite the trained parameters."""
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(values[name])


def modules_named(model: torch.nn.Module, names: tuple[str, ...]) -> dict[str, torch.nn.Module]:
    """Return the modules whose name ends with one of `names`."""
    return {
        path: module for path, module in model.named_modules() if any(f".{path}".endswith(f".{name}") for name in names)
    }


def prepare(config: TrainConfig, base: Path, device: str) -> Trainee:
    """Load the base in `base` and choose what is trained of it. LoRA's first factors come from torch's global generator.

    Raises:
        CheckpointError: the base cannot be loaded.
        UsageError: no module of the names that the configuration gives, none with a bias, or no such device.
    """
    wanted = chosen_dtype(config.dtype, device)
    model = load_model(base, dtype=wanted if config.method == "lora" else "float32", device=device)
    if config.gradient_checkpointing:
        # Releases of transformers differ in the name.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    made: PreTrainedModel | PeftModel = model
    if config.method == "lora":
        made = _with_factors(model, config)
    else:
        _unfreeze(model, config)
    made.to(device)  # type: ignore[arg-type]  # transformers types it as a torch.device
    trained = {name: parameter for name, parameter in made.named_parameters() if parameter.requires_grad}
    for parameter in trained.values():
        parameter.data = parameter.data.float()
    return Trainee(made, trained, torch.bfloat16 if wanted == "bfloat16" else None, _stored_dtype(base))


def save(trainee: Trainee, config: TrainConfig, folder: Path) -> None:
    """Save what was trained: an adapter's two files, or a checkpoint."""
    model = trainee.model
    if config.method == "lora":
        model.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT adds an empty card
        return
    for name, parameter in model.named_parameters():
        if name not in trainee.trained:  # the base's dtype holds its values exactly
            parameter.data = parameter.data.to(trainee.stored)
    with quiet_transformers():
        model.save_pretrained(str(folder))


def _with_factors(model: PreTrainedModel, config: TrainConfig) -> PeftModel:
    """Put fresh LoRA factors on the model: A random, B zero."""
    names = _linear_names(model) if config.target_modules == (ALL_LINEAR,) else sorted(config.target_modules)
    _check_modules(model, config, names)
    found = modules_named(model, tuple(names)).values()
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=_alpha(config),
        lora_dropout=config.dropout,
        target_modules=names,
        fan_in_fan_out=all(isinstance(module, Conv1D) for module in found),
        modules_to_save=list(config.modules_to_save) or None,
        bias="none",
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # PEFT asks newer releases of transformers for a property under its old name.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        # Of a model with both kinds of linear modules (GPT-2's and torch's) PEFT finds out which is which.
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to", UserWarning)
        try:
            adapted = cast("PeftModel", get_peft_model(model, lora))
        except ValueError as error:  # some modules of some architectures, such as Mamba's out_proj
            raise UsageError(f"PEFT refuses: {error}", where="target_modules", hint="name other modules") from error
    # PEFT writes the local folder here, which means nothing to whoever loads the adapter elsewhere.
    lora.base_model_name_or_path = config.base
    lora.revision = config.base_revision
    # PEFT keeps a set, whose order in the saved file would change from run to run.
    lora.target_modules = names
    return adapted


def _check_modules(model: PreTrainedModel, config: TrainConfig, targets: Sequence[str]) -> None:
    """Refuse what PEFT would pass over in silence, or what no direction could be made of after hours of training."""
    problems = Problems()
    for key, names in (("target_modules", targets), ("modules_to_save", config.modules_to_save)):
        for name in names:
            found = modules_named(model, (name,)).values()
            if not found:
                problems.add(f"{key}: the base has no module {name}")
            elif key == "target_modules" and not all(isinstance(module, _WITH_FACTORS) for module in found):
                problems.add(f"{key}: {name} is no linear module")
    heads = [model.get_input_embeddings(), model.get_output_embeddings()]  # type: ignore[no-untyped-call]  # transformers ships no type for it
    saved = modules_named(model, config.modules_to_save).values()
    if model.config.get_text_config().tie_word_embeddings and any(head is one for head in heads for one in saved):
        problems.add(
            "modules_to_save: the base's embeddings and head are one tensor, which an adapter cannot change as one"
        )
    linear = ", ".join(_linear_names(model))
    problems.raise_if_any(
        UsageError,
        "the base cannot be trained so",
        hint=f"its linear modules: {linear}; or target_modules: {ALL_LINEAR}" if linear else "it has no linear modules",
    )


def _alpha(config: TrainConfig) -> Any:  # noqa: ANN401 - PEFT types it as an int, and takes any number
    """LoRA's alpha; a signed adapter's c goes into it, so that what is saved is c times the adapter."""
    return config.alpha if config.signed is None or config.signed.c == 1 else config.alpha * config.signed.c


def _unfreeze(model: PreTrainedModel, config: TrainConfig) -> None:
    if config.method == "full":
        model.requires_grad_(True)  # noqa: FBT003 - torch gives its argument no name in every class
        return
    model.requires_grad_(False)  # noqa: FBT003 - as above
    found = modules_named(model, config.target_modules)
    without = [path for path, module in found.items() if getattr(module, "bias", None) is None]
    if without or not found:
        has = sorted({path.rpartition(".")[2] for path, one in model.named_modules() if _has_bias(one)})
        raise UsageError(
            f"{', '.join(config.target_modules)}: the base has no such biases ({len(without)} modules without)",
            where="target_modules",
            hint=(f"name modules that have one: {', '.join(has)}; " if has else "")
            + "or add zero biases to a copy of the base first: add_biases: true",
        )
    for module in found.values():
        module.bias.requires_grad_(True)  # noqa: FBT003 - torch gives its argument no name in every class


def _has_bias(module: torch.nn.Module) -> bool:
    return isinstance(getattr(module, "bias", None), torch.nn.Parameter)


def _linear_names(model: PreTrainedModel) -> list[str]:
    """Names of the linear modules but the output layer."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]  # transformers ships no type for it
    linear = (torch.nn.Linear, Conv1D)
    found = [path for path, module in model.named_modules() if isinstance(module, linear) and module is not head]
    return sorted({path.rpartition(".")[2] for path in found})


def _stored_dtype(base: Path) -> torch.dtype:
    stored = AutoConfig.from_pretrained(base, trust_remote_code=False).dtype
    return stored if isinstance(stored, torch.dtype) else getattr(torch, stored or "float32")
