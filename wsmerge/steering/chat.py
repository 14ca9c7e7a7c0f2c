"""Prompts and answers as token ids, by the model's own chat template; the same for training and for evaluation.

What templates differ in is settled here and nowhere else: a system message that the template refuses or leaves out stands
before the user's first message; arguments of the template are bound to its tokenizer; the end of a turn is what the template
writes after an answer, which need not be the tokenizer's end-of-sequence token.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from jinja2 import TemplateError

from wsmerge.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "answer_ids",
    "bind_template_args",
    "conversation_ids",
    "opening_ids",
    "pad_id",
    "prompt_ids",
    "takes_system",
    "turn_end",
]

_ANSWER: Final = "wsmerge"
"""Stands for any message where only its place is of interest."""

_ENDINGS: Final = ("Yes", "No?", "In 1990.", "(so)", 'Say "a"', "List:\n")
"""Prompts that end differently, as a tokenizer may join what ends a message with what the template puts after it."""


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, *, system: str | None = None) -> list[int]:
    """Return the ids of one user message, up to where the assistant's answer begins.

    Without a system message, a template that has a default one (SmolLM2's has) adds it.

    Raises:
        UsageError: the template refuses the message.
    """
    return conversation_ids(tokenizer, _asked(prompt, system))


def conversation_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Return the ids of a conversation, up to where the assistant's next answer begins.

    Raises:
        UsageError: the template refuses the conversation.
    """
    return _ids(tokenizer, _rendered(tokenizer, messages))


def answer_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str, *, system: str | None = None) -> list[int]:
    """Return the ids of the assistant's answer, the end of its turn included.

    The answer is tokenised apart from the prompt: these are the tokens that the model itself would generate. What the
    template writes after the end of the turn (a line feed in SmolLM2's) is left out.

    Raises:
        UsageError: the template renders the prompt in another way once an answer follows.
    """
    asked = _asked(prompt, system)
    before = _rendered(tokenizer, asked)
    whole = _rendered(tokenizer, [*asked, _said(answer)], add_generation_prompt=False)
    if not whole.startswith(before):
        raise UsageError(
            "the chat template renders a prompt with an answer differently from the prompt alone",
            hint="use a model whose chat template keeps what it has written, or other template arguments",
        )
    turn = whole[len(before) :]
    end = turn_end(tokenizer)
    mark = "" if end is None else str(tokenizer.convert_ids_to_tokens(end))
    place = turn.find(mark, turn.rfind(answer.strip()) + len(answer.strip())) if mark else -1
    if place >= 0:
        return _ids(tokenizer, turn[: place + len(mark)])
    return [*_ids(tokenizer, turn), *([] if end is None else [end])]


def opening_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that end every prompt, whatever was asked: what the template puts between a message and its answer.

    Raises:
        UsageError: there are none.
    """
    prompts = [prompt_ids(tokenizer, prompt) for prompt in _ENDINGS]
    size = 0
    while size < min(map(len, prompts)) and len({ids[-size - 1] for ids in prompts}) == 1:
        size += 1
    if not size:
        raise UsageError(
            "the chat template puts nothing before an answer that is the same for all prompts",
            hint="use a model whose chat template marks where an answer begins",
        )
    return prompts[0][-size:]


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the special token that ends the assistant's turn: the first that the template writes after an answer.

    Gemma's is `<end_of_turn>`, where the end of a sequence is `<eos>`; GLM's is `<|user|>`, with which the next turn begins.
    None where no special token follows an answer, or the template takes none.
    """
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    special = (special | set(tokenizer.all_special_ids)) - {tokenizer.bos_token_id}
    asked = {"role": "user", "content": "?"}
    for later in ([], [asked]):
        try:
            text = _rendered(tokenizer, [asked, _said(_ANSWER), *later], add_generation_prompt=False)
        except UsageError:
            return None
        ids = _ids(tokenizer, text.rpartition(_ANSWER)[2])
        found = next((token for token in ids if token in special), None)
        if found is not None:
            return found
    return None


def takes_system(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the chat template writes system messages."""
    try:
        return _ANSWER in str(tokenizer.apply_chat_template(_asked("?", _ANSWER), tokenize=False))
    except TemplateError:
        return False


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return an id to pad with; any id will do, since padding is always masked."""
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(token_id, int):
            return token_id
    return 0


def bind_template_args(tokenizer: PreTrainedTokenizerBase, args: Mapping[str, Any]) -> None:
    """Give the tokenizer's chat template arguments of its own, such as `enable_thinking: false`, from now on.

    Raises:
        UsageError: the template reads no such argument, or wsmerge gives it itself.
    """
    template = str(tokenizer.chat_template)
    fixed = set(inspect.signature(tokenizer.apply_chat_template).parameters) | {"messages"}
    unread = tuple(name for name in args if name in fixed or not re.search(rf"\b{re.escape(name)}\b", template))
    if unread:
        raise UsageError("the chat template has no such arguments", where="template_args", details=unread)
    if args:
        apply = partial(tokenizer.apply_chat_template, **args)
        tokenizer.apply_chat_template = apply  # type: ignore[method-assign]  # of this object alone


def _asked(prompt: str, system: str | None) -> list[dict[str, str]]:
    user = {"role": "user", "content": prompt}
    return [user] if system is None else [{"role": "system", "content": system}, user]


def _said(answer: str) -> dict[str, str]:
    return {"role": "assistant", "content": answer}


def _rendered(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
) -> str:
    apply = partial(tokenizer.apply_chat_template, tokenize=False, add_generation_prompt=add_generation_prompt)
    first, *rest = map(dict, messages)
    for message in (first, *rest):
        _check_text(message["content"])
    refusal: TemplateError | None = None
    try:
        text = str(apply([first, *rest]))
        if first["role"] != "system" or first["content"].strip() in text:
            return text
    except TemplateError as error:
        refusal = error
    if first["role"] == "system" and rest:
        # The template knows no system messages (Gemma 2's raises, others pass them over).
        asked = {**rest[0], "content": f"{first['content']}\n\n{rest[0]['content']}"}
        try:
            return str(apply([asked, *rest[1:]]))
        except TemplateError as error:
            refusal = error
    raise UsageError(f"the chat template refuses the conversation: {refusal}", hint="see the model's chat template")


def _check_text(text: str) -> None:
    """Refuse what Python makes of bytes that are no UTF-8, of a pipe or the command line: no tokenizer takes it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"character {error.start + 1} of the message is no Unicode character",
            where=repr(text[:60]),
            hint="give the text in UTF-8",
        ) from error


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokenise a rendered text, which already holds every special token that it needs."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
