"""Models and tokenizers as the lab loads them: whole, in evaluation mode, without transformers' own progress bars."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer
from transformers.utils import logging as transformers_logging

from wsmerge.core.files import refuse_lfs_pointers
from wsmerge.errors import CheckpointError, UsageError
from wsmerge.steering.chat import bind_template_args

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["DTYPES", "chosen_device", "chosen_dtype", "load_model", "load_tokenizer", "quiet_transformers"]

DTYPES: Final = ("auto", "float32", "bfloat16", "float16")
_NAMED_AT_MOST: Final = 3


def chosen_device(wanted: str) -> str:
    """`wanted`; for `auto` the accelerator that torch finds here (cuda, mps, xpu, ...), else cpu.

    Raises:
        UsageError: no name of a device.
    """
    if wanted == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        return found.type if found is not None else "cpu"
    try:
        torch.device(wanted)
    except RuntimeError as error:
        raise UsageError(f"{wanted!r} is no device", hint="one of: auto, cpu, cuda, cuda:0, mps") from error
    return wanted


def chosen_dtype(wanted: str, device: str) -> str:
    """`wanted`; for `auto` bfloat16 on a GPU, else float32: elsewhere products in bfloat16 are many times slower."""
    return wanted if wanted != "auto" else "bfloat16" if device.startswith("cuda") else "float32"


def load_model(folder: Path, *, dtype: str = "auto", device: str = "auto") -> PreTrainedModel:
    """Load the causal language model in `folder`, every weight of it.

    Args:
        folder: a checkpoint folder.
        dtype: what it computes in; `auto` as for `chosen_dtype`.
        device: as torch names it; `auto` as for `chosen_device`.

    Raises:
        CheckpointError: transformers cannot load it, or finds no values for some of its parameters.
        UsageError: no such dtype, or no such device here.
    """
    if dtype not in DTYPES:
        raise UsageError(f"no dtype {dtype!r} to load a model in", hint=f"one of: {', '.join(DTYPES)}")
    device = chosen_device(device)
    with quiet_transformers():
        try:
            loaded: Any = _auto_class(folder).from_pretrained(
                folder,
                dtype=getattr(torch, chosen_dtype(dtype, device)),
                output_loading_info=True,
                trust_remote_code=False,
            )
        except Exception as error:
            # transformers, and the libraries of quantisation that it calls, raise whatever they like.
            refuse_lfs_pointers(sorted(folder.glob("*")), CheckpointError)
            raise _not_loaded(folder, error) from error
    model: PreTrainedModel = loaded[0]
    missing = sorted(loaded[1]["missing_keys"])
    if missing:  # transformers would draw them at random
        raise CheckpointError(
            f"has no values for {len(missing)} of the model's parameters: {', '.join(missing[:_NAMED_AT_MOST])}"
            + (", ..." if len(missing) > _NAMED_AT_MOST else ""),
            where=str(folder),
            hint="take a whole checkpoint, and a config.json that is its own",
        )
    try:
        model.to(device)  # type: ignore[arg-type]  # transformers types it as a torch.device
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"the model cannot be moved to {device}: {error}", hint="name a device that is here"
        ) from error
    model.eval()  # type: ignore[no-untyped-call]  # transformers wraps it without types
    return model


def load_tokenizer(folder: Path, template_args: Mapping[str, Any] | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer in `folder`, whose chat template gets arguments of its own: `{"enable_thinking": False}`.

    Raises:
        CheckpointError: there is none, or it has no chat template.
        UsageError: the chat template reads no such argument.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        # transformers and tokenizers raise whatever the next instruction raises.
        refuse_lfs_pointers(sorted(folder.glob("*")), CheckpointError)
        _refuse_code(folder, error)
        raise CheckpointError(f"holds no tokenizer that can be loaded: {error}", where=str(folder)) from error
    if tokenizer.chat_template is None:
        raise CheckpointError(
            "the tokenizer has no chat template", where=str(folder), hint="take a model that was made for chat"
        )
    bind_template_args(tokenizer, template_args or {})
    return tokenizer


def _auto_class(folder: Path) -> Any:  # noqa: ANN401 - transformers' classes of classes have no common type
    """What loads the model: vision-language models answer text too, and are no causal language models to transformers."""
    of_images: Any = AutoModelForImageTextToText
    kind = type(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    is_causal = kind in AutoModelForCausalLM._model_mapping  # noqa: SLF001 - transformers has no public question for it
    return of_images if not is_causal and kind in of_images._model_mapping else AutoModelForCausalLM  # noqa: SLF001 - as above


def _refuse_code(folder: Path, error: Exception) -> None:
    """Raise where transformers asks for leave to run code: left to itself, it takes a `y` on standard input for it."""
    if "trust_remote_code" in str(error):
        raise CheckpointError(
            "comes with code that would have to run, and no code of a model runs here",
            where=str(folder),
            hint="take a model whose architecture and tokenizer transformers has itself",
        ) from error


def _not_loaded(folder: Path, error: Exception) -> CheckpointError:
    _refuse_code(folder, error)
    try:
        quantised = json.loads((folder / "config.json").read_bytes())["quantization_config"]["quant_method"]
    except (OSError, ValueError, KeyError, TypeError):
        told, hint = f"cannot be loaded: {error}", "check it with transformers"
    else:
        told = f"is quantised ({quantised}), and cannot be loaded: {error}"
        hint = "take the model in bfloat16 or float32, since directions are added to plain floats"
    return CheckpointError(told, where=str(folder), hint=hint)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' own progress bars away for the time of a `with` block."""
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # ships no types
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]  # ships no types
