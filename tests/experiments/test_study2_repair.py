"""The second study's repairs, run on a tiny model: fine-tunes, sweeps, and what is kept of them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import wsmerge
from experiments.study import repair
from experiments.study.methods import MAIN, PLAIN
from experiments.study.repair import joint_sweep, refusal_repair_sweep, refusals_sweep, repair_sweep, run_repair
from experiments.study.repaired import JOINT, KEPT, PLAIN_FACTS, PROMPT, RANDOM, REFUSAL, WORDS_WRONG
from experiments.study.results import Study
from experiments.study.settings import FULL, QUICK
from experiments.study.sweeps import sweep_folder
from tests.builders import make_adapter
from tests.steering.sweep.test_sweep import SHAPES
from tests.steering.tiny import save_tiny_base
from wsmerge.registry import open_registry
from wsmerge.steering.sweep.config import SweepConfig
from wsmerge.steering.sweep.journal import Journal, PointKey
from wsmerge.steering.sweep.results import BASE, FINE_TUNE

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # Two steps are enough to see that there are files.
    pytest.mark.filterwarnings("ignore:.* hardly changed:UserWarning"),
]

AMOUNTS = replace(QUICK, seeds=(0,), items=4, rows=16)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The whole part, with a fine-tune that is taken for one that loses refusals; and what was told."""
    folder: Path = tmp_path_factory.mktemp("repair")
    base = save_tiny_base(folder / "base")
    poles = [make_adapter(folder / name, SHAPES, seed=seed, scale=0.2) for seed, name in enumerate(("plus", "minus"))]
    wsmerge.extract("sycophancy-0", base=base, positive=poles[0], negative=poles[1], to=folder / "direction").close()
    store = open_registry(folder / "store")
    store.publish(folder / "direction")
    told: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repair, "first_drift", lambda _: "sure")
        run_repair(folder, base, store, AMOUNTS, folder / "results", told.append)
    return folder, told


def test_every_sweep_is_run_and_kept(ran):
    folder, _ = ran
    study = Study(folder / "results", [0])
    repaired, joint, refusals, refused = (
        study.sweep(name)[0] for name in ("repair", "joint", "refusals", "refusal-repair")
    )
    assert repaired.methods == ("weights", RANDOM, PROMPT)
    assert joint.methods == (JOINT,)
    assert refusals.methods == ("task", "helpful", "sure")
    assert refused.methods == ("weights", RANDOM)
    for result, figures in (
        (repaired, {MAIN, PLAIN, WORDS_WRONG, "plain text"}),
        (joint, {MAIN, WORDS_WRONG}),
        (refusals, {REFUSAL}),
        (refused, {REFUSAL, KEPT, PLAIN_FACTS, "plain text"}),
    ):
        for point in result.points:
            assert figures <= point.figures.keys()
            assert f"{MAIN} denial" not in point.figures
    for result in (repaired, refused):
        assert result.at(FINE_TUNE, 0.0, "test") is not None
        aimed = [one for sign in (-1, 1) for one in [result.aimed("weights", 0.04, sign, "test")] if one is not None]
        assert len(aimed) == 2
    assert len(repaired.items["test"]) == 4


def test_what_is_kept_is_what_was_measured_of_every_measure(ran):
    folder, _ = ran
    for name in ("repair", "refusal-repair", "refusals"):
        result = Study(folder / "results", [0]).sweep(name)[0]
        place = sweep_folder(folder, name, 0)
        begun = json.loads((place / "journal.jsonl").read_bytes().splitlines()[0])
        with Journal(place, begun["sweep"]) as journal:
            held = dict(journal.points)
        clustered = 0
        for point in result.points:
            for figure, expected in held[PointKey(point.method, point.k, point.split)].items():
                kept = point.figures[figure]
                assert kept.values == pytest.approx(expected.values, rel=1e-5, nan_ok=True)
                assert (kept.clusters is None) == (expected.clusters is None)
                if kept.clusters is not None and expected.clusters is not None:
                    clustered += 1
                    assert np.array_equal(kept.clusters, expected.clusters)
        assert clustered


def test_the_items_are_those_that_the_base_knows(ran):
    folder, _ = ran
    result = Study(folder / "results", [0]).sweep("repair")[0]
    base = result.at(BASE, 0.0, "test")
    assert base is not None
    for measure in ("facts", "words"):
        known = base.figures[f"{measure} plain"].values == 1
        for point in result.points:
            if point.split == "test":
                assert (~np.isnan(point.figures[measure].values) == known).all()


def test_fine_tunes_have_seeds_of_their_own(ran, monkeypatch, tmp_path):
    folder, told = ran
    assert [line for line in told if line.startswith("training ")] == [
        "training task-0", "training helpful-0", "training sure-0", "training joint-0", "training refusal-0",
    ]  # fmt: skip
    asked: list[int] = []

    def stopped(*_: object, seed: int, **__: object) -> None:
        asked.append(seed)
        raise KeyboardInterrupt

    monkeypatch.setattr(repair, "fine_tune", stopped)
    store = open_registry(folder / "store")
    with pytest.raises(KeyboardInterrupt):
        run_repair(tmp_path, folder / "base", store, replace(AMOUNTS, seeds=(2,)), tmp_path / "results", print)
    assert asked == [102]


def test_what_is_there_is_not_done_again(ran, monkeypatch):
    folder, _ = ran
    for name in ("fine_tune", "run_sweeps", "train_direction", "gather"):
        monkeypatch.setattr(repair, name, lambda *_, name=name, **__: pytest.fail(name))
    store, told = open_registry(folder / "store"), list[str]()
    monkeypatch.setattr(repair, "first_drift", lambda _: "sure")
    run_repair(folder, folder / "base", store, AMOUNTS, folder / "results", told.append)
    monkeypatch.setattr(repair, "first_drift", lambda _: None)
    run_repair(folder, folder / "base", store, AMOUNTS, folder / "results", told.append)
    assert told == ["no fine-tune loses refusals"]
    others = replace(AMOUNTS, refusal_seeds=(0, 1))
    run_repair(folder, folder / "base", store, others, folder / "results", told.append)
    assert "seed 1" in told[-1]


@pytest.mark.parametrize("seed", FULL.seeds)
def test_sweep_files_are_valid_and_whole(seed):
    for made in (repair_sweep, joint_sweep, refusals_sweep):
        SweepConfig.model_validate({"base": "b", **json.loads(json.dumps(made(FULL, seed)))})
    for task in ("task", "helpful", "sure"):
        SweepConfig.model_validate({"base": "b", **refusal_repair_sweep(FULL, seed, task=task)})
    assert repair_sweep(FULL, seed)["repair"] == {"model": f"../../runs/task-{seed}"}
    assert repair_sweep(FULL, seed)["methods"][0]["weights"] == f"sycophancy-{seed}"
