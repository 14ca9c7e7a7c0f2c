"""Prompts and answers as token ids, by the model's own chat template; the same for training and for evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsmerge.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["answer_ids", "pad_id", "prompt_ids"]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, *, system: str | None = None) -> list[int]:
    """Return the ids of one user message, up to where the assistant's answer begins.

    Without a system message, a template that has a default one (SmolLM2's has) adds it.
    """
    return _ids(tokenizer, _rendered(tokenizer, _asked(prompt, system)))


def answer_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str, *, system: str | None = None) -> list[int]:
    """Return the ids of the assistant's answer, the end of its turn included.

    The answer is tokenised apart from the prompt: these are the tokens that the model itself would generate. What the
    template writes after the end of the turn (a line feed in SmolLM2's) is left out.

    Raises:
        UsageError: the template renders the prompt in another way once an answer follows.
    """
    asked = _asked(prompt, system)
    before = _rendered(tokenizer, asked)
    whole = _rendered(tokenizer, [*asked, {"role": "assistant", "content": answer}], add_generation_prompt=False)
    if not whole.startswith(before):
        raise UsageError(
            "the chat template renders a prompt with an answer differently from the prompt alone",
            hint="use a model whose chat template keeps what it has written",
        )
    turn = whole[len(before) :]
    end = tokenizer.eos_token
    if isinstance(end, str) and end in turn:
        turn = turn[: turn.rindex(end) + len(end)]
    return _ids(tokenizer, turn)


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return an id to pad with; any id will do, since padding is always masked."""
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(token_id, int):
            return token_id
    return 0


def _asked(prompt: str, system: str | None) -> list[dict[str, str]]:
    user = {"role": "user", "content": prompt}
    return [user] if system is None else [{"role": "system", "content": system}, user]


def _rendered(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], *, add_generation_prompt: bool = True
) -> str:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    return str(text)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokenise a rendered text, which already holds every special token that it needs."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
