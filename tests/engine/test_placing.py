"""What lies around an output, and is nobody's but the user's."""

import hashlib
import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from tests.builders import llama_shapes, make_checkpoint, random_tensors
from tests.engine.test_merge import SMALL_BLOCKS, coefficients, read_all, run
from tests.sources import MemoryDirection, identity, random_direction
from wsmerge.core.deltas import DenseDelta
from wsmerge.core.dtypes import F16, F64
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.engine.fidelity import fidelity_report
from wsmerge.engine.journal import JOURNAL_FILE
from wsmerge.engine.merge import MergeJob, run_merge
from wsmerge.engine.plan import PlannedDirection, PlanOptions, plan_steering
from wsmerge.engine.sidecars import OutputFiles
from wsmerge.errors import NonFiniteError, OutputError

SHAPES = llama_shapes()
ONE_THREAD = PlanOptions(block_bytes=1 << 20, threads=1)


@pytest.fixture
def base(tmp_path) -> Path:
    return make_checkpoint(tmp_path / "base", random_tensors(SHAPES))


@pytest.mark.parametrize("name", ["out.partial", "out.replaced"])
def test_a_folder_of_the_user_beside_the_output_is_kept(base, tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"in the way|lies there"):
        run(base, tmp_path / "out", [])
    assert (tmp_path / name / "mine.txt").read_text() == "mine"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("journal", [b"\xff\xfe{", b'{"plan": "other"}\n{"block": 0}\n', b""])
def test_what_a_stopped_merge_left_is_taken_over(base, tmp_path, journal):
    (tmp_path / "out.partial").mkdir()
    if journal:
        (tmp_path / "out.partial" / JOURNAL_FILE).write_bytes(journal)
    if journal.startswith(b"\xff"):
        (tmp_path / "out.partial" / f"{JOURNAL_FILE}.new").write_bytes(b'{"plan": "x"}\n')
    run(base, tmp_path / "out", [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out"]


def test_a_torn_line_ends_the_journal(base, tmp_path):
    run(base, tmp_path / "whole", [], keep_partial=True)
    partial = tmp_path / "out.partial"
    partial.mkdir()
    with Checkpoint(base) as checkpoint:
        plan = plan_steering(checkpoint, [], options=SMALL_BLOCKS)
    torn = [
        json.dumps({"plan": plan.digest}),
        '{"block": 0, "sha',
        json.dumps({"block": 0, "sha256": "0", "moments": {}}),
    ]
    (partial / JOURNAL_FILE).write_text("\n".join(torn))
    report = run(base, tmp_path / "out", [])
    assert report.resumed_bytes == 0
    assert read_all(tmp_path / "out").keys() == SHAPES.keys()


def test_files_that_the_user_added_are_not_overwritten(base, tmp_path):
    run(base, tmp_path / "out", [])
    (tmp_path / "out/evaluation.json").write_text("{}")
    with pytest.raises(OutputError, match=r"did not write: evaluation\.json"):
        run(base, tmp_path / "out", [], overwrite=True)
    (tmp_path / "out/evaluation.json").unlink()
    run(base, tmp_path / "out", [], overwrite=True)


def test_an_empty_folder_and_a_link_are_fine_outputs(base, tmp_path):
    (tmp_path / "empty").mkdir()
    run(base, tmp_path / "empty", [])
    (tmp_path / "link").symlink_to(tmp_path / "real")
    run(base, tmp_path / "link", [])
    run(base, tmp_path / "link", [], overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "empty", "link", "real"]


def test_a_base_given_as_a_file_brings_its_config_along(base, tmp_path):
    run(base / "model.safetensors", tmp_path / "out", [])
    assert (tmp_path / "out/config.json").exists()
    with pytest.raises(Exception, match="lie over the input"):
        run(base / "model.safetensors", base / "out", [])


def test_nothing_that_is_published_holds_a_path_of_this_machine(base, tmp_path):
    direction = random_direction(SHAPES)
    run(base, tmp_path / "out", [(direction, coefficients(direction, 1.0))])
    for name in ("wsmerge.json", "README.md"):
        assert str(tmp_path) not in (tmp_path / "out" / name).read_text()


class TestNonFinite:
    def test_a_weight_that_overflows_is_refused_by_name(self, base, tmp_path):
        direction = random_direction(SHAPES)
        with pytest.raises(NonFiniteError, match="becomes infinite or NaN in float16") as caught:
            run(base, tmp_path / "out", [(direction, coefficients(direction, 1e10))], out_dtype=F16)
        assert caught.value.where in direction.shapes
        assert [path.name for path in tmp_path.iterdir()] == ["base"]

    def test_a_base_beyond_float16_is_refused_without_directions_too(self, tmp_path):
        tensors = random_tensors(SHAPES, dtype="float32")
        tensors["model.norm.weight"][1][0] = 1e5
        base = make_checkpoint(tmp_path / "big", tensors)
        with pytest.raises(NonFiniteError, match="1e\\+05"):
            run(base, tmp_path / "out", [], out_dtype=F16)

    @pytest.mark.parametrize("k", [1e300, -1e39])
    def test_a_coefficient_beyond_float32_is_refused(self, base, tmp_path, k):
        direction = random_direction(SHAPES)
        with pytest.raises(NonFiniteError, match="float32 holds"):
            run(base, tmp_path / "out", [(direction, coefficients(direction, k))])

    def test_a_product_beyond_float32_is_refused(self, base, tmp_path):
        direction = random_direction(SHAPES, scale=1e15)
        with pytest.raises(NonFiniteError, match="becomes infinite"):
            run(base, tmp_path / "out", [(direction, coefficients(direction, 1e30))])

    def test_nan_in_the_base_does_not_spoil_the_fidelity(self, base, tmp_path):
        tensors = random_tensors(SHAPES)
        name = "model.layers.0.mlp.up_proj.weight"
        tensors[name][1][0, :2] = [0x7FC0, 0x7F80]
        spoilt = make_checkpoint(tmp_path / "spoilt", tensors)
        direction = random_direction(SHAPES)
        clean = run(base, tmp_path / "clean", [(direction, coefficients(direction, 1.0))]).fidelity.overall
        report = run(spoilt, tmp_path / "out", [(direction, coefficients(direction, 1.0))])
        assert report.fidelity.overall.cosine == pytest.approx(clean.cosine, abs=1e-3)
        assert report.fidelity.overall.kept == pytest.approx(clean.kept, abs=1e-2)
        json.loads((tmp_path / "out/wsmerge.json").read_text(), parse_constant=pytest.fail)


def test_parallel_directions_that_lost_nothing_are_kept_whole(tmp_path):
    base = make_checkpoint(tmp_path / "base", random_tensors(SHAPES, dtype="float64"))
    one = random_direction(SHAPES, label="one")
    report = run(base, tmp_path / "out", [(one, coefficients(one, 2.0)), (one, coefficients(one, 1.0))])
    assert list(report.fidelity.overall.kept.values()) == pytest.approx([1, 1], abs=1e-5)
    assert report.fidelity.overall.collinear
    assert len(report.warnings) == 1  # the other weights are told once


def test_float32_bases_are_summed_in_float64_for_float64_outputs(tmp_path):
    tensors = random_tensors(SHAPES, dtype="float32")
    base = make_checkpoint(tmp_path / "base", tensors)
    name = "model.norm.weight"
    change = np.full(SHAPES[name], 1e-9, np.float32)
    direction = MemoryDirection({name: DenseDelta(change)}, identity(SHAPES))
    run(base, tmp_path / "out", [(direction, {name: 1.0})], out_dtype=F64)
    expected = tensors[name][1].astype(np.float64) + change.astype(np.float64)
    np.testing.assert_array_equal(read_all(tmp_path / "out")[name][1], expected)


def test_directions_that_cancel_are_told_so(base, tmp_path):
    one = random_direction(SHAPES)
    report = run(base, tmp_path / "out", [(one, coefficients(one, 0.5)), (one, coefficients(one, -0.5))])
    assert report.fidelity.overall.cosine is None
    assert "or the directions cancel" in (tmp_path / "out/README.md").read_text()


def test_a_report_of_nothing_is_empty(base):
    with Checkpoint(base) as checkpoint:
        plan = plan_steering(checkpoint, [PlannedDirection(random_direction(SHAPES), {})])
        assert fidelity_report(plan, {}).tensors == {}


def stopped(base: Path, out: Path) -> Path:
    """OUT.partial of a merge that was stopped after some blocks."""

    def stop(done: int, _total: int) -> None:
        if done > 3 << 20:
            raise KeyboardInterrupt

    with Checkpoint(base) as checkpoint:
        plan = plan_steering(checkpoint, [], options=ONE_THREAD)
        job = MergeJob(out, {}, "acme/base", OutputFiles(base), keep_partial=True)
        with pytest.raises(KeyboardInterrupt):
            run_merge(plan, job, stop)
    return out.with_name("out.partial")


@pytest.fixture
def large(tmp_path) -> Path:
    shapes = {f"model.layers.{i}.mlp.up_proj.weight": (1024, 1024) for i in range(6)}
    return make_checkpoint(tmp_path / "large", random_tensors(shapes), config={"model_type": "llama"})


def forge(partial: Path) -> None:
    """Other bytes in the first block, and a journal that agrees with them in everything that needs no secret."""
    head, *rows = (partial / JOURNAL_FILE).read_bytes().splitlines()
    data = bytearray((partial / "model.safetensors").read_bytes())
    data[4096:8192] = bytes(4096)
    (partial / "model.safetensors").write_bytes(data)
    running, lines = hashlib.sha256(), [head]
    for number, row in enumerate(map(json.loads, rows)):
        running.update(data[number << 20 : (number + 1) << 20])
        lines.append(json.dumps(row | {"sha256": running.hexdigest()}).encode())
    (partial / JOURNAL_FILE).write_bytes(b"\n".join(lines) + b"\n")


def link_weights(partial: Path) -> None:
    (partial / "model.safetensors").rename(partial.parent / "victim")
    (partial / "model.safetensors").symlink_to(partial.parent / "victim")


def link_weights_hard(partial: Path) -> None:
    (partial.parent / "victim").hardlink_to(partial / "model.safetensors")


def link_journal(partial: Path) -> None:
    (partial.parent / "victim").write_text("precious")
    (partial / f"{JOURNAL_FILE}.new").symlink_to(partial.parent / "victim")


def link_config(partial: Path) -> None:
    (partial.parent / "victim").write_text("precious")
    (partial / "config.json").symlink_to(partial.parent / "victim")


def open_key(partial: Path) -> None:
    (partial.parent / "state" / "wsmerge" / "journal.key").chmod(0o644)


def nothing(_partial: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("plant", "resumes"),
    [
        (nothing, True),
        (forge, False),
        (link_weights, False),
        (link_weights_hard, False),
        (link_journal, False),
        (link_config, False),
        (open_key, False),
    ],
)
def test_only_what_this_users_merge_wrote_is_gone_on_with(large, tmp_path, monkeypatch, plant, resumes):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    whole = run(large, tmp_path / "whole", [], options=ONE_THREAD)
    partial = stopped(large, tmp_path / "out")
    assert stat.S_IMODE(partial.stat().st_mode) == 0o700
    plant(partial)
    victim = tmp_path / "victim"
    before = victim.read_bytes() if victim.exists() else None
    report = run(large, tmp_path / "out", [], options=ONE_THREAD)
    assert (report.resumed_bytes > 0) is resumes
    assert report.outputs == whole.outputs
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    assert before is None or victim.read_bytes() == before


def test_inputs_that_changed_under_the_same_time_are_read_again(large, tmp_path):
    stopped(large, tmp_path / "out")
    weights = large / "model.safetensors"
    status, data = weights.stat(), bytearray(weights.read_bytes())
    data[-4096:] = bytes(4096)
    weights.write_bytes(data)
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert run(large, tmp_path / "out", [], options=ONE_THREAD).resumed_bytes == 0


def test_a_folder_of_another_user_is_not_written_into(base, tmp_path, monkeypatch):
    (tmp_path / "out.partial").mkdir()
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(OutputError, match="belongs to another user"):
        run(base, tmp_path / "out", [])
    assert not list((tmp_path / "out.partial").iterdir())


@pytest.mark.parametrize("start", [b"", b'{"pl', b'{"plan": "0123', bytes(90)])
def test_a_merge_that_was_killed_in_its_first_line_is_begun_anew(base, tmp_path, start):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / f"{JOURNAL_FILE}.new").write_bytes(start)
    run(base, tmp_path / "out", [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out"]


@pytest.mark.parametrize("text", ['{"files": 5}', '{"files": [[]]}', "{}", "[" * 100_000, "[]", ""])
def test_a_damaged_report_is_none(base, tmp_path, text):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "wsmerge.json").write_text(text)
    with pytest.raises(OutputError, match=r"did not write|exists already"):
        run(base, tmp_path / "out", [], overwrite=True)
