"""Models and tokenizers as the lab loads them: whole, in evaluation mode, without transformers' own progress bars."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from wsmerge.core.files import refuse_lfs_pointers
from wsmerge.errors import CheckpointError, UsageError
from wsmerge.steering.chat import bind_template_args

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["DTYPES", "load_model", "load_tokenizer", "quiet_transformers"]

DTYPES: Final = ("auto", "float32", "bfloat16", "float16")


def load_model(folder: Path, *, dtype: str = "auto", device: str = "cpu") -> PreTrainedModel:
    """Load the causal language model in `folder`.

    Args:
        folder: a checkpoint folder.
        dtype: what it computes in; `auto` is bfloat16 on a GPU and float32 elsewhere, since matrix products in bfloat16 are
            many times slower on most processors.
        device: as torch names it.

    Raises:
        CheckpointError: transformers cannot load it.
        UsageError: no such dtype, or no such device here.
    """
    if dtype not in DTYPES:
        raise UsageError(f"no dtype {dtype!r} to load a model in", hint=f"one of: {', '.join(DTYPES)}")
    wanted = dtype if dtype != "auto" else "bfloat16" if device.startswith("cuda") else "float32"
    with quiet_transformers():
        try:
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, wanted))
        except (OSError, ValueError, SafetensorError) as error:
            refuse_lfs_pointers(sorted(folder.glob("*")), CheckpointError)
            raise CheckpointError(f"cannot be loaded: {error}", where=str(folder)) from error
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
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        refuse_lfs_pointers(sorted(folder.glob("*")), CheckpointError)
        raise CheckpointError(f"holds no tokenizer that can be loaded: {error}", where=str(folder)) from error
    if tokenizer.chat_template is None:
        raise CheckpointError(
            "the tokenizer has no chat template", where=str(folder), hint="take a model that was made for chat"
        )
    bind_template_args(tokenizer, template_args or {})
    return tokenizer


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
