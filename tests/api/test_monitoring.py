"""Monitoring and similarity from files, against dense float64 references."""

import csv
import json

import numpy as np
import pytest
from matplotlib.figure import Figure

from tests.builders import llama_shapes, make_adapter, make_checkpoint, random_tensors
from tests.oracles.sampling import estimated
from tests.oracles.similarity import dense_of, naive_auroc, reference
from tests.sources import random_direction
from tests.steering.similarity.made import directions, fine_tune, make_base, published, subtracted
from wsmerge.api.monitoring import MonitorOptions, checkpoints_of, monitor, similarity
from wsmerge.core.dtypes import F32, to_float32
from wsmerge.engine.adapter import Adapter
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.errors import BaseMismatchError, CheckpointError, OutputError, UsageError
from wsmerge.registry import Store, open_direction_folder
from wsmerge.registry.convert import convert_direction
from wsmerge.steering.similarity import drawn as drawn_factors
from wsmerge.steering.similarity import rows
from wsmerge.steering.similarity.monitoring import MEASURES, Question, compare
from wsmerge.steering.similarity.plot import _draw, plot_monitor
from wsmerge.steering.similarity.report import RunLabel
from wsmerge.steering.similarity.rows import Sample, rows_of
from wsmerge.steering.similarity.update import BaseBlocks, Update

SHAPES = llama_shapes()
FACTORED = {name: shape for name, shape in SHAPES.items() if "_proj" in name}


def is_no_embedding(name):
    return "embed" not in name


@pytest.fixture
def base(tmp_path):
    return make_base(tmp_path / "base")


@pytest.fixture
def made(tmp_path, base):
    return [published(tmp_path / f"direction-{number}", item, base) for number, item in enumerate(directions())]


@pytest.mark.parametrize("updates", [1, 11])  # eleven take two passes
def test_every_figure_of_checkpoints_and_adapters(tmp_path, base, made, updates):
    tuned = [
        fine_tune(base, tmp_path / f"checkpoint-{seed}", dtype=("bfloat16", "float32")[seed % 2], seed=seed)
        for seed in range(updates)
    ]
    adapter = make_adapter(tmp_path / "adapter", FACTORED)
    report = monitor(base, made[:2], [*tuned, adapter], options=MonitorOptions(controls=made[2:]))
    assert [item.step for item in report.checked] == [*range(updates), None]
    changes = [subtracted(base, path) for path in tuned] + [None]
    for item, change in zip(report.checked, changes, strict=True):
        for number, (reading, direction) in enumerate(zip(item.readings, directions(), strict=True)):
            assert reading.control == (number >= 2)
            update = change if change is not None else _adapter_deltas(adapter, base)
            for found, keep in (
                (reading.scopes.whole, bool),
                (reading.scopes.without_embeddings, is_no_embedding),
                (reading.scopes.layers["model.layers.1"], lambda name: ".layers.1." in name),
                (reading.scopes.modules["self_attn.q_proj"], lambda name: "q_proj" in name),
            ):
                wanted = reference(update, dense_of(direction), SHAPES, keep, direction.rank)
                assert found.cosine == pytest.approx(wanted["cosine"], abs=1e-6)
                assert found.projection == pytest.approx(wanted["projection"], abs=1e-6)
                assert found.update_norm == pytest.approx(wanted["update_norm"], rel=1e-6)
                assert found.direction_norm == pytest.approx(wanted["direction_norm"], rel=1e-6)
                assert found.null_std == pytest.approx(wanted["null_std"], rel=1e-5)
                assert found.isotropic_std == pytest.approx(wanted["isotropic_std"], rel=1e-6)


def _adapter_deltas(adapter, base):
    with Checkpoint(base) as checkpoint, Adapter(adapter, checkpoint) as opened:
        deltas = {name: opened.low_rank(name) for name in FACTORED}
    return {name: delta.b.astype(np.float64) @ delta.a.astype(np.float64) for name, delta in deltas.items()}


def test_a_large_base_and_a_small_update(tmp_path):
    """The update is a thousandth of the base, towards the direction; differences are exact, so nothing cancels."""
    base = make_base(tmp_path / "base", dtype="float32")
    direction = random_direction(SHAPES, rank=4, seed=1, label="one")
    towards = {name: 1e-3 * delta.dense() for name, delta in direction.deltas.items()}
    tuned = fine_tune(base, tmp_path / "tuned", dtype="float32", towards=towards)
    made = published(tmp_path / "direction", direction, base)
    found = monitor(base, [made], [tuned]).checked[0].readings[0].scopes.whole
    wanted = reference(subtracted(base, tuned), dense_of(direction), SHAPES)
    assert found.cosine == pytest.approx(wanted["cosine"], abs=1e-6)
    assert found.projection == pytest.approx(wanted["projection"], abs=1e-6)


def test_tied_and_untied_embeddings(tmp_path):
    """A direction over tied embeddings stands for both of a base that has two."""
    name = "model.embed_tokens.weight"
    tied, untied = make_base(tmp_path / "tied"), make_base(tmp_path / "untied", tied=False)
    direction = random_direction({name: SHAPES[name]}, rank=2)
    made = published(tmp_path / "direction", direction, tied)
    delta = dense_of(direction)[name]
    for base, names in ((tied, [name]), (untied, [name, "lm_head.weight"])):
        tuned = fine_tune(base, tmp_path / f"{base.name}-tuned")
        shapes = llama_shapes(tied=base is tied)
        found = monitor(base, [made], [tuned]).checked[0].readings[0].scopes
        wanted = reference(subtracted(base, tuned), dict.fromkeys(names, delta), shapes)
        assert found.whole.cosine == pytest.approx(wanted["cosine"], abs=1e-6)
        assert found.without_embeddings.direction_norm == 0
        assert found.without_embeddings.cosine is None


def test_two_deltas_of_what_is_one_tensor(tmp_path, base):
    """A direction over untied embeddings fits tied ones only where both deltas are the same."""
    untied = llama_shapes(tied=False)
    tuned = fine_tune(base, tmp_path / "tuned")
    direction = random_direction(untied, rank=None)
    with pytest.raises(BaseMismatchError) as caught:
        monitor(base, [published(tmp_path / "two", direction, make_base(tmp_path / "untied", tied=False))], [tuned])
    assert [line for line in caught.value.details if "are one tensor in the base" in line] == list(caught.value.details)
    direction.deltas = {**direction.deltas, "lm_head.weight": direction.deltas["model.embed_tokens.weight"]}
    made = published(tmp_path / "one", direction, tmp_path / "untied")
    found = monitor(base, [made], [tuned]).checked[0].readings[0].scopes.whole
    own = {name: delta for name, delta in dense_of(direction).items() if name != "lm_head.weight"}
    assert found.direction_norm == pytest.approx(reference(own, own, SHAPES)["update_norm"], rel=1e-6)


def test_a_stored_copy_of_a_tied_output_counts_once(tmp_path):
    tensors = random_tensors(SHAPES)
    config_base = make_checkpoint(tmp_path / "base", tensors)
    copied = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    config = json.loads((config_base / "config.json").read_text())
    both = make_checkpoint(tmp_path / "both", copied, config=config)
    tuned = fine_tune(config_base, tmp_path / "tuned")
    direction = published(tmp_path / "direction", random_direction(SHAPES), config_base)
    norms = [
        monitor(base, [direction], [tuned]).checked[0].readings[0].scopes.whole.update_norm
        for base in (config_base, both)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-9)


def test_references_of_a_store(tmp_path, base, made):
    store = Store(tmp_path / "store")
    store.publish(made[0])
    tuned = fine_tune(base, tmp_path / "tuned")
    by_name = monitor(base, ["low-rank@1.0.0"], [tuned], store=store)
    by_path = monitor(base, [made[0]], [tuned])
    assert by_name.checked == by_path.checked
    assert by_name.to_dict()["directions"]["low-rank@1.0.0"] == by_path.sources[0].digest


def test_null_draws_are_repeatable(tmp_path, base, made):
    tuned = fine_tune(base, tmp_path / "tuned")
    drawn = [
        monitor(base, made[:2], [tuned], options=MonitorOptions(null_draws=6, seed=seed, threads=threads)).checked
        for seed, threads in ((1, 1), (1, 2), (2, 2))
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    readings = drawn[0][0].readings
    assert [len(reading.drawn) for reading in readings] == [6, 6]
    assert len({*readings[0].drawn, *readings[1].drawn}) == 12


def test_labelled_runs(tmp_path, base, made):
    pushed = dense_of(directions()[0])
    runs: dict[str, RunLabel] = {}
    for number, strength in enumerate([0.5, 0.8, 0.01, 0.0, 0.0, 0.02]):
        towards = {name: strength * delta for name, delta in pushed.items()}
        path = fine_tune(base, tmp_path / f"run-{number}", seed=number, towards=towards)
        runs[str(path)] = "contaminated" if number < 3 else "clean"
    report = monitor(base, made[:2], list(runs), options=MonitorOptions(labels=runs))
    for number, reading in enumerate(report.checked[0].readings):
        contaminated, clean = (
            [item.readings[number].value("cosine") or 0.0 for item in report.checked if item.label == label]
            for label in ("contaminated", "clean")
        )
        found = report.auroc()[reading.direction]
        assert found.value == pytest.approx(naive_auroc(contaminated, clean))
        assert (found.contaminated, found.clean) == (3, 3)
        assert 0 <= found.low < found.value <= found.high <= 1
    everything_clean: dict[str, RunLabel] = dict.fromkeys(runs, "clean")
    one_group = MonitorOptions(labels=everything_clean)
    with pytest.raises(UsageError, match="nothing to tell apart"):
        monitor(base, made[:1], list(runs), options=one_group).auroc()


@pytest.mark.parametrize("measure", MEASURES)
def test_threshold_of_any_measure(tmp_path, base, made, measure):
    towards = {name: 3 * delta for name, delta in dense_of(directions()[0]).items()}
    tuned = fine_tune(base, tmp_path / "checkpoint-5", towards=towards)
    # With the same directions: how a BLAS rounds a float32 product can depend on how many are read together.
    together = MonitorOptions(controls=made[2:3])
    value = monitor(base, made[:1], [tuned], options=together).checked[0].readings[0].value(measure)
    assert value is not None
    for threshold, passes in ((value - 1e-3, True), (value, True), (value + 1e-3, False)):
        options = MonitorOptions(measure=measure, threshold=threshold, controls=made[2:3])
        report = monitor(base, made[:1], [tuned], options=options)
        assert [(item.direction, item.value) for item in report.passed] == (
            [("low-rank@1.0.0", value)] if passes else []
        )


def test_the_base_itself_has_no_cosine(base, made, tmp_path):
    report = monitor(base, made[:1], [base], options=MonitorOptions(threshold=0.0))
    whole = report.checked[0].readings[0].scopes.whole
    assert (whole.cosine, whole.projection, whole.update_norm, whole.z) == (None, 0, 0, None)
    assert report.passed == ()
    json.dumps(report.to_dict(), allow_nan=False)
    plot_monitor(report, tmp_path / "flat.png")


def test_files(tmp_path, base, made):
    tuned = [fine_tune(base, tmp_path / "run" / f"checkpoint-{step}", seed=step) for step in (20, 100, 3)]
    options = MonitorOptions(controls=made[3:], threshold=0.1, null_draws=2)
    report = monitor(base, made[:2], [tmp_path / "run"], options=options)
    assert [item.step for item in report.checked] == [3, 20, 100]
    report.write_csv(tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(tuned) * 3 * len(report.checked[0].readings[0].scopes.named())
    for row, wanted in zip(rows, report.rows(), strict=True):
        assert row["scope"] == wanted["scope"]
        assert row["cosine"] == ("" if wanted["cosine"] is None else repr(wanted["cosine"]))
    plot_monitor(report, tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(OutputError):
        plot_monitor(report, tmp_path / "out.nothing")
    with pytest.raises(OutputError):
        report.write_csv(tmp_path / "missing" / "out.csv")


def wider():
    """Tensors of which a sample leaves something out."""
    return llama_shapes(hidden=96, inner=130, vocab=203)


@pytest.fixture
def wide(tmp_path, monkeypatch):
    """A base whose tensors are many runs of rows, and a low-rank and a dense direction over it."""
    monkeypatch.setattr(rows, "RUN_ELEMENTS", 1)
    base = make_checkpoint(tmp_path / "wide", random_tensors(wider()))
    some = {name: shape for name, shape in wider().items() if "mlp" in name or "embed" in name}
    given = [
        random_direction(wider(), rank=6, seed=1, label="low-rank"),
        random_direction(some, rank=None, label="some"),
    ]
    return base, given, [published(tmp_path / f"wide-{item.label}", item, base) for item in given]


def as_zarr(made, folder):
    with open_direction_folder(made) as direction, convert_direction(direction, folder, "zarr"):
        return folder


@pytest.mark.parametrize("range_bytes", [1, 1 << 15])  # rows of `b` alone, and `b` whole
@pytest.mark.parametrize("form", ["safetensors", "zarr"])
def test_a_sample_of_files(tmp_path, monkeypatch, wide, form, range_bytes):
    monkeypatch.setattr(drawn_factors, "_RANGE_BYTES", range_bytes)
    base, given, made = wide
    if form == "zarr":
        made = [as_zarr(item, tmp_path / f"zarr-{item.name}") for item in made]
    tuned = [fine_tune(base, tmp_path / f"checkpoint-{seed}", seed=seed) for seed in (1, 2)]
    report = monitor(base, made, tuned, options=MonitorOptions(sample=0.1, seed=4))
    drawn = {name: rows_of(name, shape, Sample(0.1, 4)) for name, shape in wider().items()}
    assert not all(item.whole for item in drawn.values())
    for item, path in zip(report.checked, tuned, strict=True):
        for reading, direction in zip(item.readings, given, strict=True):
            for scope, keep in (("all", bool), ("layer model.layers.1", lambda name: ".layers.1." in name)):
                found = reading.scopes.named()[scope]
                deltas = {name: delta for name, delta in dense_of(direction).items() if keep(name)}
                kept = {name: item for name, item in drawn.items() if keep(name)}
                wanted = estimated(subtracted(base, path), deltas, kept)
                for figure in ("cosine", "projection", "update_norm"):
                    assert getattr(found, figure) == pytest.approx(wanted[figure], rel=1e-4, abs=1e-6)
                    error = getattr(found.errors, figure)
                    assert error == pytest.approx(wanted[f"{figure}_error"], rel=1e-3)


def stored_otherwise(path, folder, shards, *, mixed):
    """The same values in several files, every other tensor in float32 where `mixed`."""
    tensors = {}
    with Checkpoint(path) as checkpoint:
        for number, (name, spec) in enumerate(checkpoint.specs.items()):
            bits = np.frombuffer(checkpoint.read(name), spec.dtype.storage).reshape(spec.shape)
            tensors[name] = (F32, to_float32(bits, spec.dtype)) if mixed and number % 2 else (spec.dtype, bits)
        return make_checkpoint(folder, tensors, config=dict(checkpoint.config), shards=shards)


@pytest.mark.parametrize("mixed", [False, True])
def test_how_checkpoints_are_stored_does_not_matter_to_a_sample(tmp_path, wide, mixed):
    base, _, made = wide
    tuned = fine_tune(base, tmp_path / "checkpoint-1", seed=1)
    others = [
        stored_otherwise(path, tmp_path / f"{path.name}-otherwise", shards, mixed=mixed and path is tuned)
        for path, shards in ((base, 2), (tuned, 3))
    ]
    options = MonitorOptions(sample=0.1, seed=4)
    one, other = (monitor(first, made, [second], options=options) for first, second in ((base, tuned), others))
    for reading, same in zip(one.checked[0].readings, other.checked[0].readings, strict=True):
        assert same.scopes == reading.scopes


@pytest.mark.parametrize("range_bytes", [1, 1 << 15])
def test_components_of_files_are_those_of_factors_in_memory(tmp_path, monkeypatch, wide, range_bytes):
    monkeypatch.setattr(drawn_factors, "_RANGE_BYTES", range_bytes)
    monkeypatch.setattr(rows, "MIN_COMPONENTS", 4)
    base, given, made = wide
    tuned = fine_tune(base, tmp_path / "checkpoint-1", seed=1)
    found = monitor(base, made, [tuned], options=MonitorOptions(sample=0.1, seed=4)).checked[0].readings
    with Checkpoint(base) as checkpoint, Update(tuned, BaseBlocks(checkpoint)) as update:
        (wanted,) = compare([update], Question(given, sample=0.1, seed=4), wider(), checkpoint.tied)
    for one, other in zip(found, wanted, strict=True):
        for scope, expected in other.scopes.named().items():
            alignment = one.scopes.named()[scope]
            assert alignment[:4] == pytest.approx(expected[:4], rel=1e-6)
            assert alignment.errors is not None
            assert expected.errors is not None
            for error, wanted_error in zip(alignment.errors, expected.errors, strict=True):
                assert error is None if wanted_error is None else error == pytest.approx(wanted_error, rel=1e-5)


def test_what_a_sampled_report_says(tmp_path, wide):
    base, _, made = wide
    tuned = fine_tune(base, tmp_path / "checkpoint-3")
    exact, all_rows, some = (
        monitor(base, made, [tuned], options=MonitorOptions(sample=share, seed=1)) for share in (None, 1.0, 0.1)
    )
    for one, other in zip(exact.rows(), all_rows.rows(), strict=True):
        assert {key: other[key] for key in one} == one
        assert {other[key] for key in other.keys() - one.keys()} <= {0, 1.0, None}
    told = some.to_dict()
    assert (told["estimate"], told["sample"]) == (True, {"share": 0.1, "seed": 1})
    assert "estimate" not in exact.to_dict()
    errors = some.checked[0].readings[0].scopes.whole.errors
    assert errors is not None
    figures = told["checkpoints"][0]["readings"][0]["all"]
    assert {key: value for key, value in figures.items() if key.endswith("_standard_error")} == {
        "cosine_standard_error": errors.cosine,
        "projection_standard_error": errors.projection,
        "update_norm_standard_error": errors.update_norm,
    }
    some.write_csv(tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    assert (row["sample"], row["cosine_standard_error"]) == ("0.1", repr(errors.cosine))
    plot_monitor(some, tmp_path / "out.png")
    json.dumps(told, allow_nan=False)


def test_samples_that_cannot_be(tmp_path, wide):
    base, _, made = wide
    names = {name: shape for name, shape in wider().items() if "_proj" in name}
    adapter = make_adapter(tmp_path / "adapter", names)
    with pytest.raises(UsageError, match="nothing to sample"):
        monitor(base, made[:1], [adapter], options=MonitorOptions(sample=0.1))
    found = monitor(base, made, [adapter], options=MonitorOptions(sample=0.1)).checked[0].readings
    assert [reading.standard_error("cosine") == 0 for reading in found] == [True, False]
    for share in (0.0, 1.5):
        with pytest.raises(UsageError, match="share above 0"):
            monitor(base, made, [base], options=MonitorOptions(sample=share))


def test_similarity_of_directions_and_updates(tmp_path, base, made):
    tuned = fine_tune(base, tmp_path / "tuned")
    adapter = make_adapter(tmp_path / "adapter", FACTORED)
    matrix = similarity(made, base=base, updates=[tuned, adapter])
    dense = [*(dense_of(item) for item in directions()), subtracted(base, tuned), _adapter_deltas(adapter, base)]
    for one, left in enumerate(dense):
        for other, right in enumerate(dense):
            wanted = reference(left, right, SHAPES)
            assert matrix.cosines()[one, other] == pytest.approx(wanted["cosine"], abs=1e-6)
            assert matrix.inner()[one, other] == pytest.approx(
                wanted["inner"], abs=1e-6 * wanted["update_norm"] * wanted["direction_norm"]
            )
    json.dumps(matrix.to_dict(), allow_nan=False)


def test_what_cannot_be_compared(tmp_path, base, made):
    tuned = fine_tune(base, tmp_path / "tuned")
    with pytest.raises(UsageError, match="cannot be told apart"):
        monitor(base, [made[0], made[0]], [tuned])
    with pytest.raises(UsageError, match="given twice"):
        monitor(base, made[:1], [tuned, tuned])
    with pytest.raises(UsageError, match="no direction"):
        monitor(base, [], [tuned])
    with pytest.raises(UsageError, match="no checkpoint"):
        monitor(base, made[:1], [])
    with pytest.raises(UsageError, match="labels of checkpoints"):
        monitor(base, made[:1], [tuned], options=MonitorOptions(labels={"elsewhere": "clean"}))
    with pytest.raises(UsageError, match="none is given"):
        similarity(made, updates=[tuned])
    with pytest.raises(UsageError, match="nothing to compare"):
        similarity([])
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no weights"):
        checkpoints_of(tmp_path / "empty")
    other = make_checkpoint(tmp_path / "other", random_tensors(llama_shapes(hidden=12)))
    with pytest.raises(BaseMismatchError) as caught:
        monitor(other, made[:1], [other])
    assert len(caught.value.details) == len(directions()[0].shapes)


def test_a_plot_has_a_line_a_run(tmp_path, base, made):
    """Steps of several runs are not joined into one line that goes up and down at each of them."""
    names = [
        str(fine_tune(base, tmp_path / run / f"checkpoint-{n}", seed=n)) for run in ("a", "b$\\no$") for n in (4, 8, 12)
    ]
    report = monitor(base, made[:2], names)
    assert [item.run for item in report.checked] == [str(tmp_path / run) for run in ("a", "b$\\no$") for _ in range(3)]
    plot_monitor(report, tmp_path / "plot.png")  # a name between dollars is no formula
    axes = Figure().add_subplot()
    _draw(axes, report)
    lines = [np.asarray(line.get_xdata()).tolist() for line in axes.get_lines()]
    assert lines == [[4, 8, 12]] * 4
    assert len(set(axes.get_legend_handles_labels()[1])) == 4
