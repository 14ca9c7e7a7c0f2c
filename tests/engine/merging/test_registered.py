"""Merge methods that a user registered with mergekit: found by name, run on whole tensors, with their own parameters."""

import warnings

import numpy as np
import pytest

import wsmerge
from tests.engine.merging.made import direction, dtypes_of, entries, fine_tune, merge, model, values
from wsmerge.errors import CheckpointError, RecipeError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what mergekit's own imports warn of is not ours
    import torch
    from mergekit.merge_methods import registry
    from mergekit.merge_methods.base import BasePolicy, InputContract, PerInput, TensorGroup
    from mergekit.merge_methods.easy_define import merge_method


@merge_method(name="test_median")  # type: ignore[untyped-decorator] # mergekit has no types for mypy
def median(group: TensorGroup, weight: PerInput[float], shift: float = 0.0) -> torch.Tensor:
    stacked = torch.stack([w * x.float() for w, x in zip(weight.values(), group.tensors, strict=True)])
    return (stacked.median(dim=0).values + shift).to(group.tensors[0].dtype)


@merge_method(name="test_wide")  # type: ignore[untyped-decorator] # as above
def wide(group: TensorGroup) -> torch.Tensor:
    return torch.stack([x.float() for x in group.tensors]).mean(dim=0)


@merge_method(  # type: ignore[untyped-decorator] # as above
    name="test_over_base", contract=InputContract(base=BasePolicy.REQUIRED)
)
def over_base(group: TensorGroup, factor: float) -> torch.Tensor:
    if group.metadata is not None and "layers.2.mlp.down" in (group.metadata.name or "") and factor < 0:
        raise ValueError("a factor below 0")
    moved: torch.Tensor = group.base.tensor + factor * sum(x.tensor - group.base.tensor for x in group.non_base)
    return moved


@pytest.fixture(autouse=True)
def _registered(monkeypatch) -> None:
    """Registered for a test: mergekit takes no method back, and other tests look at all there are."""
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    for method in (median, wide, over_base):
        registry.register(method)


@pytest.fixture
def models(tmp_path):
    base = model(tmp_path / "base")
    return base, fine_tune(base, tmp_path / "one", seed=1), fine_tune(base, tmp_path / "two", seed=2)


def test_its_parameters_are_those_of_the_recipe(models, tmp_path):
    weights = [1.0, [1.0, 2.0], [{"filter": "mlp", "value": 0.5}, {"value": 1.5}]]
    sources = entries(*((path, {"weight": weight}) for path, weight in zip(models, weights, strict=True)))
    merge(tmp_path / "out", {"merge_method": "test_median", "models": sources, "parameters": {"shift": 0.25}})
    inputs = [values(path) for path in models]
    for name, written in values(tmp_path / "out").items():
        layer = int(name.split(".")[2]) if "layers" in name else 0
        ks = (1.0, 1 + layer / 2, 0.5 if "mlp" in name else 1.5)
        exact = np.median([k * item[name] for k, item in zip(ks, inputs, strict=True)], axis=0) + 0.25
        np.testing.assert_allclose(written, exact, rtol=2.0**-8, atol=1e-6, err_msg=name)
    assert dtypes_of(tmp_path / "out") == {"bfloat16"}


@pytest.mark.parametrize("out_dtype", [None, "bfloat16"])
def test_a_wider_result_is_written_as_wide(models, tmp_path, out_dtype):
    recipe = {"merge_method": "test_wide", "models": entries(*((path, {}) for path in models))}
    merge(tmp_path / "out", recipe | ({"out_dtype": out_dtype} if out_dtype else {}))
    assert dtypes_of(tmp_path / "out") == {out_dtype or "float32"}
    inputs = [values(path) for path in models]
    for name, written in values(tmp_path / "out").items():
        exact = sum(item[name] for item in inputs) / 3
        tolerance = 2.0**-22 if out_dtype is None else 2.0**-8
        np.testing.assert_allclose(written, exact, rtol=tolerance, atol=1e-8)


def test_a_direction_in_it_is_base_plus_w(models, tmp_path):
    base = models[0]
    w = direction(base, tmp_path / "kind")
    recipe = {"merge_method": "test_over_base", "base_model": str(base), "parameters": {"factor": 2.0}}
    merge(tmp_path / "out", recipe | {"models": entries((w, {})), "out_dtype": "float32"})
    with wsmerge.open_direction(w) as opened:
        for name, written in values(tmp_path / "out").items():
            delta = opened.delta(name).dense() if name in opened.shapes else 0
            np.testing.assert_allclose(written, values(base)[name] + 2 * delta, rtol=2.0**-20, atol=1e-7)


def test_its_errors_are_told_with_the_tensor(models, tmp_path):
    recipe = {"merge_method": "test_over_base", "base_model": str(models[0]), "models": entries((models[1], {}))}
    with pytest.raises(CheckpointError, match="test_over_base refuses it: a factor below 0") as caught:
        merge(tmp_path / "out", recipe | {"parameters": {"factor": -1.0}})
    assert caught.value.where == "model.layers.2.mlp.down_proj.weight"
    assert not list(tmp_path.glob("out*"))


def test_its_contract_and_parameters_are_checked_before_anything_is_read(models, tmp_path):
    sources = entries((models[1], {}))
    with pytest.raises(RecipeError, match="needs base_model"):
        merge(tmp_path / "out", {"merge_method": "test_over_base", "models": sources, "parameters": {"factor": 1}})
    with pytest.raises(RecipeError, match="factor"):
        merge(tmp_path / "out", {"merge_method": "test_over_base", "base_model": str(models[0]), "models": sources})
    assert not list(tmp_path.glob("out*"))


def test_what_is_registered_nowhere_says_how_it_is_found(models, tmp_path):
    with pytest.raises(RecipeError, match="test_meridian") as caught:
        merge(tmp_path / "out", {"merge_method": "test_meridian", "models": entries((models[0], {}))})
    assert "--plugin" in str(caught.value)
    with pytest.raises(RecipeError, match="did you mean task_arithmetic"):
        merge(tmp_path / "out", {"merge_method": "task_arithmetics", "models": entries((models[0], {}))})
