"""What the second study keeps of its sweeps."""

import json

import numpy as np
import pytest

from experiments.study.results import Study, gather
from experiments.study.settings import QUICK
from experiments.study.sweeps import SWEEPS, result_file, sweep_folder
from tests.experiments.synthetic_study import ONE_LAYER, Makeup, write_sweep
from wsmerge.errors import OutputError, UsageError
from wsmerge.steering.sweep.config import SweepConfig
from wsmerge.steering.sweep.files import write_results
from wsmerge.steering.sweep.journal import Journal, PointKey
from wsmerge.steering.sweep.results import Picked, SweepResult, figures_of
from wsmerge.steering.sweep.results import Point as SweepPoint
from wsmerge.steering.sweep.samples import Samples

DIGITS = 1e-5
"""Relative; six significant digits are kept."""


@pytest.fixture
def out(tmp_path):
    for name in ("facts", "activations", "spoken"):
        write_sweep(tmp_path, name, 0, Makeup(), QUICK)
    return tmp_path


@pytest.mark.parametrize("name", ["facts", "spoken"])
def test_every_item_of_every_point_is_kept(out, name):
    gather(out, name, 0, out / "results")
    result = Study(out / "results", [0]).sweep(name)[0]
    folder = sweep_folder(out, name, 0)
    made = json.loads((folder / "sweep.json").read_bytes())
    # As the sweep itself reads its journal.
    with Journal(folder, "digest") as journal:
        held = dict(journal.points)
    assert len(result.points) == len(made["points"]) > 4
    for point in result.points:
        figures = held[PointKey(point.method, point.k, point.split, made["layers"].get(point.method))]
        assert point.figures.keys() == figures.keys()
        for figure, kept in point.figures.items():
            expected = figures[figure]
            assert (kept.role, kept.kind) == (expected.role, expected.kind)
            assert kept.values == pytest.approx(expected.values, rel=DIGITS, nan_ok=True)
            assert (kept.tokens == expected.tokens).all()
            assert (kept.clusters is None) == (expected.clusters is None)
            assert kept.clusters is None or (kept.clusters == expected.clusters).all()
            assert (kept.interval.low, kept.interval.high) == pytest.approx(
                (expected.interval.low, expected.interval.high), rel=1e-4, abs=1e-5
            )


def test_what_was_asked_is_named(out):
    gather(out, "facts", 0, out / "results")
    result = Study(out / "results", [0]).sweep("facts")[0]
    items = result.items["test"]
    assert len(items) == QUICK.items
    assert [item.wording for item in items[:2]] == ["paper", "guess"]
    assert all(item.fact.startswith(item.domain) for item in items)
    assert result.picks["weights"] < 0
    assert result.notes == ("a note of facts",)
    gather(out, "activations", 0, out / "results")
    assert Study(out / "results", [0]).sweep("activations")[0].layers == {ONE_LAYER: 14}


def test_points_are_found_by_what_was_aimed_at(out):
    gather(out, "facts", 0, out / "results")
    result = Study(out / "results", [0]).sweep("facts")[0]
    found = result.aimed("weights", 0.04, 1, "test")
    assert found is not None
    assert (found.method, found.split, found.aimed) == ("weights", "test", (0.04,))
    assert found.k > 0
    assert result.aimed("weights", 0.16, 1, "test") is None
    base = result.at("weights", 0.0, "test")
    assert base is not None
    assert base.method == "base"


def test_a_study_that_is_run_says_which_seeds_are_missing(out):
    gather(out, "facts", 0, out / "results")
    study = Study(out / "results", [0, 1, 2])
    assert (study.missing("facts"), study.missing("biases")) == ((1, 2), (0, 1, 2))
    assert list(study.sweep("facts")) == [0]


def test_a_sweep_is_read_as_its_own_writers_leave_it(tmp_path):
    config = SweepConfig.model_validate({"base": "somewhere", **SWEEPS["controls"](QUICK, 0)})
    folder = sweep_folder(tmp_path, "controls", 0)
    clusters = np.array([(place, place % 8) for place in range(8)])
    before = {"facts": Samples.of("behaviour", np.arange(8) % 2, clusters=clusters)}
    after = {"facts": Samples.of("behaviour", np.arange(8) > 2, clusters=clusters)}
    keys = [PointKey("base", 0.0, "test"), PointKey("weights", -0.5, "test")]
    with Journal(folder, "digest") as journal:
        for key, figures in zip(keys, (before, after), strict=True):
            journal.notes(key, "facts").keep_figures(figures)
            journal.add(key, figures)
    points = (SweepPoint(keys[0], figures_of(before, before)), SweepPoint(keys[1], figures_of(after, before), (0.04,)))
    made = SweepResult(config, points, (Picked("weights", -0.5, 0.5),), {}, (), ("told",))
    write_results(made, folder, plots=False)
    gather(tmp_path, "controls", 0, tmp_path / "results")
    result = Study(tmp_path / "results", [0]).sweep("controls")[0]
    found = result.aimed("weights", 0.04, -1, "test")
    assert found is not None
    assert found.figures["facts"].values.tolist() == after["facts"].values.tolist()
    assert (result.picks, result.notes, result.methods) == ({"weights": -0.5}, ("told",), ("weights",))


def test_a_journal_that_is_not_whole_is_refused(out):
    journal = sweep_folder(out, "facts", 0) / "journal.jsonl"
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(OutputError, match="no point of formality"):
        gather(out, "facts", 0, out / "results")
    assert not result_file(out / "results", "facts", 0).exists()


def test_a_journal_of_other_items_is_refused(out):
    """As where the files of facts have changed since."""
    file = sweep_folder(out, "facts", 0) / "sweep.json"
    made = json.loads(file.read_bytes())
    made["settings"]["measures"]["facts"]["hints"]["items"] = 6
    file.write_text(json.dumps(made))
    with pytest.raises(OutputError, match="other items"):
        gather(out, "facts", 0, out / "results")


def test_a_file_that_is_no_result_is_told(tmp_path):
    result_file(tmp_path, "facts", 0).write_text('{"sweep": "facts"}')
    with pytest.raises(UsageError, match="is no result of a sweep"):
        Study(tmp_path, [0]).sweep("facts")


def test_a_broken_point_has_no_figures(out):
    """A sweep goes on where a strength breaks the model, and journals the point without figures."""
    folder = sweep_folder(out, "facts", 0)
    rows = [json.loads(line) for line in (folder / "journal.jsonl").read_bytes().splitlines()]
    broken = next(
        row
        for row in rows
        if row.get("method") == "plus pole" and row["split"] == "test" and not row["only"] and "measure" not in row
    )
    broken["figures"] = {}
    (folder / "journal.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    gather(out, "facts", 0, out / "results")
    result = Study(out / "results", [0]).sweep("facts")[0]
    assert result.at("plus pole", broken["strength"], "test") is None
    assert result.at("plus pole", broken["strength"], "validation") is not None


def test_a_share_that_is_no_choice_keeps_its_numbers(out):
    folder = sweep_folder(out, "facts", 0)
    rows = [json.loads(line) for line in (folder / "journal.jsonl").read_bytes().splitlines()]
    scores = np.linspace(0, 1, 8)
    for row in rows[1:]:
        if row["figures"] and row["split"] == "test" and not row["only"]:
            row["figures"]["a score"] = Samples.of("behaviour", scores).to_json()
    (folder / "journal.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    gather(out, "facts", 0, out / "results")
    base = Study(out / "results", [0]).sweep("facts")[0].at("base", 0.0, "test")
    assert base is not None
    assert base.figures["a score"].values == pytest.approx(scores, rel=DIGITS)
