"""Every deterministic method on every architecture: mergekit's bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.mergekit.architectures import ARCHITECTURES, Architecture
from tests.mergekit.oracle import read_tensors, run_mergekit, values_of
from tests.mergekit.running import agree, models_recipe, slices_recipe

Four = tuple[Path, Path, Path, Path]


def linear(models: Four) -> str:
    base, one, two, _ = models
    return models_recipe("linear", [(base, {"weight": 0.2}), (one, {"weight": 0.55}), (two, {"weight": 0.4})])


def linear_sum(models: Four) -> str:
    _, one, two, three = models
    sources = [(one, {"weight": 0.7}), (two, {"weight": 0.4}), (three, {"weight": -0.1})]
    return models_recipe("linear", sources, parameters={"normalize": False})


def task_arithmetic(models: Four) -> str:
    base, one, two, three = models
    sources = [(one, {"weight": 1.0}), (two, {"weight": 0.7}), (three, {"weight": -0.3})]
    return models_recipe("task_arithmetic", sources, base=base, parameters={"lambda": 0.9})


def task_arithmetic_normalized(models: Four) -> str:
    base, one, two, _ = models
    sources = [(one, {"weight": 0.3}), (two, {"weight": 0.9})]
    return models_recipe("task_arithmetic", sources, base=base, parameters={"normalize": True})


def passthrough(models: Four) -> str:
    return models_recipe("passthrough", [models[1]])


def scaled_passthrough(models: Four) -> str:
    return models_recipe("passthrough", [(models[1], {"scale": 0.75})])


def frankenmerge(models: Four) -> str:
    _, one, two, _ = models
    return slices_recipe("passthrough", [[(one, [0, 2])], [(two, [2, 3])]])


def stacked(models: Four) -> str:
    _, one, two, _ = models
    return slices_recipe("passthrough", [[(one, [0, 2])], [(two, [1, 3])], [(one, [2, 3])]])


def slerp(models: Four) -> str:
    base, one, _, _ = models
    return models_recipe("slerp", [base, one], base=base, parameters={"t": 0.35})


def nearswap(models: Four) -> str:
    base, one, _, _ = models
    return models_recipe("nearswap", [one], base=base, parameters={"t": 0.004})


def model_stock(models: Four) -> str:
    base, *others = models
    return models_recipe("model_stock", others, base=base)


def model_stock_filter_wise(models: Four) -> str:
    base, *others = models
    return models_recipe("model_stock", others, base=base, parameters={"filter_wise": True})


def nuslerp(models: Four) -> str:
    _, one, two, _ = models
    return models_recipe("nuslerp", [(one, {"weight": 0.4}), (two, {"weight": 0.6})])


def nuslerp_with_base(models: Four) -> str:
    base, one, two, _ = models
    return models_recipe("nuslerp", [(one, {"weight": 0.4}), (two, {"weight": 0.6})], base=base)


def nuslerp_rows(models: Four) -> str:
    _, one, two, _ = models
    sources = [(one, {"weight": 0.4}), (two, {"weight": 0.6})]
    return models_recipe("nuslerp", sources, parameters={"nuslerp_flatten": False, "nuslerp_row_wise": True})


def multislerp(models: Four) -> str:
    _, one, two, three = models
    return models_recipe("multislerp", [(one, {"weight": 1}), (two, {"weight": 0.5}), (three, {"weight": 0.25})])


def multislerp_with_base(models: Four) -> str:
    base, one, two, _ = models
    return models_recipe("multislerp", [(one, {"weight": 0.6}), (two, {"weight": 0.4})], base=base)


def karcher(models: Four) -> str:
    return models_recipe("karcher", models[1:], parameters={"max_iter": 20, "tol": "1e-9"})


def sce(models: Four) -> str:
    base, *others = models
    return models_recipe("sce", others, base=base)


def ram(models: Four) -> str:
    base, *others = models
    return models_recipe("ram", others, base=base, parameters={"epsilon": 0.005})


def ramplus_tl(models: Four) -> str:
    base, *others = models
    return models_recipe("ramplus_tl", others, base=base, parameters={"epsilon": 0.005, "r": 0.2, "alpha": 0.3})


def arcee_fusion(models: Four) -> str:
    base, one, _, _ = models
    return models_recipe("arcee_fusion", [one], base=base)


METHODS: list[Callable[[Four], str]] = [
    linear,
    linear_sum,
    task_arithmetic,
    task_arithmetic_normalized,
    passthrough,
    scaled_passthrough,
    frankenmerge,
    slerp,
    nearswap,
    model_stock,
    model_stock_filter_wise,
    nuslerp,
    nuslerp_with_base,
    nuslerp_rows,
    multislerp,
    multislerp_with_base,
    karcher,
    sce,
    ram,
    ramplus_tl,
    arcee_fusion,
]


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_bits_config_and_tokenizer_are_mergekits(zoo, tmp_path, method, architecture):
    agree(method(architecture.models(zoo)), tmp_path)


# mergekit leaves `layer_types` of a config as long as they were, and then cannot write a config of more layers.
FREE_DEPTH = [item for item in ARCHITECTURES if item.kind not in {"qwen2", "gemma2", "gemma3"}]


@pytest.mark.parametrize("architecture", FREE_DEPTH, ids=str)
def test_more_layers_than_the_inputs_have(zoo, tmp_path, architecture):
    agree(stacked(architecture.models(zoo)), tmp_path)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_the_comparison_is_not_empty(zoo, tmp_path, method):
    # The recipes change weights, so agreement above means that something was computed. (arcee_fusion and ramplus_tl
    # answer in float32, and leave many elements of small tensors as they are.)
    models = Architecture("llama", "bf16", sharded=True).models(zoo)
    merged = read_tensors(run_mergekit(method(models), tmp_path / "theirs"))
    for model in {models[0], models[1]} if method is not passthrough else {models[0]}:
        given = read_tensors(model)
        changed = [name for name in merged if not np.array_equal(values_of(merged[name]), values_of(given[name]))]
        assert len(changed) > len(merged) // 4
