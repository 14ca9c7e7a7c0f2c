"""`model+lora` sources: mergekit's merged models without its scratch copies."""

from __future__ import annotations

import numpy as np
import pytest

from tests.builders import make_adapter
from tests.mergekit.oracle import read_tensors, run_mergekit, same_config, values_of
from tests.mergekit.running import merge_ours, models_recipe, slices_recipe
from wsmerge.engine.numerics import Numerics

DTYPES = ["bf16", "f16", "f32"]
RANK, ALPHA = 16, 20  # no power of two between them, so that scaling rounds


@pytest.fixture(scope="module", params=DTYPES)
def base(request, zoo):
    return zoo.base("llama", dtype=request.param)


@pytest.fixture(scope="module")
def adapters(base, tmp_path_factory):
    shapes = {name: item.shape for name, item in read_tensors(base).items() if name.endswith("_proj.weight")}
    root = tmp_path_factory.mktemp("adapters")
    return [make_adapter(root / f"adapter{seed}", shapes, rank=RANK, alpha=ALPHA, seed=seed) for seed in range(3)]


def adapted(base, adapter):
    return f"{base}+{adapter}"


def both_ways(recipe, folder, **ours):
    theirs = run_mergekit(recipe, folder / "theirs", lora_merge_cache=str(folder / "cache"))
    merge_ours(recipe, folder / "ours", **ours)
    return folder / "ours", theirs


def ulp(values, dtype):
    bits = {"BF16": 8, "F16": 11, "F32": 24}[dtype]
    return np.exp2(np.floor(np.log2(np.maximum(np.abs(values), 1e-30))) + 1 - bits)


def share_of_differing(ours, theirs):
    """Share of elements whose bits differ; none by more than one unit in the last place."""
    left, right = read_tensors(ours), read_tensors(theirs)
    assert {name: item[:2] for name, item in left.items()} == {name: item[:2] for name, item in right.items()}
    different, total = 0, 0
    for name, tensor in left.items():
        one, two = values_of(tensor), values_of(right[name])
        larger = np.maximum(np.abs(one), np.abs(two))
        # The delta is rounded before the sum, so a delta larger than the sum brings its own unit; deltas are below 1/16.
        allowed = np.maximum(ulp(larger, tensor.dtype), ulp(np.full_like(larger, 2**-4), tensor.dtype))
        assert np.all(np.abs(one - two) <= allowed), name
        different += int(np.count_nonzero(tensor.bits != right[name].bits))
        total += tensor.bits.size
    return different / total


# BLAS may sum the products of the factors in another order than ours, so a last bit of a float32 delta may differ; how
# often depends on the processor (none does with the one at hand), and rounding to 16 bits hides nearly all of it.
SHARES = {"bf16": 1e-3, "f16": 4e-3, "f32": 0.25}


def allowed_share(base):
    return next(share for name, share in SHARES.items() if f"-{name}-" in base.name)


@pytest.mark.parametrize("method", ["passthrough", "task_arithmetic", "linear"])
def test_share_of_elements_that_differ(base, adapters, tmp_path, method):
    one, two, _ = (adapted(base, adapter) for adapter in adapters)
    recipe = {
        "passthrough": models_recipe("passthrough", [one]),
        "task_arithmetic": models_recipe("task_arithmetic", [(one, {"weight": 1}), (two, {"weight": -0.5})], base=base),
        "linear": models_recipe("linear", [(one, {"weight": 1}), (two, {"weight": 2})]),
    }[method]
    ours, theirs = both_ways(recipe, tmp_path)
    assert share_of_differing(ours, theirs) <= allowed_share(base)
    assert same_config(ours, theirs)


def test_an_adapter_on_the_base(base, adapters, tmp_path):
    zero, one, two = (adapted(base, adapter) for adapter in adapters)
    ours, theirs = both_ways(models_recipe("model_stock", [one, two], base=zero, dtype="float32"), tmp_path)
    left, right = read_tensors(ours), read_tensors(theirs)
    for name, tensor in left.items():
        np.testing.assert_allclose(values_of(tensor), values_of(right[name]), rtol=0, atol=1e-3)
    assert same_config(ours, theirs)


def test_adapters_in_slices(base, adapters, tmp_path):
    one, two, _ = (adapted(base, adapter) for adapter in adapters)
    ours, theirs = both_ways(slices_recipe("passthrough", [[(one, [0, 2])], [(two, [1, 3])]]), tmp_path)
    assert share_of_differing(ours, theirs) <= allowed_share(base)


def test_nothing_is_written_but_the_output(base, adapters, tmp_path, monkeypatch):
    before = {path: path.stat().st_mtime_ns for folder in [base, *adapters] for path in [folder, *folder.iterdir()]}
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("TMPDIR", str(work))
    recipe = models_recipe("linear", [(adapted(base, adapter), {"weight": 1}) for adapter in adapters])
    merge_ours(recipe, work / "out")
    assert [path.name for path in work.iterdir()] == ["out"]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_precise_rounds_once(base, adapters, tmp_path):
    recipe = models_recipe("passthrough", [adapted(base, adapters[0])])
    merge_ours(recipe, tmp_path / "ours", numerics=Numerics(precise=True))
    name = "model.layers.1.mlp.up_proj.weight"
    factors = {
        key.split(".")[-2]: values_of(item)
        for key, item in read_adapter(adapters[0]).items()
        if key.startswith(f"base_model.model.{name.removesuffix('.weight')}.")
    }
    stored = read_tensors(base)[name]
    exact = values_of(stored) + (ALPHA / RANK) * factors["lora_B"] @ factors["lora_A"]
    # Half a unit of the output's dtype, and what float32 may add to it on the way.
    allowed = ulp(exact, stored.dtype) * (0.5 if stored.dtype != "F32" else 2) + 1e-7
    assert np.all(np.abs(values_of(read_tensors(tmp_path / "ours")[name]) - exact) <= allowed)


def read_adapter(folder):
    import safetensors.numpy  # noqa: PLC0415 - used here alone

    from tests.mergekit.oracle import Stored  # noqa: PLC0415 - used here alone

    loaded = safetensors.numpy.load_file(folder / "adapter_model.safetensors")
    return {name: Stored("F32", values.shape, values.view(np.uint32)) for name, values in loaded.items()}
