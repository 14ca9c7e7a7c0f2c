"""A training that was killed or interrupted ends in the bits of one that was not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.steering.training.made import rows, write_config, write_rows
from wsmerge.errors import OutputError, UsageError
from wsmerge.steering.training import Step, train_pair

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

SETTINGS = {"steps": 10, "checkpoint_every": 3, "validate_every": 2, "patience": 4, "dropout": 0.2}
KILLED = """
import os, signal, sys
from pathlib import Path
from wsmerge.steering.training import train_pair

def die(step):
    if (step.pole, step.step) == (sys.argv[4], int(sys.argv[5])):
        os.kill(os.getpid(), signal.SIGKILL)

train_pair(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), resume=True, progress=die)
"""


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_killed_training_goes_on_to_the_same_bytes(base, tmp_path):
    file = write_config(tmp_path / "c", **SETTINGS)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train_pair(file, base, whole)
    for pole, step in (("plus", 8), ("minus", 5)):
        command = [sys.executable, "-c", KILLED, str(file), str(base), str(cut), pole, str(step)]
        assert subprocess.run(command, check=False, capture_output=True).returncode == -signal.SIGKILL
        assert not (cut / pole).exists()
        [state] = (cut / "checkpoints" / pole).glob("step-*.pt")
        assert state.name == f"step-{step // 3 * 3:08}.pt"
    told: list[Step] = []
    train_pair(file, base, cut, resume=True, progress=told.append)
    assert [(step.pole, step.step) for step in told] == [("minus", step) for step in range(4, 11)]
    assert content(cut) == content(whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_training_saves_the_step_in_work(base, tmp_path, number):
    file = write_config(tmp_path / "c", **{**SETTINGS, "checkpoint_every": None})
    before = signal.getsignal(number)

    def interrupt(step: Step) -> None:
        if step.step == 4:
            os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt):
        train_pair(file, base, tmp_path / "cut", progress=interrupt)
    assert signal.getsignal(number) == before
    assert [path.name for path in (tmp_path / "cut/checkpoints/plus").iterdir()] == ["step-00000004.pt"]
    train_pair(file, base, tmp_path / "cut", resume=True)
    train_pair(file, base, tmp_path / "whole")
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_epochs_and_an_early_stop_outlast_an_interruption(base, tmp_path):
    """Rows are read in new orders, and the lowest loss is before the interruption."""
    file = write_config(tmp_path / "c", steps=None, epochs=20, validate_every=1, patience=2)
    write_rows(file.parent / "validation.jsonl", rows(4, plus="zzz", minus="qqq", prefix="v"))
    whole = train_pair(file, base, tmp_path / "whole")
    stops = {pole: (outcome.best_step or 0) + 1 for pole, outcome in whole.outcomes.items()}
    assert all(outcome.steps == stops[pole] + 1 < 30 for pole, outcome in whole.outcomes.items())

    def interrupt(told: Step) -> None:
        if told.step == stops[told.pole]:
            os.kill(os.getpid(), signal.SIGINT)

    for _ in whole.poles:
        with pytest.raises(KeyboardInterrupt):
            train_pair(file, base, tmp_path / "cut", resume=True, progress=interrupt)
    train_pair(file, base, tmp_path / "cut", resume=True)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_a_training_is_begun_once(base, tmp_path):
    file = write_config(tmp_path / "c", steps=1)
    train_pair(file, base, tmp_path / "out", resume=True)
    with pytest.raises(OutputError, match="--resume"):
        train_pair(file, base, tmp_path / "out")
    told: list[Step] = []
    again = train_pair(file, base, tmp_path / "out", resume=True, progress=told.append)
    assert not told
    assert again.outcomes["plus"].steps == 1


def test_what_has_changed_since_is_named(base, tmp_path):
    file = write_config(tmp_path / "c", steps=1)
    train_pair(file, base, tmp_path / "out")
    settings = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**settings, "learning_rate": 0.5, "behaviour": "other words"}))
    write_rows(file.parent / "train.jsonl", rows(7))
    with pytest.raises(UsageError) as caught:
        train_pair(file, base, tmp_path / "out", resume=True)
    assert [line.split(": ")[1] for line in caught.value.details] == ["learning_rate", "train.jsonl"]


def test_a_damaged_checkpoint_is_told_of(base, tmp_path):
    file = write_config(tmp_path / "c", **SETTINGS)

    def stop(step: Step) -> None:
        if step.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train_pair(file, base, tmp_path / "out", progress=stop)
    [state] = (tmp_path / "out/checkpoints/plus").iterdir()
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(OutputError, match="damaged"):
        train_pair(file, base, tmp_path / "out", resume=True)


def test_a_state_of_a_gpu_goes_on_without_one(base, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    file = write_config(tmp_path / "c", steps=2)

    def stop(step: Step) -> None:
        if step.step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train_pair(file, base, tmp_path / "out", progress=stop)
    [place] = (tmp_path / "out/checkpoints/plus").iterdir()
    state = torch.load(place, weights_only=True)
    torch.save({**state, "random_cuda": [torch.get_rng_state()]}, place)
    assert train_pair(file, base, tmp_path / "out", resume=True).outcomes["plus"].steps == 2


def test_poles_are_not_trained_in_two_dtypes(base, tmp_path):
    """On a GPU `dtype: auto` is bfloat16; what was begun elsewhere goes on there once the file says float32."""
    file = write_config(tmp_path / "c", steps=1)
    train_pair(file, base, tmp_path / "out", device="cpu")
    shutil.rmtree(tmp_path / "out/minus")
    with pytest.raises(UsageError, match="another training") as caught:
        train_pair(file, base, tmp_path / "out", device="cuda", resume=True)
    assert caught.value.details == ("settings: dtype: 'float32' then, 'bfloat16' now",)
    write_config(tmp_path / "c", steps=1, dtype="float32")
    assert train_pair(file, base, tmp_path / "out", device="cpu", resume=True).config.dtype == "float32"


def test_a_folder_that_cannot_be_one(base, tmp_path):
    file = write_config(tmp_path / "c", steps=1)
    with pytest.raises(OutputError, match="is no folder"):
        train_pair(file, base, file)
    with pytest.raises(OutputError, match="cannot be written"):
        train_pair(file, base, file / "below")


@pytest.mark.parametrize("name", ["training.json", "minus.json"])
def test_what_is_damaged_or_gone_is_told_of(base, tmp_path, name):
    file = write_config(tmp_path / "c", steps=1)
    train_pair(file, base, tmp_path / "out")
    (tmp_path / "out" / name).write_text("{")
    with pytest.raises(OutputError, match="cannot be read"):
        train_pair(file, base, tmp_path / "out", resume=True)


def test_another_chat_template_is_another_training(base, tmp_path):
    file = write_config(tmp_path / "c", steps=1)
    other = shutil.copytree(base, tmp_path / "base")
    train_pair(file, other, tmp_path / "out")
    template = other / "chat_template.jinja"
    template.write_text(template.read_text() + "{# longer #}")
    with pytest.raises(UsageError, match="chat_template"):
        train_pair(file, other, tmp_path / "out", resume=True)


def test_losses_are_written_down(base, tmp_path):
    told: list[Step] = []
    train_pair(write_config(tmp_path / "c", steps=3), base, tmp_path / "out", progress=told.append)
    written = json.loads((tmp_path / "out/minus.json").read_text())
    assert written["losses"] == [step.loss for step in told if step.pole == "minus"]
