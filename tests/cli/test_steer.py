"""`wsmerge steer` and `wsmerge.answers`: answers at several strengths, with one model."""

import io
import json
import sys
from pathlib import Path

import pytest

import wsmerge as package
from tests.cli.tiny_lab import save_tiny_lab
from wsmerge.errors import UsageError
from wsmerge.steering.evaluation import generate
from wsmerge.steering.loading import chosen_device, load_model, load_tokenizer

PROMPTS = ("Is it?", "What is the matter?")


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Path:
    return save_tiny_lab(tmp_path_factory.mktemp("lab"))


def expected(lab: Path, weight) -> list[str]:
    """What transformers answers with weights that were steered once, in a model of its own."""
    model, tokenizer = load_model(lab / "base", dtype="float32", device="cpu"), load_tokenizer(lab / "base")
    with package.steer(model, {str(lab / "direction"): weight}):
        return generate(model, tokenizer, PROMPTS, max_new_tokens=6)


def test_every_strength_answers_as_a_model_steered_once(lab):
    found = list(
        package.answers(
            str(lab / "base"),
            {str(lab / "direction"): 1.5},
            PROMPTS,
            times=(-1, 0, 1),
            options=package.AnswerOptions(max_new_tokens=6),
        )
    )
    assert [one.times for one in found] == [-1, 0, 1]
    assert [list(one.texts) for one in found] == [expected(lab, k) for k in (-1.5, 0, 1.5)]
    assert len({one.texts for one in found}) == 3


def test_the_command_takes_coefficients_by_layer(lab, wsmerge):
    weight = "{1: -3.0}"
    done = wsmerge(
        "steer", lab / "base", *PROMPTS, "-d", f"{lab / 'direction'}={weight}", "--max-new-tokens", 6, "--json"
    )
    assert done.code == 0
    rows = json.loads(done.out)
    assert [row["prompt"] for row in rows] == list(PROMPTS)
    assert [row["answer"] for row in rows] == expected(lab, {1: -3.0})
    assert expected(lab, {1: -3.0}) != expected(lab, -3.0)


def test_prompts_come_from_a_file_or_from_stdin(lab, wsmerge, tmp_path, monkeypatch):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"id": str(n), "prompt": text}) + "\n" for n, text in enumerate(PROMPTS)))
    direction = ("-d", f"{lab / 'direction'}=1", "--max-new-tokens", 3)
    from_file = wsmerge("steer", lab / "base", "--prompts", file, *direction)
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(PROMPTS)))
    from_stdin = wsmerge("steer", lab / "base", *direction)
    assert from_file.code == from_stdin.code == 0
    assert from_file.out == from_stdin.out
    assert all(f"[times 1] {text}" in from_file.out for text in PROMPTS)


@pytest.mark.parametrize(
    ("direction", "told"),
    [("direction", "no coefficient"), ("direction={", "is no coefficient"), ("direction=much", "not a weight")],
)
def test_coefficients_that_are_none(lab, wsmerge, direction, told):
    done = wsmerge("steer", lab / "base", "Is it?", "-d", f"{lab}/{direction}")
    assert done.code in (1, 2)
    assert told in done.err


@pytest.mark.parametrize(
    ("argument", "told"),
    [("enable_thinking=false", "no such arguments"), ("enable_thinking", "write --template-arg"), ("a={", "write")],
)
@pytest.mark.parametrize("command", ["steer", "chat"])
def test_arguments_that_no_template_reads(lab, wsmerge, monkeypatch, command, argument, told):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Is it?\n"))
    done = wsmerge(command, lab / "base", "--template-arg", argument)
    assert done.code == 2
    assert told in " ".join(done.err.split())


def test_nothing_to_answer(lab):
    with pytest.raises(UsageError, match="no prompt"):
        next(package.answers(str(lab / "base"), {}, ()))


@pytest.mark.parametrize("command", ["steer", "chat"])
def test_input_that_is_no_text_is_refused_by_line(lab, wsmerge, monkeypatch, command):
    lines = io.BytesIO("Is it?\nh\u00e9llo\n".encode("latin-1") + b"Is it?\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(lines, encoding="utf-8"))
    done = wsmerge(command, lab / "base", "-d", f"{lab / 'direction'}=1", "--max-new-tokens", 3)
    assert "character 2 of the message is no Unicode character" in done.err
    # A chat goes on with the next line.
    assert done.code == (2 if command == "steer" else 0)
    assert bool(done.out) == (command == "chat")


@pytest.mark.parametrize("command", ["steer", "chat"])
def test_no_input_at_all(lab, wsmerge, monkeypatch, command):
    monkeypatch.setattr(sys, "stdin", None)  # as Python has it where the stream was closed
    done = wsmerge(command, lab / "base")
    assert done.code == (2 if command == "steer" else 0)
    assert not done.out


@pytest.mark.parametrize(
    "option", [("-t", "nan"), ("--system", "h\udce9llo"), ("--device", "gpu"), ("--dtype", "int8"), ("-t", "inf")]
)
def test_what_the_command_line_cannot_mean(lab, wsmerge, option):
    done = wsmerge("steer", lab / "base", "Is it?", *option)
    assert done.code == 2
    assert done.err.count("\n") <= 4


@pytest.mark.parametrize("settings", [{"temperature": float("nan")}, {"seed": -1}, {"max_new_tokens": 0}])
def test_settings_of_a_chat_that_mean_nothing(settings):
    with pytest.raises(UsageError, match="temperature"):
        package.ChatOptions(**settings)


def test_the_device_that_was_chosen_is_told(lab, wsmerge):
    done = wsmerge("steer", lab / "base", "Is it?", "--max-new-tokens", 1)
    assert (done.code, done.err.splitlines()[0]) == (0, f"device: {chosen_device('auto')}")
    done = wsmerge("steer", lab / "base", "Is it?", "--max-new-tokens", 1, "--device", "cpu")
    assert done.code == 0
    assert "device" not in done.err
