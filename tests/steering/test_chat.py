"""What chat templates differ in: system messages, arguments, and the end of a turn."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

import wsmerge
from tests.steering.pairs.made import TRAIT
from tests.steering.tiny import TEMPLATE, save_tiny_base, tiny_model, tiny_tokenizer
from tests.steering.training.made import write_config
from wsmerge.cli.app import app
from wsmerge.errors import UsageError
from wsmerge.steering.chat import answer_ids, bind_template_args, conversation_ids, prompt_ids, takes_system, turn_end
from wsmerge.steering.evaluation import generate
from wsmerge.steering.generation import Generator
from wsmerge.steering.loading import load_model, load_tokenizer

PROMPT = "Is it so?"
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
    assert not takes_system(tokenizer)
    text = tokenizer.decode(conversation_ids(tokenizer, [{"role": role, "content": said} for role, said in turns]))
    assert text.index("Be kind.") < text.index("a<|im_end|>")
    assert text.count("Be kind.") == text.count("<|im_start|>user\nBe kind.") == 1


def test_a_template_that_takes_system_messages_gets_them():
    assert takes_system(tiny_tokenizer())
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


def test_a_turn_may_end_with_what_the_next_one_begins_with():
    template = (
        "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    tokenizer = with_template(template, "<|user|>", "<|assistant|>")
    assert tokenizer.convert_ids_to_tokens(turn_end(tokenizer) or 0) == "<|user|>"
    assert tokenizer.decode(prompt_ids(tokenizer, "Well?")) == "<|user|>\nWell?<|assistant|>\n"
    assert tokenizer.decode(answer_ids(tokenizer, "Well?", "Yes.")) == "Yes.<|user|>"
    assert turn_end(tokenizer) in Generator(tiny_model(), tokenizer).ends


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


@pytest.fixture
def thinking(tmp_path: Path) -> Path:
    folder = save_tiny_base(tmp_path / "base")
    with_template(THINKING).save_pretrained(folder)
    return folder


def unthinking(base: Path) -> list[str]:
    """What the base answers where the prompt always ends as the template ends it with `enable_thinking: false`."""
    tokenizer = with_template(THINKING.replace("enable_thinking is defined and not enable_thinking", "true"))
    return generate(load_model(base), tokenizer, [PROMPT], max_new_tokens=6)


def test_every_command_takes_arguments_of_the_template_and_records_them(thinking, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = {"enable_thinking": False}
    options = wsmerge.AnswerOptions(max_new_tokens=6, template_args=args)
    [found] = wsmerge.answers(str(thinking), {}, [PROMPT], options=options)
    assert list(found.texts) == unthinking(thinking)
    assert list(found.texts) != [next(iter(wsmerge.answers(str(thinking), {}, [PROMPT]))).texts[0]]
    with wsmerge.chat(thinking, {}, template_args=args, options=wsmerge.ChatOptions(max_new_tokens=6)) as conversation:
        assert conversation.answer(PROMPT, lambda _: None) == found.texts[0]
    done = CliRunner().invoke(
        app,
        ["steer", str(thinking), PROMPT, "--template-arg", "enable_thinking=false", "--max-new-tokens", "6", "--json"],
    )
    assert json.loads(done.stdout)[0]["answer"] == found.texts[0]

    write_config(tmp_path / "training", steps=1, template_args=args)
    told: list[str] = []  # a step changes little
    with wsmerge.train(
        tmp_path / "training/train.yaml", base=thinking, to=tmp_path / "direction", warn=told.append
    ) as direction:
        assert all(pole.training["template_args"] == args for pole in direction.manifest.poles)
    (tmp_path / "trait.yaml").write_text(yaml.safe_dump({**TRAIT, "samples": 1, "template_args": args}))
    made = wsmerge.make_pairs("trait.yaml", "pairs", model=thinking)
    assert made.report["trait"]["template_args"] == args
    (tmp_path / "trait.yaml").write_text(yaml.safe_dump({**TRAIT, "samples": 1}))
    with pytest.raises(UsageError, match="other settings"):
        wsmerge.make_pairs("trait.yaml", "pairs", model=thinking)

    answers = {"validation": "p.jsonl", "test": "p.jsonl", "score": {"regex": f"^{re.escape(found.texts[0])}$"}}
    (tmp_path / "p.jsonl").write_text(json.dumps({"id": "p", "prompt": PROMPT}))
    fields = {
        "base": str(thinking),
        "template_args": args,
        "methods": [{"system_prompt": {"plus": "a", "minus": "b"}}],
        "measures": {"same": {"role": "behaviour", "answers": {**answers, "max_new_tokens": 6}}},
    }
    result = wsmerge.sweep(fields, tmp_path / "out", plots=False)
    assert {point.figures["same"].value.value for point in result.points if point.key.method == "base"} == {1}
    assert json.loads((tmp_path / "out/sweep.json").read_text())["settings"]["template_args"] == args
