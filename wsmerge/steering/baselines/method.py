"""What every method of changing a behaviour looks like to those who measure it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Method", "Subject"]


@dataclass(frozen=True, slots=True)
class Subject:
    """A model that is measured, and how it is spoken to.

    Attributes:
        model: a causal language model.
        tokenizer: its tokenizer, with a chat template.
        system: the system message before every prompt; None for none, or the template's default.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    system: str | None = None


class Method(Protocol):
    """A way to give a model more of a behaviour or less."""

    @property
    def label(self) -> str:
        """How tables and plots name it."""

    def apply(self, subject: Subject, strength: float) -> AbstractContextManager[Subject]:
        """The subject at a strength, for the time of a `with` block; afterwards the model is as it was, to the bit."""
