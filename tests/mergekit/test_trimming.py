"""Methods that trim: mergekit's bits, but for elements exactly at the trim threshold."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest

from tests.mergekit.architectures import ARCHITECTURES, Architecture
from tests.mergekit.oracle import read_tensors, same_config, same_tokenizer
from tests.mergekit.running import models_recipe, run_both
from tests.mergekit.thresholds import (
    ambiguous_breadcrumbs,
    ambiguous_ties,
    ambiguous_variance,
    delta_of,
    only_ambiguous_differ,
)

DENSITIES = (0.5, 0.3, 0.85)
WEIGHTS = (0.8, 0.6, -0.3)

LLAMA = Architecture("llama", "bf16", sharded=True)


def trimmed(method, models, **parameters):
    base, *others = models
    sources = [
        (model, {"weight": weight, "density": density})
        for model, weight, density in zip(others, WEIGHTS, DENSITIES, strict=True)
    ]
    return models_recipe(method, sources, base=base, parameters=parameters)


def deltas(models, name):
    base, *others = (read_tensors(model) for model in models)
    return [delta_of(other[name], base[name]) for other in others]


def any_of(masks):
    return reduce(np.logical_or, masks)


def hold_trimmed(both, models, ambiguous):
    """Differing elements are at the threshold of a delta; what no delta touches is equal."""
    base, *others = (read_tensors(model) for model in models)

    def allowed(name):
        if name not in base or base[name].dtype not in {"BF16", "F16", "F32"}:
            return np.zeros(read_tensors(both.ours)[name].shape, bool)
        return any_of(
            ambiguous(delta_of(other[name], base[name]), density)
            for other, density in zip(others, DENSITIES, strict=True)
        )

    assert same_config(both.ours, both.theirs)
    assert same_tokenizer(both.ours, both.theirs)
    return only_ambiguous_differ(both.ours, both.theirs, allowed)


# A mixture's experts are fused on the way, so that its output has other tensors than its inputs: see the last test.
DENSE = [item for item in ARCHITECTURES if item.kind != "mixtral"]


@pytest.mark.parametrize("architecture", DENSE, ids=str)
def test_ties(zoo, tmp_path, architecture):
    models = architecture.models(zoo)
    both = run_both(trimmed("ties", models), tmp_path)
    hold_trimmed(both, models, ambiguous_ties)


@pytest.mark.parametrize("method", ["breadcrumbs", "breadcrumbs_ties"])
@pytest.mark.parametrize("architecture", DENSE, ids=str)
def test_breadcrumbs(zoo, tmp_path, architecture, method):
    models = architecture.models(zoo)
    both = run_both(trimmed(method, models, gamma=0.02), tmp_path)
    hold_trimmed(both, models, lambda delta, density: ambiguous_breadcrumbs(delta, density, 0.02))


@pytest.mark.parametrize(
    "parameters", [{"normalize": False}, {"int8_mask": True}, {"lambda": 0.7}, {"rescale": True}], ids=str
)
def test_ties_parameters(zoo, tmp_path, parameters):
    # float32, so that no two magnitudes of a delta are likely to be equal and rescaling cannot hide a fault.
    models = Architecture("mistral", "f32").models(zoo)
    both = run_both(trimmed("ties", models, **parameters), tmp_path)
    hold_trimmed(both, models, ambiguous_ties)


def test_ties_that_trims_nothing_has_mergekits_bits(zoo, tmp_path):
    base, *others = LLAMA.models(zoo)
    sources = [(model, {"weight": weight}) for model, weight in zip(others, WEIGHTS, strict=True)]
    both = run_both(models_recipe("ties", sources, base=base), tmp_path)
    assert only_ambiguous_differ(
        both.ours, both.theirs, lambda name: np.zeros(read_tensors(base)[name].shape, bool)
    ) == (0, 0)


def test_bfloat16_has_elements_at_the_threshold(zoo):
    # Otherwise the allowance above would say nothing.
    models = LLAMA.models(zoo)
    names = read_tensors(models[0])
    found = sum(
        int(ambiguous_ties(delta, density).sum())
        for name in names
        for delta, density in zip(deltas(models, name), DENSITIES, strict=True)
    )
    assert 0 < found < sum(tensor.bits.size for tensor in names.values()) // 20


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_sce_selection(zoo, tmp_path, dtype):
    base, *others = models = Architecture("llama", dtype, sharded=dtype == "bf16", tied=dtype == "f32").models(zoo)
    both = run_both(models_recipe("sce", others, base=base, parameters={"select_topk": 0.4}), tmp_path)

    def allowed(name):
        # The variance is rounded to the inputs' dtype; in float32 its last bit is torch's affair, and so is a tie there.
        stacked = np.stack(deltas(models, name))
        variance = stacked.var(axis=0)
        if dtype == "bf16":
            import ml_dtypes  # noqa: PLC0415 - used here alone

            variance = variance.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)
        return ambiguous_variance(variance, 0.4)

    # A choice at the threshold moves the weights of whole deltas, so ours must choose as torch does.
    differ, _ = only_ambiguous_differ(both.ours, both.theirs, allowed)
    assert differ == 0


@pytest.mark.parametrize("method", ["ties", "breadcrumbs_ties"])
def test_fused_experts(zoo, tmp_path, method):
    # Deltas of fused experts are those of mergekit's own reading of the inputs, which `passthrough` writes.
    models = Architecture("mixtral", "bf16", sharded=True).models(zoo)
    fused = [
        run_both(models_recipe("passthrough", [model]), tmp_path / str(number)).theirs
        for number, model in enumerate(models)
    ]
    both = run_both(trimmed(method, models), tmp_path)

    def ambiguous(delta, density):
        return ambiguous_ties(delta, density) if method == "ties" else ambiguous_breadcrumbs(delta, density, 0.01)

    hold_trimmed(both, fused, ambiguous)
