"""Merges that are killed, interrupted or fail: what is left, what the next run makes of it, and that nobody waits for ever."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import wsmerge
from tests.builders import llama_shapes
from tests.engine.merging.made import direction, entries, fine_tune, merge, model
from tests.engine.test_resume import stop_in_the_middle
from wsmerge.engine.journal import JOURNAL_FILE
from wsmerge.errors import CheckpointError, RecipeError

SHAPES = llama_shapes(layers=4, hidden=256, inner=700, vocab=4000)

# Merges a recipe; told to be slow, it waits after every block. Prints how much was there at first, and how long a run had.
SCRIPT = """
import json, sys, time
import wsmerge
recipe, out, wait_s, rng = sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4] == "True"
options = wsmerge.PlanOptions(max_shard_bytes=3_000_000, block_bytes=1 << 20, threads=2)
settings = wsmerge.Settings(options=options, numerics=wsmerge.Numerics(mergekit_rng=rng, seed=3))
def progress(done, total):
    time.sleep(wait_s)
print(wsmerge.merge(recipe, out, settings=settings, progress=progress).resumed_bytes)
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[Path, Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    base = model(folder / "base", shapes=SHAPES)
    return base, fine_tune(base, folder / "one", seed=1), fine_tune(base, folder / "two", seed=2)


def write_recipe(folder, method, models, **top):
    base, *others = models
    each = {"weight": 0.5, "density": 0.5}
    count = 1 if method == "slerp" else 2
    sources = entries(*((path, each) for path in others[:count]))
    path = folder / "recipe.yml"
    recipe = {"merge_method": method, "base_model": str(base), "models": sources, "parameters": {"t": 0.4}, **top}
    path.write_text(json.dumps(recipe))
    return path


def start(recipe: Path, out: Path, *, wait_s: float = 0, rng: bool = False) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(recipe), str(out), str(wait_s), str(rng)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(recipe: Path, out: Path, **options: bool) -> int:
    process = start(recipe, out, **options)
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    return int(stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "rng"), [("ties", False), ("slerp", False), ("model_stock", False), ("dare_linear", True)], ids=str
)
def test_a_killed_merge_goes_on_and_gives_the_same_files(models, tmp_path, method, rng):
    recipe = write_recipe(tmp_path, method, models)
    assert finish(recipe, tmp_path / "whole", rng=rng) == 0
    slow = start(recipe, tmp_path / "out", wait_s=0.3, rng=rng)
    stop_in_the_middle(slow, tmp_path / "out.partial" / JOURNAL_FILE, signal.SIGKILL)
    assert not (tmp_path / "out").exists()
    assert finish(recipe, tmp_path / "out", rng=rng) > 1 << 20
    whole, resumed = (json.loads((tmp_path / name / "wsmerge.json").read_text()) for name in ("whole", "out"))
    assert resumed["outputs"] == whole["outputs"]
    assert len(whole["outputs"]) > 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "recipe.yml", "whole"]


@pytest.mark.slow
def test_what_directions_add_is_resumed_too(models, tmp_path):
    w = direction(models[0], tmp_path / "kind", only="mlp.up_proj")
    recipe = write_recipe(tmp_path, "ties", models, directions=[{"direction": str(w), "weight": 2.0}])
    finish(recipe, tmp_path / "whole")
    slow = start(recipe, tmp_path / "out", wait_s=0.3)
    stop_in_the_middle(slow, tmp_path / "out.partial" / JOURNAL_FILE, signal.SIGKILL)
    assert finish(recipe, tmp_path / "out") > 1 << 20
    whole, resumed = (json.loads((tmp_path / name / "wsmerge.json").read_text()) for name in ("whole", "out"))
    assert resumed["outputs"] == whole["outputs"]
    assert resumed["fidelity"]["overall"]["cosine"] == pytest.approx(whole["fidelity"]["overall"]["cosine"], rel=1e-12)


@pytest.mark.parametrize(
    "change", [{"parameters": {"lambda": 0.5}}, {"dtype": "float32"}, {"merge_method": "breadcrumbs"}], ids=str
)
def test_a_changed_recipe_does_not_go_on_with_it(models, tmp_path, change):
    recipe = write_recipe(tmp_path, "ties", models)
    slow = start(recipe, tmp_path / "out", wait_s=0.3)
    stop_in_the_middle(slow, tmp_path / "out.partial" / JOURNAL_FILE, signal.SIGKILL)
    recipe.write_text(json.dumps(json.loads(recipe.read_text()) | change))
    assert finish(recipe, tmp_path / "out") == 0


def test_another_seed_does_not_go_on_with_it(models, tmp_path):
    recipe = write_recipe(tmp_path, "dare_linear", models)
    slow = start(recipe, tmp_path / "out", wait_s=0.3)
    stop_in_the_middle(slow, tmp_path / "out.partial" / JOURNAL_FILE, signal.SIGKILL)
    options = wsmerge.PlanOptions(max_shard_bytes=3_000_000, block_bytes=1 << 20, threads=2)
    assert merge(tmp_path / "out", recipe, options=options, numerics=wsmerge.Numerics(seed=4)).resumed_bytes == 0


# A method of the user's that takes its time on each tensor, and says when it is in it.
SLOW = """
import sys, time
from mergekit.merge_methods import register
from mergekit.merge_methods.base import TensorGroup
from mergekit.merge_methods.easy_define import merge_method
import torch

@merge_method(name="slow")
def slow(group: TensorGroup) -> torch.Tensor:
    if group.tensors[0].numel() > 4:  # no probe of its dtype
        print("inside", file=sys.stderr, flush=True)
        time.sleep(1.5)
    return group.tensors[0]

register(slow)
"""


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_in_a_whole_tensor_leaves_nothing(models, tmp_path, sign):
    (tmp_path / "slow_method.py").write_text(SLOW)
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(json.dumps({"merge_method": "slow", "models": entries(*((path, {}) for path in models))}))
    command = [sys.executable, "-W", "ignore", "-m", "wsmerge", "merge", str(recipe), "out", "--plugin", "slow_method"]
    process = subprocess.Popen(
        [*command, "--threads", "4"], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    while True:
        line = process.stderr.readline()
        assert line, "it ended before it began"
        if line == "inside\n" and (tmp_path / "out.partial").exists():
            break
    process.send_signal(sign)
    _, told = process.communicate(timeout=240)
    assert process.returncode == 130, told
    assert "Traceback" not in told
    # The tensor in work is finished, and those that wait for their turn are not begun.
    assert told.count("inside") <= 1
    left = {path.name for path in tmp_path.iterdir()} - {"__pycache__"}
    assert left == {"recipe.yml", "slow_method.py"}


@pytest.mark.parametrize("threads", [1, 2, 6])
def test_an_error_in_statistics_stops_all_workers(models, tmp_path, threads):
    """A bad density is found when its tensor is prepared; other workers wait for it or for later tensors."""
    base, *others = models
    density = [{"filter": "layers.2.mlp.up_proj", "value": -1.0}, {"value": 0.5}]
    sources = entries(*((path, {"weight": 0.5, "density": density}) for path in others))
    recipe = {"merge_method": "dare_linear", "base_model": str(base), "models": sources}
    options = wsmerge.PlanOptions(block_bytes=1 << 20, threads=threads)
    with pytest.raises(RecipeError, match="density"):
        merge(tmp_path / "out", recipe, options=options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rng", [False, True])
@pytest.mark.parametrize("threads", [1, 2, 6])
def test_an_error_of_mergekits_method_stops_all_workers(models, tmp_path, threads, rng):
    """della's epsilon has to leave probabilities between 0 and 1: mergekit refuses in the middle of the merge."""
    base, *others = models
    epsilon = [{"filter": "layers.2.mlp.up_proj", "value": 0.9}, {"value": 0.1}]
    sources = entries(*((path, {"weight": 0.5, "density": 0.5, "epsilon": epsilon}) for path in others))
    recipe = {"merge_method": "della", "base_model": str(base), "models": sources}
    options = wsmerge.PlanOptions(block_bytes=1 << 20, threads=threads)
    with pytest.raises((RecipeError, CheckpointError), match=r"up_proj|epsilon"):
        merge(tmp_path / "out", recipe, options=options, numerics=wsmerge.Numerics(mergekit_rng=rng))
    assert not list(tmp_path.iterdir())


def test_an_input_that_ends_early_is_told(models, tmp_path, monkeypatch):
    def fail(*_):
        raise CheckpointError("the disk is gone", where="one")

    monkeypatch.setattr("wsmerge.engine.inputs.stored.StoredTensor.read_into", fail)
    with pytest.raises(CheckpointError, match="the disk is gone"):
        merge(tmp_path / "out", write_recipe(tmp_path, "ties", models))
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yml"]
