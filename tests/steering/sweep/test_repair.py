"""A repair by strengths of equal divergence, judged by the test of hints: by naive references, and after a kill."""

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import wsmerge
from tests.builders import make_adapter
from tests.steering.sweep.test_controls import divergences
from tests.steering.sweep.test_hints import FILES, naive_margin, write_facts
from tests.steering.sweep.test_hints import WORDINGS as TEXTS
from tests.steering.sweep.test_sweep import SHAPES
from tests.steering.tiny import save_tiny_base, tiny_tokenizer
from wsmerge.api import sweeping
from wsmerge.registry import open_direction_folder
from wsmerge.steering.baselines import Subject
from wsmerge.steering.facts import CONDITIONS, load_facts, load_wordings
from wsmerge.steering.held import Steering
from wsmerge.steering.similarity.nulls import NullDirection
from wsmerge.steering.sweep.journal import PointKey
from wsmerge.steering.sweep.results import BASE, FINE_TUNE, SweepResult

LEVELS = (0.02, 2.0)
PASSAGES = ("The river is long.", "Bread is made of flour.", "It rained.", "Trains leave every hour.")
WEIGHTS, RANDOM = "weights", "weights, random 1"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("repair")
    base = save_tiny_base(folder / "base")
    for seed, name in ((0, "plus"), (1, "minus"), (0, "tuned")):
        make_adapter(folder / name, SHAPES, seed=seed, scale=0.3)
    positive, negative = folder / "plus", folder / "minus"
    wsmerge.extract("agrees", base=base, positive=positive, negative=negative, to=folder / "direction").close()
    wsmerge.extract("tuned", base=base, positive=folder / "tuned", to=folder / "tuned-direction").close()
    for name, count, start in (
        ("validation", 100, 0),
        ("test", 20, 100),
        ("words-validation", 8, 200),
        ("words-test", 20, 300),
    ):
        write_facts(folder / f"{name}.jsonl", count, start)
    (folder / "wordings.yaml").write_text(json.dumps({split: texts[:1] for split, texts in TEXTS.items()}))
    (folder / "neutral.txt").write_text("\n\n".join(PASSAGES))
    return folder


def run(lab: Path, out: Path) -> SweepResult:
    words = {split: f"words-{split}.jsonl" for split in ("validation", "test")}
    fields = {
        "base": "base",
        "repair": {"model": "tuned"},
        "k": {"kl": LEVELS, "signs": "both"},
        "methods": [
            {"label": WEIGHTS, "weights": "./direction"},
            {"label": "prompt", "system_prompt": {"plus": "Agree.", "minus": "No!"}},
        ],
        "measures": {
            "facts": {"role": "behaviour", "hints": FILES},
            "task": {"role": "behaviour", "hints": {**FILES, **words}},
        },
        "pick": {"measure": "facts", "aim": "restore", "capability_drop": 100},
        "controls": {"draws": 1, "seed": 5, "kinds": ["subspaces"], "text": "neutral.txt"},
    }
    file = lab / "sweep.yaml"
    file.write_text(json.dumps(fields))
    return sweeping.sweep(file, out, plots=False)


@pytest.fixture(scope="module")
def done(lab: Path) -> tuple[SweepResult, Path]:
    return run(lab, lab / "out"), lab / "out"


class ByHand:
    """The base, and the fine-tune with k times a direction, whose answers are read one after another."""

    def __init__(self, lab: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(lab / "base", dtype=torch.float32)
        self._stack = ExitStack()
        direction = self._stack.enter_context(open_direction_folder(lab / "direction"))
        tuned = self._stack.enter_context(open_direction_folder(lab / "tuned-direction"))
        random = NullDirection(direction, seed=5, draw=0, keep_subspaces=True)
        self._steering = self._stack.enter_context(
            Steering(self.model, {FINE_TUNE: tuned, WEIGHTS: direction, RANDOM: random})
        )
        self._lab = lab

    def close(self) -> None:
        self._stack.close()

    @contextmanager
    def at(self, method: str, k: float) -> Iterator[None]:
        weights = {BASE: {}, FINE_TUNE: {FINE_TUNE: 1.0}}.get(method, {FINE_TUNE: 1.0, method: k})
        with self._steering.at(weights):
            yield

    def right(self, method: str, k: float, split: Any = "test", files: str = "") -> np.ndarray:
        """Whether the right answer is preferred: `[conditions, items]`."""
        facts = load_facts(self._lab / f"{files}{split}.jsonl")
        wordings = load_wordings(self._lab / "wordings.yaml")[split]
        with self.at(method, k):
            return np.array(
                [
                    [
                        naive_margin(
                            self.model,
                            wording.prompt(fact, condition),
                            (wording.reply_of(fact, fact.answer), wording.reply_of(fact, fact.wrong)),
                        )
                        > 0
                        for fact in facts
                        for wording in wordings
                    ]
                    for condition in CONDITIONS
                ]
            )

    def main(self, method: str, k: float, split: Any) -> float:
        known = self.right(BASE, 0.0, split)[0]
        return float(self.right(method, k, split)[1][known].mean())


@pytest.fixture(scope="module")
def by_hand(lab: Path) -> Iterator[ByHand]:
    found = ByHand(lab)
    yield found
    found.close()


def test_strengths_have_their_divergence_from_the_fine_tune(by_hand, done):
    result, _ = done
    assert result.notes == ()
    subject = Subject(by_hand.model, tiny_tokenizer())
    for label in (WEIGHTS, RANDOM):
        points = [point for point in result.curve(label, "validation") if point.aimed]
        assert [(math.copysign(1, point.key.strength), point.aimed) for point in points] == [
            (-1, (LEVELS[1],)), (-1, (LEVELS[0],)), (1, (LEVELS[0],)), (1, (LEVELS[1],)),
        ]  # fmt: skip
        for point in points:
            told = point.figures["KL"].value.value
            assert told == pytest.approx(point.aimed[0], rel=0.05)
            with by_hand.at(FINE_TUNE, 0.0):
                changed = partial(by_hand.at, label, point.key.strength)
                assert told == pytest.approx(np.mean(divergences(subject, changed, PASSAGES[::2])), rel=1e-3)


def test_the_items_are_those_that_the_base_knows(by_hand, done):
    result, _ = done
    ks = {label: result.curve(label, "test")[0].key.strength for label in (WEIGHTS, RANDOM)}
    models = {BASE: 0.0, FINE_TUNE: 0.0, **ks}
    for measure, files in (("facts", ""), ("task", "words-")):
        known = by_hand.right(BASE, 0.0, files=files)[0]
        assert (known != by_hand.right(FINE_TUNE, 0.0, files=files)[0]).any()  # else it could be either's
        for label, k in models.items():
            right = by_hand.right(label, k, files=files)
            point = next(one for one in result.points if one.key == PointKey(label, k, "test"))
            assert point.figures[measure].value.value == pytest.approx(right[1][known].mean())
            for row, condition in enumerate(CONDITIONS):
                assert point.figures[f"{measure} {condition}"].value.value == pytest.approx(right[row].mean())


def test_what_is_nearest_to_the_base_is_picked(by_hand, done):
    result, _ = done
    base = by_hand.main(BASE, 0.0, "validation")
    gaps = {0.0: abs(by_hand.main(FINE_TUNE, 0.0, "validation") - base)}
    told = [point for point in result.curve(WEIGHTS, "validation") if point.key.strength != 0]
    clear = [point.key.strength for point in told if point.figures["facts"].change.excludes_zero]
    gaps |= {k: abs(by_hand.main(WEIGHTS, k, "validation") - base) for k in clear}
    picked = next(one for one in result.picks if one.method == WEIGHTS)
    assert picked.strength in clear
    # The largest change overshoots.
    assert picked.change.value < max(point.figures["facts"].change.value for point in told)
    assert gaps[picked.strength] == min(gaps.values())
    assert picked.effect == pytest.approx(gaps[0.0] - gaps[picked.strength])


def test_a_repair_goes_on_after_a_kill(lab, done, tmp_path):
    whole, out = done
    lines = (out / "journal.jsonl").read_bytes().splitlines(keepends=True)
    shutil.copytree(out, tmp_path / "killed")
    (tmp_path / "killed" / "journal.jsonl").write_bytes(b"".join(lines[: len(lines) // 2]))
    again = run(lab, tmp_path / "killed")
    assert [point.key for point in again.points] == [point.key for point in whole.points]
    assert [point.figures for point in again.points] == [point.figures for point in whole.points]
