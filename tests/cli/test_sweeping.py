"""`wsmerge chat` over a pipe, and `wsmerge sweep`."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.tiny_lab import save_tiny_lab
from tests.steering.sweep.test_sweep import write_pairs

FILES = {"validation": "validation.jsonl", "test": "test.jsonl"}


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Path:
    folder = save_tiny_lab(tmp_path_factory.mktemp("lab"))
    write_pairs(folder / "validation.jsonl", 6, 0)
    write_pairs(folder / "test.jsonl", 6, 10)
    return folder


@pytest.fixture
def chat(lab, wsmerge, monkeypatch):
    def run(*lines: str, k: str = "-1.5", options: tuple[str, ...] = ()):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        direction = f"{lab / 'direction'}={k}"
        return wsmerge(
            "chat", lab / "base", "--direction", direction, "--max-new-tokens", 5, "--device", "cpu", *options
        )

    return run


def test_a_chat_over_a_pipe(chat):
    steered = chat("Is it?")
    assert steered.code == 0
    assert steered.err.split() == ["cut", "after", "5", "tokens;", "--max-new-tokens", "sets", "where"]
    plain = chat("Is it?", k="0")
    assert steered.out != plain.out
    both = chat("Is it?", "/base")
    assert both.out == steered.out + plain.out
    assert "\x1b" not in both.out


def test_coefficients_change_live(chat):
    done = chat("/k direction 0", "Is it?", "/k", "/k direction -1.5", "/reset", "Is it?", "/quit", "Is it?")
    assert done.out == chat("Is it?", k="0").out + chat("Is it?").out
    shown = [line.rpartition("direction: ")[2] for line in done.err.splitlines() if "direction: " in line]
    assert shown == ["k = 0", "k = 0", "k = -1.5"]


def test_a_command_that_fails_does_not_end_the_chat(chat):
    done = chat("/base", "/k nothing 1", "/k direction much", "/frobnicate", "/k 3", "/help", "Is it?")
    assert done.code == 0
    assert done.out == chat("Is it?").out
    for told in (
        "no message to answer",
        "no direction of this name",
        "'much' is no number",
        "no such command",
        "/base",
    ):
        assert told in done.err


def test_a_chat_that_cannot_begin(chat, wsmerge, lab):
    assert chat("Is it?", k="much").code == 2
    done = wsmerge("chat", lab / "base", "--dtype", "int8")
    assert done.code == 2
    assert "one of: auto" in done.err


def sweep_file(lab: Path) -> Path:
    path = lab / "tiny.yaml"
    fields = {
        "base": "base",
        "k": [-1, 1],
        "methods": [{"weights": "./direction", "label": "weights"}, {"system_prompt": {"plus": "a", "minus": "b"}}],
        "measures": {
            "agrees": {"role": "behaviour", "choice": {**FILES, "value": "margin"}},
            "false claims": {"role": "capability", "choice": {**FILES, "claim": "false"}},
        },
        "pick": {"measure": "agrees", "aim": "decrease", "capability_drop": 100},
    }
    path.write_text(json.dumps(fields))
    return path


def test_a_sweep_tells_of_every_point_and_of_the_pick(lab, wsmerge):
    done = wsmerge("sweep", sweep_file(lab))
    assert done.code == 0
    for told in ("weights", "system prompt", "agrees", "false claims", "within budget", "picked on validation"):
        assert told in done.out
    assert done.err.count("validation") == 5 + 3 * 2  # three random directions at two strengths
    assert ("at equal cost" in done.out) == bool(json.loads((lab / "tiny/sweep.json").read_text())["comparisons"])
    again = wsmerge("sweep", sweep_file(lab), "--json")
    assert "validation" not in again.err  # nothing was measured again
    told = json.loads(again.out)
    assert told == json.loads((lab / "tiny/sweep.json").read_text())
    random = {f"weights, random {number}" for number in (1, 2, 3)}
    assert {picked["method"] for picked in told["picks"]} == {"weights", "system prompt", *random}


def test_a_bad_sweep_file_is_a_usage_error(lab, wsmerge):
    path = lab / "bad.yaml"
    path.write_text("bas: x\nmethods: []\n")
    done = wsmerge("sweep", path)
    assert done.code == 2
    for told in ("did you mean 'base'", "methods: is empty", "measures: missing key"):
        assert told in done.err
    assert not (lab / "bad").exists()


def test_code_that_a_sweep_file_asks_for_has_to_be_allowed(lab, wsmerge, monkeypatch):
    monkeypatch.chdir(lab)
    (lab / "scores.py").write_text("def long(prompt, answer):\n    return len(answer)\n")
    answers = {**FILES, "score": {"function": "scores:long"}, "max_new_tokens": 3}
    fields = {
        "base": "base",
        "methods": [{"system_prompt": {"plus": "a", "minus": "b"}}],
        "measures": {"long": {"role": "behaviour", "answers": answers}},
    }
    (lab / "own.yaml").write_text(json.dumps(fields))
    done = wsmerge("sweep", lab / "own.yaml")
    assert done.code == 2
    assert "--allow-code scores" in done.err
    assert not (lab / "own").exists()
    done = wsmerge("sweep", lab / "own.yaml", "--allow-code", "scores")
    assert done.code == 0, done.err
    assert "long cut" in done.out


def test_help_of_both_loads_nothing_heavy():
    code = (
        "import sys\nfrom wsmerge.cli import main\n"
        "for command in ('chat', 'sweep'):\n"
        "    sys.argv = ['wsmerge', command, '--help']\n"
        "    try: main()\n    except SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
