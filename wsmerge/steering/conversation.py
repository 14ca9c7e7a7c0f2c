"""A conversation with a steered model, turn by turn, with coefficients that change between turns.

A line is a message to the model, or a command that begins with `/`:

    /k                  the coefficients
    /k NAME VALUE       another coefficient from now on
    /base               the answer to the last message without steering, for comparison
    /system [TEXT]      another system message, or none; the conversation begins anew
    /reset              the conversation begins anew
    /help               this list
    /quit               the end
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from transformers import TextStreamer

from wsmerge.errors import UsageError
from wsmerge.recipe.values import nearest
from wsmerge.steering.chat import conversation_ids
from wsmerge.steering.generation import Generator
from wsmerge.steering.held import Steering

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["HELP", "ChatOptions", "Conversation"]

HELP: Final = (
    ("/k", "the coefficients"),
    ("/k NAME VALUE", "another coefficient from now on"),
    ("/base", "the answer to the last message without steering, for comparison"),
    ("/system [TEXT]", "another system message, or none; the conversation begins anew"),
    ("/reset", "the conversation begins anew"),
    ("/help", "this list"),
    ("/quit", "the end"),
)

Say = Callable[[str], None]
"""Is given an answer piece by piece, as it is made."""


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """How answers are made.

    Attributes:
        max_new_tokens: where an answer is cut.
        temperature: 0 takes the most probable token; above 0 tokens are drawn from the model's distribution at it, and its
            own settings (top-k, top-p, penalties) take no part.
        seed: of the draws at a temperature above 0; each answer draws anew from it, so that answers can be compared.
        system: the system message; None for none, or the template's default.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0
    system: str | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or not 0 <= self.temperature < math.inf or not 0 <= self.seed < 2**63:
            raise UsageError(
                "max_new_tokens is at least 1, temperature a number from 0, seed from 0 to below 2^63",
                where="ChatOptions",
            )


class Conversation:
    """The turns so far, and the model that answers.

    Args:
        model: the model that `steering` steers.
        tokenizer: its tokenizer, with a chat template.
        steering: the directions.
        ks: the coefficient of each direction at first; 0 for those not named.
        options: how answers are made.

    Attributes:
        system: the system message; None for none, or the template's default.
        cut_at: how many tokens the last answer had when it was cut; None where the model ended its turn.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        steering: Steering,
        ks: Mapping[str, float],
        options: ChatOptions | None = None,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._generator = Generator(model, tokenizer)
        self._steering = steering
        self._options = options or ChatOptions()
        self._turns: list[dict[str, str]] = []
        self.system = self._options.system
        self.cut_at: int | None = None
        self._ks = dict.fromkeys(steering.names, 0.0)
        for name, k in ks.items():
            self.set_k(name, k)
        self._steering.set(self._ks)

    @property
    def ks(self) -> Mapping[str, float]:
        """The coefficient of each direction."""
        return dict(self._ks)

    def set_k(self, name: str, k: float) -> str:
        """Give one direction another coefficient; return its whole name.

        Args:
            name: as it was given, or the part of it that no other direction's begins with.
            k: the coefficient.

        Raises:
            UsageError: no such direction, or k is not finite.
        """
        found = [one for one in self._ks if one == name] or [one for one in self._ks if _short(one).startswith(name)]
        if len(found) != 1:
            near = nearest(name, self._ks)
            known = ", ".join(self._ks) or "none"
            hint = f"did you mean {near!r}?" if near and not found else f"the directions are {known}"
            raise UsageError("no direction of this name" if not found else "several directions", where=name, hint=hint)
        if not math.isfinite(k):
            raise UsageError(f"k = {k} is not finite", where=name)
        changed = {**self._ks, found[0]: k}
        self._steering.set(changed)
        self._ks = changed
        return found[0]

    def answer(self, message: str, say: Say) -> str:
        """Answer a message, and take both into the conversation.

        An answer that is interrupted leaves the conversation as it was.

        Raises:
            UsageError: the conversation is longer than what the model reads.
        """
        asked = [*self._turns, {"role": "user", "content": message}]
        text = self._generate(asked, say)
        self._turns = [*asked, {"role": "assistant", "content": text}]
        return text

    def answer_unsteered(self, say: Say) -> str:
        """Answer the last message once more at k = 0; the conversation stays as it is.

        Raises:
            UsageError: there was no message yet.
        """
        if not self._turns:
            raise UsageError("there is no message to answer yet", hint="write one, then /base")
        with self._steering.at({}):
            return self._generate(self._turns[:-1], say)

    def reset(self, system: str | None = None) -> None:
        """Begin anew, with a system message or without one."""
        self._turns = []
        self.system = system

    def _generate(self, turns: Iterable[dict[str, str]], say: Say) -> str:
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        ids = conversation_ids(self._tokenizer, [*system, *turns])
        limit = min(self._options.max_new_tokens, self._room(len(ids)))
        streamer = _Saying(self._tokenizer, say)
        with torch.random.fork_rng():
            torch.manual_seed(self._options.seed)
            [answer] = self._generator.generate([ids], limit, temperature=self._options.temperature, streamer=streamer)
        self.cut_at = None if answer.finished else limit
        return streamer.text

    def _room(self, tokens: int) -> int:
        """How many tokens the model can add to a conversation of so many."""
        limit = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        if limit is None:
            return self._options.max_new_tokens
        if tokens >= limit:
            raise UsageError(
                f"the conversation is {tokens} tokens long, and the model reads {limit}",
                hint="begin anew with /reset",
            )
        return int(limit) - tokens


class _Saying(TextStreamer):
    """Hands over text as it becomes whole: a character may take several tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, say: Say) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._say = say
        self.text = ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002 - the interface's
        """Take the next piece."""
        self.text += text
        if text:
            self._say(text)


def _short(name: str) -> str:
    """The last part of a reference's name: `sycophancy@1.0.0` of `hub:acme/sycophancy@1.0.0`."""
    return name.rstrip("/").rpartition("/")[2]
