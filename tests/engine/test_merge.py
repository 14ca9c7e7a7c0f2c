"""The engine against the naive reference: plan, run, and what lies in the folder afterwards."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.builders import llama_shapes, make_checkpoint, random_tensors
from tests.oracles.merge import bf16_values, merged, nearest_bf16
from tests.sources import MemoryDirection, identity, random_direction
from wsmerge.core.deltas import DenseDelta, LowRankDelta
from wsmerge.core.dtypes import BF16, F16, F32, F64, DType, dtype_named, to_float32
from wsmerge.core.tensor_file import TensorFile
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.engine.merge import MergeJob, MergeReport, run_merge
from wsmerge.engine.plan import PlannedDirection, PlanOptions, plan_steering
from wsmerge.engine.sidecars import OutputFiles
from wsmerge.errors import BaseMismatchError, NonFiniteError, OutputError, UsageError

SMALL_BLOCKS = PlanOptions(block_bytes=1 << 20, threads=3)


def run(base: Path, out: Path, directions, *, out_dtype=None, options=SMALL_BLOCKS, **job) -> MergeReport:
    with Checkpoint(base) as checkpoint:
        plan = plan_steering(
            checkpoint, [PlannedDirection(*item) for item in directions], out_dtype=out_dtype, options=options
        )
        return run_merge(plan, MergeJob(out, {}, "acme/base", OutputFiles.steered(plan.base, out_dtype), **job))


def read_all(folder: Path) -> dict[str, tuple[DType, NDArray[Any]]]:
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        with TensorFile(path) as file:
            for name, spec in file.specs.items():
                tensors[name] = (spec.dtype, np.frombuffer(file.read(name), spec.dtype.storage).reshape(spec.shape))
    return tensors


def coefficients(direction: MemoryDirection, k: float) -> dict[str, float]:
    return dict.fromkeys(direction.shapes, k)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("rank", [4, None])
def test_bf16_result_is_the_correctly_rounded_one(tmp_path, shards, rank):
    shapes = llama_shapes(hidden=64, inner=96, vocab=300)
    tensors = random_tensors(shapes)
    base = make_checkpoint(tmp_path / "base", tensors, shards=shards)
    one, two = random_direction(shapes, rank=rank, seed=1), random_direction(shapes, rank=2, seed=2)
    run(base, tmp_path / "out", [(one, coefficients(one, -1.5)), (two, coefficients(two, 0.7))])
    written = read_all(tmp_path / "out")
    assert sorted(written) == sorted(shapes)
    wrong = total = 0
    for name, (dtype, bits) in tensors.items():
        assert written[name][0] is dtype
        terms = [(-1.5, one.deltas[name]), (0.7, two.deltas[name])] if name in one.deltas else []
        expected = nearest_bf16(merged(bf16_values(bits), terms))
        wrong += int(np.sum(written[name][1] != expected))
        total += bits.size
    assert wrong / total <= 1e-4


def test_all_coefficients_zero_gives_the_bases_bytes(tmp_path):
    shapes = llama_shapes()
    tensors = random_tensors(shapes) | {"model.counter": (dtype_named("I64"), np.arange(5))}
    base = make_checkpoint(tmp_path / "base", tensors, shards=2)
    direction = random_direction(shapes)
    direction.base = identity({name: values.shape for name, (_, values) in tensors.items()})
    report = run(base, tmp_path / "out", [(direction, coefficients(direction, 0.0))])
    written = read_all(tmp_path / "out")
    assert {name: values.tobytes() for name, (_, values) in tensors.items()} == {
        name: values.tobytes() for name, (_, values) in written.items()
    }
    assert report.fidelity.overall.cosine is None


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    block=st.sampled_from([1 << 20, 2 << 20]),
    threads=st.integers(1, 6),
    shard=st.sampled_from([10**3, 10**5, 10**9]),
    seed=st.integers(0, 3),
)
def test_blocks_threads_and_shards_change_no_bit(tmp_path_factory, block, threads, shard, seed):
    tmp_path = tmp_path_factory.mktemp("cut")
    shapes = llama_shapes(layers=1, hidden=32, inner=40, vocab=20000)
    base = make_checkpoint(tmp_path / "base", random_tensors(shapes, seed=seed))
    one, two = random_direction(shapes, rank=3, seed=seed), random_direction(shapes, rank=None, seed=seed + 1)
    items = [(one, coefficients(one, 0.3)), (two, coefficients(two, -2.0))]
    run(base, tmp_path / "a", items, options=PlanOptions(max_shard_bytes=shard, block_bytes=block, threads=threads))
    run(base, tmp_path / "b", items, options=PlanOptions(threads=1))
    first, second = read_all(tmp_path / "a"), read_all(tmp_path / "b")
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name][1], second[name][1])


@pytest.mark.parametrize("held", [BF16, F16, F32, F64])
@pytest.mark.parametrize("target", [BF16, F16, F32, F64])
def test_every_pair_of_dtypes_rounds_once(tmp_path, held, target):
    shapes = {"model.embed_tokens.weight": (37, 11), "model.layers.0.mlp.up_proj.weight": (90, 70)}
    tensors = random_tensors(shapes, dtype=held.recipe_name)
    base = make_checkpoint(tmp_path / "base", tensors, config={"model_type": "llama", "dtype": held.recipe_name})
    direction = random_direction(shapes)
    run(base, tmp_path / "out", [(direction, coefficients(direction, 0.5))], out_dtype=target)
    for name, (dtype, values) in read_all(tmp_path / "out").items():
        assert dtype is target
        held_values = tensors[name][1].astype(np.float64) if held is F64 else to_float32(tensors[name][1], held)
        exact = merged(held_values, [(0.5, direction.deltas[name])])
        written = values.astype(np.float64) if target is F64 else to_float32(values, target).astype(np.float64)
        # Half a unit in the last place of the output's dtype, and the float32 sum before it.
        unit = {BF16: 2.0**-8, F16: 2.0**-11, F32: 2.0**-24, F64: 2.0**-53}[target]
        assert np.all(np.abs(written - exact) <= np.abs(exact) * unit + 8e-8)
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == target.recipe_name


def test_a_tied_direction_changes_both_ends_of_an_untied_model(tmp_path):
    shapes = llama_shapes(tied=False)
    tensors = random_tensors(shapes)
    base = make_checkpoint(tmp_path / "base", tensors)
    embedding = "model.embed_tokens.weight"
    tied = {"lm_head.weight": embedding}
    direction = MemoryDirection(
        {embedding: DenseDelta(np.full(shapes[embedding], 0.5, np.float32))}, identity(llama_shapes(), tied=tied)
    )
    run(base, tmp_path / "out", [(direction, {embedding: 1.0})])
    written = read_all(tmp_path / "out")
    for name in (embedding, "lm_head.weight"):
        expected = nearest_bf16(bf16_values(tensors[name][1]) + 0.5)
        np.testing.assert_array_equal(written[name][1], expected)


def test_two_equal_deltas_for_a_tied_tensor_are_one_and_unequal_ones_are_refused(tmp_path):
    shapes = llama_shapes()
    tensors = random_tensors(shapes)
    base = make_checkpoint(tmp_path / "base", tensors)
    embedding = "model.embed_tokens.weight"
    half = DenseDelta(np.full(shapes[embedding], 0.5, np.float32))
    untied = identity(llama_shapes(tied=False))
    both = MemoryDirection({embedding: half, "lm_head.weight": half}, untied)
    run(base, tmp_path / "out", [(both, coefficients(both, 1.0))])
    expected = nearest_bf16(bf16_values(tensors[embedding][1]) + 0.5)
    np.testing.assert_array_equal(read_all(tmp_path / "out")[embedding][1], expected)
    both.deltas = {embedding: half, "lm_head.weight": -half}
    with pytest.raises(BaseMismatchError, match="one tensor"):
        run(base, tmp_path / "other", [(both, coefficients(both, 1.0))])
    assert not (tmp_path / "other").exists()


def test_what_does_not_fit_is_listed_whole(tmp_path):
    shapes = llama_shapes()
    base = make_checkpoint(tmp_path / "base", random_tensors(shapes))
    direction = random_direction(llama_shapes(hidden=8, layers=4))
    with pytest.raises(BaseMismatchError) as caught:
        run(base, tmp_path / "out", [(direction, coefficients(direction, 1.0))])
    text = str(caught.value)
    assert "model.layers.3.mlp.up_proj.weight is not in base" in text
    assert "model.layers.0.mlp.up_proj.weight is [24, 16]" in text
    assert "structure" in text


@pytest.mark.parametrize("k", [float("nan"), float("inf")])
def test_a_coefficient_must_be_finite(tmp_path, k):
    base = make_checkpoint(tmp_path / "base", random_tensors(llama_shapes()))
    direction = random_direction(llama_shapes())
    with pytest.raises(NonFiniteError, match="finite"):
        run(base, tmp_path / "out", [(direction, coefficients(direction, k))])


def test_nan_and_infinity_of_the_base_stay(tmp_path):
    shapes = llama_shapes()
    tensors = random_tensors(shapes)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name][1][0, :3] = [0x7FC0, 0x7F80, 0xFF80]
    base = make_checkpoint(tmp_path / "base", tensors)
    direction = random_direction(shapes)
    run(base, tmp_path / "out", [(direction, coefficients(direction, 1.0))])
    values = bf16_values(read_all(tmp_path / "out")[name][1])[0, :3]
    assert np.isnan(values[0])
    assert values[1:].tolist() == [np.inf, -np.inf]


def test_fidelity_tells_what_bf16_lost(tmp_path):
    shapes = llama_shapes(hidden=64, inner=96)
    tensors = random_tensors(shapes, scale=0.5)
    base = make_checkpoint(tmp_path / "base", tensors)
    small, large = (
        random_direction(shapes, scale=0.001, label="small"),
        random_direction(shapes, scale=0.5, seed=9, label="large"),
    )
    lost = run(base, tmp_path / "small", [(small, coefficients(small, 1.0))])
    kept = run(base, tmp_path / "large", [(large, coefficients(large, 1.0)), (small, coefficients(small, 0.0))])
    assert lost.fidelity.overall.cosine is not None
    assert lost.fidelity.overall.cosine < 0.5
    assert any("float32" in line for line in lost.warnings)
    assert kept.fidelity.overall.kept["large"] == pytest.approx(1, abs=1e-3)
    assert "small" not in kept.fidelity.overall.kept
    for name in small.shapes:
        written = bf16_values(read_all(tmp_path / "small")[name][1]) - bf16_values(tensors[name][1])
        asked = small.deltas[name].dense()
        norm = np.linalg.norm
        expected = float(np.vdot(written, asked)) / (norm(written) * norm(asked)) if written.any() else 0.0
        assert lost.fidelity.tensors[name].cosine == pytest.approx(expected, abs=1e-5)
        assert lost.fidelity.tensors[name].norm_ratio == pytest.approx(norm(written) / norm(asked), rel=1e-5)


def test_fidelity_splits_directions_and_flags_parallel_ones(tmp_path):
    shapes = llama_shapes(hidden=64, inner=96)
    base = make_checkpoint(tmp_path / "base", random_tensors(shapes, dtype="float32"))
    one, two = random_direction(shapes, label="one"), random_direction(shapes, seed=5, label="two")
    apart = run(base, tmp_path / "apart", [(one, coefficients(one, 1.0)), (two, coefficients(two, -0.5))])
    assert apart.fidelity.overall.kept == pytest.approx({"one": 1, "two": 1}, abs=1e-4)
    assert not apart.fidelity.overall.collinear
    same = run(base, tmp_path / "same", [(one, coefficients(one, 1.0)), (one, coefficients(one, 2.0))])
    assert same.fidelity.overall.collinear
    assert len(same.fidelity.overall.kept) == 2


def test_report_names_inputs_outputs_and_other_weights(tmp_path):
    shapes = llama_shapes()
    base = make_checkpoint(tmp_path / "base", random_tensors(shapes), shards=2)
    (base / "tokenizer.json").write_text("{}")
    (base / "generation_config.json").write_text("{}")
    (base / "README.md").write_text("the base's own card")
    direction = random_direction(shapes)
    report = run(base, tmp_path / "out", [(direction, coefficients(direction, 1.0))])
    told = json.loads((tmp_path / "out/wsmerge.json").read_text())
    data = (tmp_path / "out/model.safetensors").read_bytes()
    assert told["outputs"]["model.safetensors"] == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    with Checkpoint(base) as checkpoint:
        assert told["base"]["weights"] == checkpoint.weights_digest()
    assert "other weights" in report.warnings[0]
    carried = {path.name for path in (tmp_path / "out").iterdir()}
    assert carried == {
        "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "wsmerge.json"
    }  # fmt: skip
    assert "acme/base" in (tmp_path / "out/README.md").read_text()
    assert "own card" not in (tmp_path / "out/README.md").read_text()


class TestOutput:
    @pytest.fixture
    def base(self, tmp_path) -> Path:
        return make_checkpoint(tmp_path / "base", random_tensors(llama_shapes()))

    def test_an_existing_folder_is_refused_and_kept(self, base, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out/mine.txt").write_text("mine")
        with pytest.raises(OutputError, match="exists"):
            run(base, tmp_path / "out", [])
        with pytest.raises(OutputError, match="did not write it"):
            run(base, tmp_path / "out", [], overwrite=True)
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]

    def test_overwrite_leaves_nothing_of_the_old_shards(self, base, tmp_path):
        run(base, tmp_path / "out", [], options=PlanOptions(max_shard_bytes=2000))
        assert len(list((tmp_path / "out").glob("*.safetensors"))) > 3
        run(base, tmp_path / "out", [], overwrite=True)
        assert [path.name for path in (tmp_path / "out").glob("*safetensors*")] == ["model.safetensors"]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out"]

    @pytest.mark.parametrize("place", ["base", "base/out", "."])
    def test_an_output_over_its_input_is_refused(self, base, tmp_path, place):
        with pytest.raises((UsageError, OutputError)):
            run(base, tmp_path / place, [], overwrite=True)
        assert sorted(path.name for path in base.iterdir()) == ["config.json", "model.safetensors"]

    @pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
    def test_a_failure_in_the_middle_leaves_nothing(self, base, tmp_path, monkeypatch, error):
        written = []

        def pwrite(_fd: int, _data: bytes, offset: int) -> int:
            written.append(offset)
            raise error

        monkeypatch.setattr(os, "pwrite", pwrite)
        with pytest.raises((OutputError, KeyboardInterrupt)):
            run(base, tmp_path / "deep/er/out", [])
        assert written
        assert [path.name for path in tmp_path.iterdir()] == ["base"]

    def test_a_disk_without_room_is_told_before_anything_is_written(self, base, tmp_path, monkeypatch):
        full = shutil.disk_usage(tmp_path)._replace(free=10)
        monkeypatch.setattr(shutil, "disk_usage", lambda _path: full)
        with pytest.raises(OutputError, match="not enough room"):
            run(base, tmp_path / "out", [])
        assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_low_rank_orientation_is_the_checkpoints():
    delta = LowRankDelta(np.ones((3, 1), np.float32), np.arange(4, dtype=np.float32)[None])
    assert delta.dense().tolist() == [[0, 1, 2, 3]] * 3
