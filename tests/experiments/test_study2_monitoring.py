"""Fine-tunes that are watched, and what their readings tell, against loops over all of it."""

import json
import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from experiments.study import monitoring
from experiments.study.monitoring import OTHERS, monitor_runs, monitoring_file
from experiments.study.runs import CLEAN, CONTAMINATED, HONEST, KINDS, MOST, TASKS
from experiments.study.settings import Amounts
from experiments.study.watched import TRAITS, WATCHED, Watched, load_readings, monitoring_section, told_apart
from tests.sources import identity, random_direction
from tests.steering.tiny import save_tiny_base
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.errors import UsageError
from wsmerge.registry import About, open_registry, write_direction
from wsmerge.steering.similarity.auroc import auroc_interval

SMALL = Amounts(seeds=(0, 1), runs=1, run_rows=10, run_steps=2)
SEEDS = range(5)


@pytest.fixture(scope="module")
def monitored(tmp_path_factory):
    """Runs on a tiny model, their results, the dense directions, and what was said."""
    folder = tmp_path_factory.mktemp("monitored")
    base = save_tiny_base(folder / "base")
    with Checkpoint(base) as checkpoint:
        shapes = {name: spec.shape for name, spec in checkpoint.specs.items()}
        tied = checkpoint.tied
    linear = {name: shape for name, shape in shapes.items() if "_proj" in name}
    store = open_registry(folder / "store")
    dense = {}
    for number, name in enumerate(("sycophancy-0", "sycophancy-1", *OTHERS)):
        direction = random_direction(linear, rank=3, seed=number, label=name)
        direction.base = identity(shapes, tied=tied)
        write_direction(folder / name, direction, About(name=name, kind="contrastive")).close()
        if name not in OTHERS:
            store.publish(folder / name)
        dense[name] = {tensor: delta.dense() for tensor, delta in direction.deltas.items()}
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(monitoring, "DIRECTIONS", folder)
        monitor_runs(folder, base, store, SMALL, folder / "results", said.append)
        again: list[str] = []
        monitor_runs(folder, base, store, SMALL, folder / "results", again.append)
    assert again == []
    return folder, dense, said


pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def update_of(adapter):
    """B A of each tensor; alpha is the rank."""
    held = load_file(adapter / "adapter_model.safetensors")
    return {
        name.removeprefix("base_model.model.").replace("lora_A.", ""): held[name.replace("lora_A", "lora_B")].astype(
            np.float64
        )
        @ a.astype(np.float64)
        for name, a in held.items()
        if "lora_A" in name
    }


def test_readings_are_cosines_of_the_adapters(monitored):
    folder, dense, said = monitored
    told = json.loads(monitoring_file(folder / "results").read_bytes())
    assert (told["rows"], told["steps"], list(told["digests"])) == (10, 2, ["sycophancy-0", "sycophancy-1", *OTHERS])
    assert [(run["task"], run["percent"], run["honest"], run["number"]) for run in told["runs"]] == [
        (task, percent, honest, 0)
        for task in TASKS
        for percent, honest in ((0, False), (10, False), (30, False), (30, True))
    ]
    assert said.count("monitoring") == 1
    assert sum(line.startswith("training ") for line in said) == 8
    for run in told["runs"]:
        update = update_of(folder / "runs" / f"{run['task']}-{'honest' if run['honest'] else run['percent']}-0")
        norm = math.sqrt(sum((delta**2).sum() for delta in update.values()))
        assert run["update_norm"] == pytest.approx(norm, rel=1e-5)
        for name, direction in dense.items():
            inner = sum((direction[tensor] * delta).sum() for tensor, delta in update.items())
            size = math.sqrt(sum((delta**2).sum() for delta in direction.values()))
            assert run["cosines"][name] == pytest.approx(inner / (norm * size), rel=1e-4, abs=1e-8)
            assert 0 < run["bands"][name] < 1
    assert len({run["seed"] for run in told["runs"]}) == 8


def test_nothing_is_trained_without_directions(monitored, tmp_path):
    folder, _, _ = monitored
    said: list[str] = []
    with pytest.raises(UsageError, match="no sycophancy-2 to watch for"):
        monitor_runs(
            tmp_path,
            folder / "base",
            open_registry(folder / "store"),
            replace(SMALL, seeds=(0, 1, 2)),
            tmp_path,
            said.append,
        )
    assert said == []


def test_a_reading_is_the_mean_over_seeds(monitored):
    folder, _, _ = monitored
    file = monitoring_file(folder / "results")
    readings = load_readings(file)
    assert len(readings) == 8 * len(TRAITS)
    for place, run in enumerate(json.loads(file.read_bytes())["runs"]):
        mine, *others = readings[len(TRAITS) * place :][: len(TRAITS)]
        assert {one.kind for one in (mine, *others)} == {KINDS[place % 4]}
        cosines, bands = ([run[field][f"sycophancy-{seed}"] for seed in (0, 1)] for field in ("cosines", "bands"))
        assert mine.cosine == pytest.approx(sum(cosines) / 2)
        assert mine.band == pytest.approx(math.sqrt(bands[0] ** 2 + bands[1] ** 2) / 2)
        assert [(one.trait, one.cosine, one.band) for one in others] == [
            (name, run["cosines"][name], run["bands"][name]) for name in OTHERS
        ]


def rise(by):
    """Levels of clean runs, both contaminated kinds and honest runs, of a trait that rises with sycophancy."""
    return 0.0, by / 3, by, 0.0


def write_readings(file, levels, *, elsewhere=None, spread=0.01, apart=0.01, runs=6):
    """Readings of made-up runs at the levels of each trait, on the second task those of `elsewhere`; tasks are `apart`."""
    drawn = np.random.default_rng(3)
    rows = []
    for task in TASKS:
        here = levels if elsewhere is None or task == TASKS[0] else elsewhere
        for place, kind in enumerate(KINDS):
            for number in range(runs):
                row: dict[str, Any] = {
                    "task": task,
                    "percent": kind.percent,
                    "honest": kind == HONEST,
                    "number": number,
                }
                values = {
                    trait: here.get(trait, rise(0))[place] + spread * drawn.normal() + apart * TASKS.index(task)
                    for trait in TRAITS
                }
                seeds = {f"{WATCHED}-{seed}": values[WATCHED] + 0.001 * (seed - 2) for seed in SEEDS}
                row["cosines"] = {**seeds, **{name: values[name] for name in OTHERS}}
                row["bands"] = dict.fromkeys(row["cosines"], 0.01)
                rows.append(row)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"rows": 128, "steps": 16, "digests": {}, "runs": rows}))
    return rows


def values_of(rows, trait, task, kind):
    """By the rows themselves."""
    names = [f"{WATCHED}-{seed}" for seed in SEEDS] if trait == WATCHED else [trait]
    return [
        sum(row["cosines"][name] for name in names) / len(names)
        for row in rows
        if row["task"] == task and (row["percent"], row["honest"]) == (kind.percent, kind == HONEST)
    ]


@pytest.mark.parametrize("trait", TRAITS)
@pytest.mark.parametrize(("task", "other"), [TASKS, TASKS[::-1]])
def test_a_threshold_is_of_the_other_task(tmp_path, trait, task, other):
    levels = {WATCHED: rise(0.03), "caution": (0.0, 0.01, 0.02, 0.02), "formality": (0.0, 0.0, 0.0, -0.01)}
    rows = write_readings(tmp_path / "m.json", levels)
    one = Watched.of(load_readings(tmp_path / "m.json"), trait, task)
    threshold = max(values_of(rows, trait, other, CLEAN))
    assert one.threshold == pytest.approx(threshold)
    told = 0
    for kind in KINDS:
        values = values_of(rows, trait, task, kind)
        above = len([value for value in values if value > threshold])
        assert one.above(kind) == above
        told += above if kind in CONTAMINATED else len(values) - above
        band = 1.96 * 0.01 / (math.sqrt(5) if trait == WATCHED else 1)
        assert one.beyond(kind) == len([value for value in values if value > band])
        for against in (CLEAN, HONEST):
            others = values_of(rows, trait, task, against)
            wins = [(high > low) + (high == low) / 2 for high in values for low in others]
            assert one.auroc(kind, against).value == pytest.approx(sum(wins) / len(wins))
            assert one.auroc(kind, against) == auroc_interval(values, others)
    assert one.told == told


def test_of_a_control_the_sign_that_tells_more_is_taken(tmp_path):
    write_readings(tmp_path / "m.json", {WATCHED: rise(-0.2), "formality": rise(-0.2)})
    readings = load_readings(tmp_path / "m.json")
    assert told_apart(readings, "formality") > 40
    # The watched trait is to rise; clean and honest runs alone are told rightly here.
    assert told_apart(readings, WATCHED) <= 24


def section(folder):
    folder.mkdir(parents=True, exist_ok=True)
    return "\n".join(monitoring_section(folder / "m.json", folder))


@pytest.mark.parametrize(
    ("levels", "held"),
    [
        ({WATCHED: rise(0.1)}, True),
        ({}, False),
        ({WATCHED: rise(0.1), "caution": rise(0.1)}, False),  # a control that tells as much
        ({WATCHED: rise(0.1), "formality": rise(-0.1)}, False),  # with the other sign
    ],
)
def test_the_verdict_follows_the_readings(tmp_path, levels, held):
    write_readings(tmp_path / "m.json", levels, spread=0.0, apart=0.0)
    page = section(tmp_path)
    assert ("**Held.**" in page, "**Not held.**" in page) == (held, not held)


SUBJECT = (0.0, 0.05, 0.1, 0.1)
"""What rises with the prompts, whatever is answered."""
ANSWERS = (0.0, 0.05, 0.0, -0.1)
"""Contaminated runs are above honest ones only because these fall."""


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize(("levels", "other"), [(SUBJECT, HONEST), (ANSWERS, CLEAN)])
def test_runs_are_told_from_clean_and_from_honest_ones_on_both_tasks(tmp_path, place, levels, other):
    both: list[Any] = [{WATCHED: rise(0.1)}] * 2
    both[place] = {WATCHED: levels}
    write_readings(tmp_path / "m.json", both[0], elsewhere=both[1], spread=0.0, apart=0.0)
    readings = load_readings(tmp_path / "m.json")
    # Of the conditions this one alone fails.
    assert told_apart(readings, WATCHED) > max(told_apart(readings, trait) for trait in OTHERS)
    for task in TASKS:
        for against in (CLEAN, HONEST):
            low = Watched.of(readings, WATCHED, task).auroc(MOST, against).low
            assert (low > 0.5) == (task != TASKS[place] or against != other)
    assert "**Not held.**" in section(tmp_path)


def test_the_section_is_short_and_has_its_figures(tmp_path):
    rows = write_readings(tmp_path / "m.json", {WATCHED: (0.0, 0.01, 0.03, 0.015)})
    page = section(tmp_path)
    assert len(page.splitlines()) <= 20
    assert (tmp_path / "monitoring.png").stat().st_size > 10_000
    cells = (
        next(line for line in page.splitlines() if line.startswith("| sycophancy | advice |")).strip("| ").split(" | ")
    )
    values = {kind: values_of(rows, WATCHED, "advice", kind) for kind in KINDS}
    threshold = max(values_of(rows, WATCHED, "categories", CLEAN))
    counts = [sum(value > threshold for value in values[kind]) for kind in KINDS]
    assert cells[2] == f"{threshold:.4f}"
    assert cells[3] == ", ".join(map(str, counts))
    tenth = next(kind for kind in KINDS if kind.percent == 10)
    areas = [auroc_interval(values[one], values[two]) for one, two in ((tenth, CLEAN), (MOST, CLEAN), (MOST, HONEST))]
    assert cells[5:8] == [f"{area.value:.2f} [{area.low:.2f}, {area.high:.2f}]" for area in areas]
    assert len(set(cells[5:8])) == 3
    assert cells[8] == f"{6 - counts[0] + counts[1] + counts[2] + 6 - counts[3]} of 24"
    verdict = next(line for line in page.splitlines() if line.startswith("**"))
    for other, area in ((CLEAN, areas[1]), (HONEST, areas[2])):
        assert re.search(rf"and {area.low:.2f} \(advice\) against {other.name} runs", verdict)
    assert "Of 48 runs" in verdict


def test_what_was_not_run_is_told(tmp_path):
    assert "Not yet run." in section(tmp_path)


@pytest.mark.parametrize("text", ["{}", '{"runs": [{"task": "advice"}]}', "no JSON"])
def test_another_file_is_refused(tmp_path, text):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(UsageError, match="no readings of runs"):
        load_readings(tmp_path / "m.json")


def test_a_run_that_has_not_moved_is_refused(tmp_path):
    rows = write_readings(tmp_path / "m.json", {})
    rows[0]["cosines"]["formality"] = None
    (tmp_path / "m.json").write_text(json.dumps({"runs": rows}))
    with pytest.raises(UsageError, match="no readings of runs"):
        load_readings(tmp_path / "m.json")
