"""The study's directions: sycophancy for each seed, by LoRA and by biases alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

import wsmerge
from experiments.smollm2.make_pairs import pick
from experiments.study.settings import Amounts
from wsmerge.registry import Registry
from wsmerge.steering.embedded import EMBEDDED_MODEL
from wsmerge.steering.training import Step

__all__ = [
    "DIRECTIONS",
    "Say",
    "direction_name",
    "direction_settings",
    "train_direction",
    "train_directions",
    "write_rows",
]

Say = Callable[[str], None]

DIRECTIONS: Final = Path(__file__).resolve().parents[2] / "directions"
RANK: Final = 32
"""The paper's."""
ALPHA: Final = 32
BATCH: Final = 8
RATES: Final = {"lora": 1e-3, "bias": 1e-2}
"""The paper's 1e-5 is for 7 B parameters; this model hardly moves in so few steps of that."""


def direction_name(seed: int, *, bias: bool = False) -> str:
    """What a direction is called in the study's store."""
    return f"sycophancy-{'bias-' if bias else ''}{seed}"


def write_rows(out: Path, amounts: Amounts) -> None:
    """Write the rows that each seed is trained on: so many of the bundled direction's, picked by hash."""
    lines = (DIRECTIONS / "sycophancy" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    for seed in amounts.seeds:
        drawn = pick(lines, amounts.rows, "sycophancy", str(seed))
        _write(rows_file(out, seed), drawn)


def rows_file(out: Path, seed: int) -> Path:
    """Where the training rows of a seed are."""
    return out / "data" / f"train-{seed}.jsonl"


def train_directions(out: Path, base: Path, store: Registry, amounts: Amounts, say: Say) -> None:
    """Train and publish what is not in the store."""
    write_rows(out, amounts)
    for seed in amounts.seeds:
        for bias in (False, True):
            settings = direction_settings(direction_name(seed, bias=bias), seed, amounts, bias=bias)
            train_direction(out, base, store, settings, say)


def train_direction(out: Path, base: Path, store: Registry, settings: Mapping[str, Any], say: Say) -> None:
    """Train and publish a direction that is not in the store."""
    name = settings["name"]
    if name in {entry.name for entry in store.list()}:
        return
    folder = out / "directions" / name
    file = folder.with_suffix(".yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump({**settings}, sort_keys=False))
    say(f"training {name}")
    with wsmerge.train(file, out=folder, base=base, to=store, resume=True, progress=_told(say)):
        pass


def direction_settings(name: str, seed: int, amounts: Amounts, *, bias: bool = False) -> dict[str, Any]:
    """How a direction is trained; the rows and the behaviour are those of sycophancy."""
    method = {"method": "bias", "add_biases": True} if bias else {"rank": RANK, "alpha": ALPHA, "dtype": "bfloat16"}
    return {
        "name": name,
        "behaviour": "Agrees with what the user claims, true or false.",
        "base": EMBEDDED_MODEL,
        "train": f"../data/train-{seed}.jsonl",
        "steps": amounts.steps,
        "batch_size": BATCH,
        "learning_rate": RATES["bias" if bias else "lora"],
        "seed": seed,
        **method,
    }


def _told(say: Say) -> Callable[[Step], None]:
    """Tell of every eighth step, and of the last."""

    def told(step: Step) -> None:
        if step.step % 8 == 0 or step.step == step.steps:
            say(
                f"  {step.pole}: step {step.step} of {step.steps}, loss {step.loss:.3f}, {step.seconds_left:.0f} s left"
            )

    return told


def _write(path: Path, lines: Sequence[str]) -> None:
    """Write a file that is not there; a process beside this one may be reading what is."""
    text = "".join(f"{line}\n" for line in lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
