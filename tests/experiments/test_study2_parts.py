"""Parts of a direction in the second study: what they are, and what the report tells of them."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

import wsmerge
from experiments.study import __main__ as command
from experiments.study.methods import AGAINST, Methods
from experiments.study.parts import (
    PARTS_SEEDS,
    RANKS,
    WHOLE,
    float32_sweep,
    parts_section,
    parts_seeds,
    parts_sweep,
    run_parts,
    write_few,
)
from experiments.study.ranks import Cut, cut_name, publish_cut
from experiments.study.results import Study, gather
from experiments.study.settings import FULL, PRIMARY_COST, QUICK
from experiments.study.sweeps import sweep_folder
from tests.experiments.synthetic_study import Makeup, write_sweep
from tests.sources import identity, random_direction
from wsmerge.errors import DirectionError, UsageError
from wsmerge.recipe import coefficients_for, weight_from
from wsmerge.registry import About, open_registry, write_direction
from wsmerge.steering.sweep.config import SweepConfig

LAYERS = 30
NAMES = [
    f"model.layers.{layer}.{module}.weight"
    for layer in range(LAYERS)
    for module in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
]
MAKEUP = Makeup(gains={WHOLE: 2.5, "MLP": 1.5}, unreached=frozenset({"rank 1"}))
SMALL = replace(QUICK, items=24, seeds=(0, 1, 2))
SHAPES = {"model.layers.0.mlp.up_proj.weight": (40, 24), "model.layers.0.mlp.down_proj.weight": (12, 40)}


@pytest.fixture
def store(tmp_path):
    """A store with a low-rank direction, whose second tensor has fewer rows than the factors have columns."""
    direction = random_direction(SHAPES, rank=16, seed=2, label="sycophancy-0")
    direction.base = identity(SHAPES)
    write_direction(tmp_path / "made", direction, About(name="sycophancy-0", kind="contrastive")).close()
    registry = open_registry(tmp_path / "store")
    registry.publish(tmp_path / "made")
    return registry


def coefficients(label):
    """Of every tensor that a label's own direction gets."""
    method = next(one for one in parts_sweep(FULL, 1)["methods"] if one["label"] == label)
    weights = method["weights"] if isinstance(method["weights"], dict) else {method["weights"]: 1.0}
    [(_, weight), *others] = weights.items()
    ks = coefficients_for(weight_from(weight), NAMES, NAMES).by_tensor
    return {name: ks[name].k for name in NAMES}, others


def test_a_sweep_of_parts_is_one():
    config = SweepConfig.model_validate({"base": "somewhere", **parts_sweep(FULL, 1)})
    assert len(config.methods) == 12
    levels = [config.levels(method) for method in config.methods]
    assert all(
        level is not None and level.values == (PRIMARY_COST,) and level.factors == (AGAINST,) for level in levels
    )
    assert not any(config.random_directions(method) for method in config.methods)


def test_few_facts_are_of_validation_and_all_of_test(measured):
    result = Study(measured / "results", (0,)).sweep("parts")[0]
    assert len(result.items["validation"]) == 8
    assert {item.wording for item in result.items["validation"]} == {"convinced", "would say", "heard", "read"}
    assert len(result.items["test"]) == SMALL.items


def test_thirds_and_modules_make_up_the_whole():
    thirds = [coefficients(f"layers {third}")[0] for third in ("0-9", "10-19", "20-29")]
    for name in NAMES:
        layer = int(name.split(".")[2])
        assert [third[name] for third in thirds] == [float(layer // 10 == place) for place in range(3)]
        assert coefficients("attention")[0][name] == float("self_attn" in name)
        assert coefficients("MLP")[0][name] == float("mlp" in name)
        assert coefficients("growing with depth")[0][name] == pytest.approx(2 * layer / (LAYERS - 1))
        assert coefficients(WHOLE)[0][name] == 1
    half, [(formality, other)] = coefficients("half, and half of formality")
    assert set(half.values()) == {0.5} == {other}
    assert formality.endswith("/directions/formality")


def test_ranks_are_of_the_cut_directions():
    methods = {one["label"]: one["weights"] for one in parts_sweep(FULL, 1)["methods"]}
    assert [methods[f"rank {rank}"] for rank in RANKS] == [cut_name("sycophancy-1", rank) for rank in (1, 2, 4, 8)]


@pytest.mark.parametrize("rank", [1, 3, 14])
def test_a_cut_has_the_first_singular_values(store, rank):
    publish_cut(store, "sycophancy-0", rank)
    with (
        wsmerge.open_direction("sycophancy-0", store=store) as whole,
        wsmerge.open_direction(cut_name("sycophancy-0", rank), store=store) as cut,
    ):
        for name in SHAPES:
            u, values, v = np.linalg.svd(whole.low_rank(name).dense())
            kept = min(rank, len(values))
            expected = sum(values[place] * np.outer(u[:, place], v[place]) for place in range(kept))
            assert cut.low_rank(name).dense() == pytest.approx(expected, abs=1e-6)
            assert cut.low_rank(name).rank == kept
        assert cut.manifest.parents[0].version_digest == whole.digest


def test_a_cut_to_more_than_all_is_the_whole(store):
    with wsmerge.open_direction("sycophancy-0", store=store) as whole:
        cut = Cut(whole, 99)
        for name, shape in SHAPES.items():
            assert cut.rank(name) == min(16, *shape) == cut.low_rank(name).rank
            assert cut.low_rank(name).dense() == pytest.approx(whole.low_rank(name).dense(), abs=1e-6)


def test_a_cut_that_is_there_is_kept(store):
    publish_cut(store, "sycophancy-0", 2)
    before = [(entry.name, entry.version) for entry in store.list()]
    publish_cut(store, "sycophancy-0", 2)
    assert [(entry.name, entry.version) for entry in store.list()] == before
    assert len(before) == 2


def test_what_is_dense_is_not_cut(tmp_path):
    direction = random_direction(SHAPES, rank=None, label="dense")
    direction.base = identity(SHAPES)
    with write_direction(tmp_path / "made", direction, About(name="dense", kind="contrastive")) as dense:
        cut = Cut(dense, 2)
        with pytest.raises(DirectionError, match="is dense"):
            cut.read_dense(next(iter(SHAPES)), 0, np.zeros(1, np.float32))


def write_parts(out, seeds=PARTS_SEEDS, *, float32=True):
    """Sweeps of parts, and of float32."""
    results = out / "results"
    write_few(out / "data")
    for seed in seeds:
        write_sweep(out, "parts", seed, MAKEUP, SMALL, parts_sweep(SMALL, seed))
        gather(out, "parts", seed, results)
        if float32:
            write_sweep(out, "float32", seed, MAKEUP, SMALL, float32_sweep(SMALL, seed, results=results))
            gather(out, "float32", seed, results)
    return results


def section(results, amounts=FULL):
    return "\n".join(parts_section(Methods(Study(results, FULL.seeds), FULL.costs), amounts))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    out = tmp_path_factory.mktemp("parts")
    write_parts(out)
    return out


def test_float32_is_measured_at_the_k_of_bfloat16(measured):
    points = json.loads((sweep_folder(measured, "parts", 1) / "sweep.json").read_bytes())["points"]
    k = next(point["k"] for point in points if point["method"] == WHOLE)
    made = float32_sweep(SMALL, 1, results=measured / "results")
    config = SweepConfig.model_validate({"base": "somewhere", **made})
    assert (config.dtype, [config.strengths(method) for method in config.methods]) == ("float32", [(k,)])


def test_without_a_strength_there_is_no_float32(tmp_path):
    results = write_parts(tmp_path, (0,), float32=False)
    file = results / "parts-0.json"
    file.write_text(file.read_text().replace('"kl_aimed_at": [0.04]', '"kl_aimed_at": [0.5]'))
    with pytest.raises(UsageError, match="no strength of whole"):
        float32_sweep(SMALL, 0, results=results)


def rows_of(out, name, seed):
    lines = (sweep_folder(out, name, seed) / "journal.jsonl").read_bytes().splitlines()[1:]
    rows = (json.loads(line) for line in lines)
    return [row for row in rows if "measure" not in row and row["only"] is None and row["split"] == "test"]


def main_figures(out, name, label):
    """Of each item the mean over seeds, None where the base is wrong; by loops over the journals."""
    of_seeds = []
    for seed in PARTS_SEEDS:
        rows = rows_of(out, name, seed)
        plain = next(row for row in rows if row["method"] == "base")["figures"]["facts plain"]["values"]
        hinted = next(row for row in rows if row["method"] == label)["figures"]["facts wrong hint"]["values"]
        of_seeds.append([hint if right else None for hint, right in zip(hinted, plain, strict=True)])
    return [None if None in one else sum(one) / len(one) for one in zip(*of_seeds, strict=True)]


def change(before, after):
    pairs = [(low, high) for low, high in zip(before, after, strict=True) if None not in (low, high)]
    return sum(high - low for low, high in pairs) / len(pairs)


def test_the_section_is_short_and_has_every_part(measured):
    page = section(measured / "results")
    assert len(page.splitlines()) <= 15
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| ")
    ]
    rows = {cells[start]: cells[start : start + 5] for cells in lines[1:] for start in (0, 5)}
    assert len(rows) == 12
    assert "rank 1 (KL 0.020)" in rows
    for label in (WHOLE, "MLP", "attention", "growing with depth"):
        found = change(main_figures(measured, "parts", "base"), main_figures(measured, "parts", label))
        assert rows[label][2].startswith(f"{100 * found:+.0f} [" if abs(found) >= 0.005 else "0 [")
    ks = [
        next(row["strength"] for row in rows_of(measured, "parts", seed) if row["method"] == WHOLE)
        for seed in PARTS_SEEDS
    ]
    assert rows[WHOLE][1] == f"{sum(ks) / 3:+.2f}"


def test_float32_is_held_against_bfloat16(measured):
    told = section(measured / "results").splitlines()[-1]
    for name, label in (("base", "base"), ("steered model", WHOLE)):
        theirs, ours = (main_figures(measured, sweep, label) for sweep in ("parts", "float32"))
        value = [one for one in ours if one is not None]
        before, _, after = told.partition(f" for the {name} instead of ")
        assert before.rpartition(" % [")[0].endswith(f" {100 * sum(value) / len(value):.0f}")
        found = change(theirs, ours)
        shown = f"{100 * found:+.0f}" if abs(found) >= 0.005 else "0"
        assert after.partition("], ")[2].startswith(f"{shown} [")


def test_a_study_in_progress_is_told(tmp_path):
    assert "Not yet run." in section(tmp_path)
    page = section(write_parts(tmp_path, (1,), float32=False))
    assert "Not yet run: seeds 0 and 2." in page
    assert "Float32 has not been measured yet." in page


def test_parts_are_of_three_seeds(monkeypatch, capsys):
    assert parts_seeds(FULL) == PARTS_SEEDS
    assert parts_seeds(QUICK) == (0, 1)
    monkeypatch.setattr(sys, "argv", ["study", "--only", "parts", "--seed", "4"])
    with pytest.raises(SystemExit):
        command.main()
    assert "parts are of the seeds 0, 1, 2" in capsys.readouterr().err


def test_only_what_is_missing_is_run(measured, store, tmp_path):
    """No model is read: the base does not exist."""
    said: list[str] = []
    amounts = replace(SMALL, seeds=(0,))
    run_parts(tmp_path, tmp_path / "no base", store, amounts, measured / "results", said.append)
    assert said == []
    assert {entry.name for entry in store.list()} == {
        "sycophancy-0",
        *(cut_name("sycophancy-0", rank) for rank in RANKS),
    }
