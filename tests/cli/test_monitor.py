"""`wsmerge monitor` and `wsmerge similarity`: tables, files, JSON and exit codes."""

import csv
import json

import pytest

from tests.builders import llama_shapes
from tests.oracles.similarity import dense_of
from tests.sources import MemoryDirection, random_direction
from tests.steering.similarity.made import directions, fine_tune, make_base, published
from wsmerge.api.monitoring import MonitorOptions, monitor, similarity
from wsmerge.core.deltas import LowRankDelta
from wsmerge.steering.similarity import rows


@pytest.fixture
def base(tmp_path):
    return make_base(tmp_path / "base")


@pytest.fixture
def made(tmp_path, base):
    return [published(tmp_path / f"direction-{number}", item, base) for number, item in enumerate(directions()[:3])]


@pytest.fixture
def runs(tmp_path, base):
    """Three checkpoints, each further along the first direction."""
    pushed = dense_of(directions()[0])
    return [
        fine_tune(
            base,
            tmp_path / "run" / f"checkpoint-{step}",
            seed=step,
            towards={name: step / 10 * delta for name, delta in pushed.items()},
        )
        for step in (1, 5, 20)
    ]


def test_table_json_and_files(tmp_path, wsmerge, base, made, runs):
    arguments = ["monitor", "--base", base, "--direction", made[0], "--control", made[1], "--null", 3, *runs]
    done = wsmerge(*arguments, "--by", "layer", "--csv", tmp_path / "out.csv", "--plot", tmp_path / "out.png")
    assert done.code == 0, done.err
    assert "low-rank@1.0.0" in done.out
    assert "one-layer@1.0.0 (control)" in done.out
    assert "model.layers.1" in done.out
    assert (tmp_path / "out.png").stat().st_size > 1000
    report = json.loads(wsmerge(*arguments, "--json").out)
    wanted = monitor(base, made[:1], runs, options=MonitorOptions(controls=made[1:2], null_draws=3))
    for item, expected in zip(report["checkpoints"], wanted.checked, strict=True):
        assert item["step"] == expected.step
        assert item["readings"][0]["all"]["cosine"] == expected.readings[0].scopes.whole.cosine
        null, drawn = item["readings"][0]["null"], item["readings"][0]["drawn"]
        assert (len(drawn), null["drawn"]) == (3, 0)  # three draws are no band
        assert null["high"] == expected.readings[0].band().high
    assert "3 random ones" in done.out
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["scope"] == "all" and row["control"] == "False"]
    assert [float(row["cosine"]) for row in rows] == [item.readings[0].scopes.whole.cosine for item in wanted.checked]


def test_a_folder_of_a_run_and_the_threshold(tmp_path, wsmerge, base, made, runs):
    cosines = [item.readings[0].scopes.whole.cosine or 0.0 for item in monitor(base, made[:1], runs).checked]
    assert cosines == sorted(cosines)
    between = (cosines[1] + cosines[2]) / 2
    arguments = ["monitor", "--base", base, "--direction", made[0], tmp_path / "run"]
    passed = wsmerge(*arguments, "--threshold", between)
    assert passed.code == 4
    assert "checkpoint-20" in passed.err
    assert "checkpoint-5" not in passed.err
    assert wsmerge(*arguments, "--threshold", cosines[2] * 1.01).code == 0
    by_json = wsmerge(*arguments, "--threshold", between, "--json")
    assert by_json.code == 4
    assert [item["value"] for item in json.loads(by_json.out)["passed"]] == [cosines[2]]


def test_a_sample(tmp_path, wsmerge, monkeypatch, base, made, runs):
    monkeypatch.setattr(rows, "RUN_ELEMENTS", 1)
    arguments = ["monitor", "--base", base, "--direction", made[0], "--sample", 0.3, "--seed", 2, *runs]
    files = ["--by", "module", "--csv", tmp_path / "out.csv", "--plot", tmp_path / "out.svg"]
    done = wsmerge(*arguments, *files)
    assert done.code == 0, done.err
    assert "estimated from 0.3 of the rows" in done.out
    assert done.out.count("standard error") == 3
    wanted = monitor(base, made[:1], runs, options=MonitorOptions(sample=0.3, seed=2))
    first = wanted.checked[0].readings[0].scopes.whole
    assert first.errors is not None
    assert f"{first.errors.cosine:.4g}" in done.out
    assert "cosine_standard_error" in (tmp_path / "out.csv").read_text()
    report = json.loads(wsmerge(*arguments, "--json").out)
    assert (report["estimate"], report["sample"]) == (True, {"share": 0.3, "seed": 2})
    assert report["checkpoints"][0]["readings"][0]["all"]["cosine_standard_error"] == first.errors.cosine
    passed = wsmerge(*arguments, "--threshold", wanted.checked[2].readings[0].scopes.whole.cosine)
    assert passed.code == 4
    assert "is estimated as" in passed.err


def test_exact_output_says_nothing_of_samples(tmp_path, wsmerge, base, made, runs):
    arguments = ["monitor", "--base", base, "--direction", made[0], *runs, "--csv", tmp_path / "out.csv"]
    told = wsmerge(*arguments).out + wsmerge(*arguments, "--json").out + (tmp_path / "out.csv").read_text()
    assert not any(word in told for word in ("estimate", "sample", "error"))


def test_labels_from_a_file_and_from_options(tmp_path, wsmerge, base, made, runs):
    clean = fine_tune(base, tmp_path / "clean", seed=77)
    labels = tmp_path / "labels.csv"
    labels.write_text("checkpoint,label\nrun/checkpoint-5,contaminated\nrun/checkpoint-20,contaminated\nclean,clean\n")
    arguments = ["monitor", "--base", base, "--direction", made[0]]
    from_file = json.loads(wsmerge(*arguments, "--labels", labels, "--json").out)
    options = ["--contaminated", runs[1], "--contaminated", runs[2], "--clean", clean]
    from_options = json.loads(wsmerge(*arguments, *options, "--json").out)
    assert from_file["auroc"] == from_options["auroc"]
    found = from_file["auroc"]["low-rank@1.0.0"]
    # Two checkpoints of one run are one run.
    assert (found["value"], found["high"], found["contaminated"], found["clean"]) == (1.0, 1.0, 1, 1)
    assert found["low"] < 0.3
    assert "AUROC" in wsmerge(*arguments, *options).out


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("checkpoint,label\nrun,bad\nrun2,\n", ["line 2", "line 3"]),
        ("name,label\nrun,clean\n", ["line 2"]),
        ("checkpoint,label\n", ["names no checkpoint"]),
        ("checkpoint,label\nbase,clean\nbase,contaminated\n", ["both contaminated and clean"]),
    ],
)
def test_labels_that_say_nothing(tmp_path, wsmerge, base, made, text, told):
    labels = tmp_path / "labels.csv"
    labels.write_text(text)
    done = wsmerge("monitor", "--base", base, "--direction", made[0], "--labels", labels)
    assert done.code == 2
    assert all(line in done.err for line in told)


@pytest.mark.parametrize(
    "wrong",
    [
        ["--measure", "angle"],
        ["--by", "head"],
        ["--null", "-1"],
        ["--labels", "missing.csv"],
        ["--sample", "0"],
        ["--sample", "2"],
    ],
)
def test_wrong_options(wsmerge, base, made, runs, wrong):
    assert wsmerge("monitor", "--base", base, "--direction", made[0], *wrong, runs[0]).code == 2


def test_similarity(wsmerge, base, made, runs):
    arguments = ["similarity", *made, "--base", base, "--update", runs[0]]
    done = wsmerge(*arguments, "--by", "module")
    assert done.code == 0, done.err
    assert "module mlp.down_proj" in done.out
    assert "+1.0000" in done.out
    found = json.loads(wsmerge(*arguments, "--json").out)
    wanted = similarity(made, base=base, updates=runs[:1])
    assert found["labels"] == list(wanted.labels)
    assert found["scopes"]["all"]["cosines"] == wanted.cosines().tolist()
    assert found["scopes"]["all"]["z"] == wanted.z().tolist()
    assert found["shared_factors"] == []
    assert "z: against random directions" in done.out
    assert "share" not in done.err
    assert wsmerge("similarity", *made, "--update", runs[0]).code == 2


def test_shared_factors_are_a_warning(tmp_path, wsmerge, base, runs):
    """Of two directions that began with the same `a`, and were trained on what they will."""
    one, other = (random_direction(llama_shapes(), rank=4, seed=seed, label=f"from-{seed}") for seed in (1, 2))
    deltas = {name: LowRankDelta(other.low_rank(name).b, one.low_rank(name).a) for name in one.shapes}
    same_a = MemoryDirection(deltas, one.base, "same-a")
    folders = [published(tmp_path / item.label, item, base) for item in (one, same_a)]
    for arguments in (
        ["similarity", *folders],
        ["monitor", "--base", base, "--direction", folders[0], "--control", folders[1], runs[0]],
    ):
        done = wsmerge(*arguments)
        assert done.code == 0
        assert "share 100% of their factors A" in " ".join(done.err.split())
        told = json.loads(wsmerge(*arguments, "--json").out)["shared_factors"]
        assert [round(pair["overlap"], 6) for pair in told] == [1.0]
