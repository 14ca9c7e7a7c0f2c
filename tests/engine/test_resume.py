"""Killed and interrupted merges, as processes: what is left, and what the next run makes of it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.builders import make_checkpoint, random_tensors
from tests.engine.test_merge import read_all
from wsmerge.engine.journal import JOURNAL_FILE

ROOT = Path(__file__).parents[2]
SHAPES = {
    "model.embed_tokens.weight": (4000, 512),
    **{f"model.layers.{i}.mlp.up_proj.weight": (2048, 512) for i in range(6)},
}

# Merges a copy of the base plus 0.5 times a direction; told to be slow, it waits after every block.
SCRIPT = """
import sys, time
from pathlib import Path
from tests.sources import random_direction
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.engine.merge import MergeJob, run_merge
from wsmerge.engine.plan import PlannedDirection, PlanOptions, plan_steering
from wsmerge.engine.sidecars import OutputFiles

base, out, wait_s, k = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
with Checkpoint(base) as checkpoint:
    direction = random_direction({name: spec.shape for name, spec in checkpoint.specs.items()}, rank=2)
    options = PlanOptions(max_shard_bytes=5_000_000, block_bytes=1 << 20, threads=2)
    plan = plan_steering(checkpoint, [PlannedDirection(direction, dict.fromkeys(direction.shapes, k))], options=options)
    resumed = []
    def progress(done, total):
        resumed.append(done)
        time.sleep(wait_s)
        while out.with_name("hold").exists():
            time.sleep(0.01)
    run_merge(plan, MergeJob(out, {}, "acme/base", OutputFiles(plan.base.path)), progress)
print(resumed[0])
"""


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.fixture
def base(tmp_path) -> Path:
    tensors = random_tensors(SHAPES)
    tensors["model.embed_tokens.weight"][1][0, :3] = 0x7FC0  # NaN in the first block
    return make_checkpoint(tmp_path / "base", tensors, config={"model_type": "llama"})


def start(base: Path, out: Path, *, wait_s: float = 0, k: float = 0.5) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(base), str(out), str(wait_s), str(k)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def stop_in_the_middle(process: subprocess.Popen[str], journal: Path, sign: signal.Signals) -> None:
    while process.poll() is None:
        if journal.exists() and len(journal.read_text().splitlines()) > 4:
            break
        time.sleep(0.05)
    process.send_signal(sign)
    process.communicate(timeout=240)


def finish(base: Path, out: Path, **options: float) -> int:
    process = start(base, out, **options)
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    return int(stdout)


def test_a_killed_merge_goes_on_and_gives_the_same_files(base, tmp_path):
    first_block = finish(base, tmp_path / "whole")
    stop_in_the_middle(
        start(base, tmp_path / "out", wait_s=0.3), tmp_path / "out.partial" / JOURNAL_FILE, signal.SIGKILL
    )
    assert not (tmp_path / "out").exists()
    assert finish(base, tmp_path / "out") > first_block  # it did not begin at the beginning
    whole, resumed = (json.loads((tmp_path / name / "wsmerge.json").read_text()) for name in ("whole", "out"))
    assert resumed["outputs"] == whole["outputs"]
    assert resumed["base"] == whole["base"]
    counts = {"nan": 3, "made_nan": 0, "made_infinite": 0}
    assert resumed["non_finite"] == whole["non_finite"] == {"model.embed_tokens.weight": counts}
    assert resumed["fidelity"]["overall"]["cosine"] == pytest.approx(whole["fidelity"]["overall"]["cosine"], rel=1e-12)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out", "whole"]


def test_blocks_that_changed_on_the_disk_are_written_again(base, tmp_path):
    finish(base, tmp_path / "whole")
    partial = tmp_path / "out.partial"
    stop_in_the_middle(start(base, tmp_path / "out", wait_s=0.3), partial / JOURNAL_FILE, signal.SIGKILL)
    shard = min(partial.glob("*.safetensors"))
    with shard.open("r+b") as file:
        file.seek(1_500_000)
        file.write(b"\0" * 64)
    finish(base, tmp_path / "out")
    outputs = [json.loads((tmp_path / name / "wsmerge.json").read_text())["outputs"] for name in ("whole", "out")]
    assert outputs[0] == outputs[1]


def test_another_merge_does_not_go_on_with_it(base, tmp_path):
    finish(base, tmp_path / "whole", k=-1.0)
    stop_in_the_middle(
        start(base, tmp_path / "out", wait_s=0.3), tmp_path / "out.partial" / JOURNAL_FILE, signal.SIGKILL
    )
    finish(base, tmp_path / "out", k=-1.0)
    whole, other = read_all(tmp_path / "whole"), read_all(tmp_path / "out")
    for name in whole:
        np.testing.assert_array_equal(whole[name][1], other[name][1])


def test_ctrl_c_leaves_nothing(base, tmp_path):
    process = start(base, tmp_path / "out", wait_s=0.3)
    stop_in_the_middle(process, tmp_path / "out.partial" / JOURNAL_FILE, signal.SIGINT)
    assert process.returncode != 0
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_two_merges_into_one_folder_do_not_mix(base, tmp_path):
    hold = tmp_path / "hold"
    hold.touch()
    slow = start(base, tmp_path / "out")
    while not (tmp_path / "out.partial" / JOURNAL_FILE).exists():
        assert slow.poll() is None
        time.sleep(0.05)
    second = start(base, tmp_path / "out")
    _, stderr = second.communicate(timeout=240)
    hold.unlink()
    assert second.returncode != 0
    assert "another merge is writing this output" in stderr
    _, stderr = slow.communicate(timeout=240)
    assert slow.returncode == 0, stderr


@pytest.mark.parametrize("how", ["new", "exchange", "renames"])
def test_a_merge_that_is_killed_at_any_step_ends_well_the_next_time(tmp_path, how):
    make_checkpoint(
        tmp_path / "base", random_tensors({"norm.weight": (64,), "head.weight": (800, 700)}), config={"a": 1}
    )
    command = [sys.executable, "-m", "tests.engine.killed_merges", str(tmp_path), how]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    assert len(outcomes) > 15
    (wanted,) = {outcome["after"] for outcome in outcomes}
    left = [outcome["left"] for outcome in outcomes]
    # With one step that exchanges the two there is always a whole checkpoint; two renames have an instant without.
    assert set(left) <= {"new": {None, wanted}, "exchange": {"old", wanted}, "renames": {"old", None, wanted}}[how]
    assert left.count(None) == 1 or how != "renames"
    assert max(outcome["resumed"] for outcome in outcomes) > 0
    # A checkpoint that stands before the kill need not be made again; what lies beside it goes with the next merge.
    assert not any(outcome["beside"] for outcome in outcomes if how != "new" or outcome["left"] is None)
    assert {outcome["mode"] for outcome in outcomes} == {oct(0o777 & ~umask())}
