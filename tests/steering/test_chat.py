"""What chat templates differ in: system messages, arguments, and the end of a turn."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from tests.steering.tiny import TEMPLATE, save_tiny_base, tiny_model, tiny_tokenizer
from wsmerge.errors import UsageError
from wsmerge.steering.chat import answer_ids, bind_template_args, conversation_ids, prompt_ids, turn_end
from wsmerge.steering.generation import Generator
from wsmerge.steering.loading import load_tokenizer

REFUSING = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% endfor %}"
) + TEMPLATE
PASSING_OVER = TEMPLATE.replace(
    "{% for message in messages %}", "{% for message in messages if message['role'] != 'system' %}"
)
THINKING = TEMPLATE.replace(
    "<|im_start|>assistant\n{% endif %}",
    "<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{% endif %}",
).replace(
    "{{ message['content'] }}",
    "{% if message['role'] == 'assistant' %}<think></think>{% endif %}{{ message['content'] }}",
)


def with_template(template: str, *special: str) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    if special:
        tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("template", [REFUSING, PASSING_OVER])
def test_a_system_message_that_the_template_does_not_take_stands_before_the_first_user_message(template):
    tokenizer = with_template(template)
    assert prompt_ids(tokenizer, "Well?", system="Be kind.") == prompt_ids(tokenizer, "Be kind.\n\nWell?")
    assert answer_ids(tokenizer, "Well?", "Yes.", system="Be kind.") == answer_ids(tiny_tokenizer(), "Well?", "Yes.")
    turns = [("system", "Be kind."), ("user", "a"), ("assistant", "b"), ("user", "c")]
    text = tokenizer.decode(conversation_ids(tokenizer, [{"role": role, "content": said} for role, said in turns]))
    assert text.index("Be kind.") < text.index("a<|im_end|>")
    assert text.count("Be kind.") == text.count("<|im_start|>user\nBe kind.") == 1


def test_a_template_that_takes_system_messages_gets_them():
    text = str(tiny_tokenizer().decode(prompt_ids(tiny_tokenizer(), "Well?", system=" Be kind. ")))
    assert text.startswith("<|im_start|>system\n Be kind. <|im_end|>\n<|im_start|>user\nWell?")


def test_what_a_template_refuses_in_any_form_is_told():
    tokenizer = with_template("{{ raise_exception('Not today') }}")
    for system in (None, "Be kind."):
        with pytest.raises(UsageError, match="Not today"):
            prompt_ids(tokenizer, "Well?", system=system)


@pytest.mark.parametrize(
    ("written", "end", "learnt"),
    [
        ("<|im_end|>\n", "<|im_end|>", "<|im_end|>"),
        ("<turn|>\n", "<turn|>", "<turn|>"),
        ("<turn|>\n<|im_end|>", "<turn|>", "<turn|>"),
        (" <|im_end|>", "<|im_end|>", " <|im_end|>"),
        ("\n\n", None, "\n\n"),
    ],
)
def test_a_turn_ends_with_the_first_special_token_after_the_answer(written, end, learnt):
    tokenizer = with_template(TEMPLATE.replace("<|im_end|>\n", written), "<turn|>")
    found = turn_end(tokenizer)
    assert (None if found is None else tokenizer.convert_ids_to_tokens(found)) == end
    assert tokenizer.decode(answer_ids(tokenizer, "Well?", " No <|im_end|> yet. ")) == f" No <|im_end|> yet. {learnt}"
    if end is not None:
        assert found in Generator(tiny_model(), tokenizer).ends


def test_arguments_of_the_template(tmp_path: Path):
    folder = save_tiny_base(tmp_path)
    with_template(THINKING).save_pretrained(folder)
    asked = {args: load_tokenizer(folder, {"enable_thinking": args}) for args in (True, False)}
    assert prompt_ids(asked[True], "Well?") == prompt_ids(load_tokenizer(folder), "Well?")
    assert str(asked[False].decode(prompt_ids(asked[False], "Well?"))).endswith("<think></think>")
    assert asked[False].decode(answer_ids(asked[False], "Well?", "Yes.")) == "Yes.<|im_end|>"
    assert asked[True].decode(answer_ids(asked[True], "Well?", "Yes.")) == "<think></think>Yes.<|im_end|>"


@pytest.mark.parametrize("name", ["enable_thnking", "messages", "tokenize", "add_generation_prompt"])
def test_arguments_that_the_template_does_not_read(name):
    with pytest.raises(UsageError, match="no such arguments") as caught:
        bind_template_args(with_template(THINKING), {name: False})
    assert caught.value.details == (name,)
