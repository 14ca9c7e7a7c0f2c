"""The memory of merges: under what the plan states, measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wsmerge
from benchmarks.memory import _peak_of
from benchmarks.synthetic import make_checkpoint, make_fine_tune
from tests.builders import llama_shapes
from tests.engine.merging.made import model

SIZES = {"50M": (512, 10, 1408, 32000)}
HALF = {"weight": 0.5, "density": 0.5}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.synthetic.SIZES", SIZES)
        base = make_checkpoint(folder / "base", "50M")
    return base, make_fine_tune(base, folder / "one", seed=1), make_fine_tune(base, folder / "two", seed=2)


def measured(folder: Path, recipe: dict[str, Any], *options: str) -> tuple[int, int]:
    """Peak and stated bytes of a merge."""
    path = folder / "recipe.yml"
    path.write_text(json.dumps(recipe))
    wsmerge = [sys.executable, "-W", "ignore", "-m", "wsmerge"]
    plan = subprocess.run([*wsmerge, "plan", str(path), "--json", *options], check=True, capture_output=True)
    command = [*wsmerge, "merge", str(path), str(folder / "out"), *options]
    _peak_of(command)  # the first run compiles the kernels
    peak, _ = _peak_of([*command, "--overwrite"])
    return peak, json.loads(plan.stdout)["peak_bytes"]


def recipe_of(method, models):
    base, *others = models
    sources = [{"model": str(path), "parameters": HALF} for path in (others[:1] if method == "slerp" else others)]
    return {"merge_method": method, "base_model": str(base), "models": sources, "parameters": {"t": 0.5}}


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--precise",)], ids=str)
def test_ties_in_blocks(models, tmp_path, options):
    peak, stated = measured(tmp_path, recipe_of("ties", models), *options)
    assert peak <= stated <= 400_000_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options"),
    [("slerp", ()), ("model_stock", ()), ("dare_linear", ("--mergekit-rng",))],
    ids=["slerp", "model_stock", "dare_linear"],
)
def test_whole_tensors(models, tmp_path, method, options):
    peak, stated = measured(tmp_path, recipe_of(method, models), *options)
    assert peak <= stated
    assert stated < 1_500_000_000


def test_results_that_wait_for_mergekits_order_are_counted(tmp_path):
    """mergekit computes layers in the order of their names, so 10 and 11 wait until 2 to 9 are written."""
    sizes = {}
    for layers in (10, 12):
        shapes = llama_shapes(layers=layers, hidden=64, inner=4000)
        base = model(tmp_path / f"base{layers}", shapes=shapes)
        recipe: dict[str, Any] = {"merge_method": "dare_linear", "base_model": str(base)}
        recipe["models"] = [{"model": str(model(tmp_path / f"one{layers}", shapes=shapes, seed=1)), "parameters": HALF}]
        for rng in (False, True):
            settings = wsmerge.Settings(numerics=wsmerge.Numerics(mergekit_rng=rng))
            with wsmerge.plan(recipe, settings=settings) as planned:
                sizes[layers, rng] = planned.merge.peak_bytes
    layer = 2 * sum(int(np.prod(shape)) for name, shape in llama_shapes(hidden=64, inner=4000).items() if ".0." in name)
    assert sizes[12, False] == sizes[10, False]
    assert 2 * layer <= sizes[12, True] - sizes[10, True] <= 3 * layer
