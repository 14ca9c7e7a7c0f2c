"""Gradients and filters against mergekit itself, where what they mean is the same: tensors that lie in a layer."""

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.builders import llama_shapes
from tests.oracles import coefficients as oracle
from wsmerge.errors import RecipeError
from wsmerge.recipe import coefficients_for, weight_from

pytestmark = pytest.mark.slow


@cache
def mergekit_config() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what mergekit's own imports warn of is not ours
        import mergekit.config  # noqa: PLC0415 - seven seconds, for these tests alone
    return mergekit.config


def mergekits(weight: Any, tensors: Sequence[str], layer_count: int) -> dict[str, float]:
    """What mergekit 0.1.5 gives each tensor, 0 where no entry matches; `float` is how its weights are validated."""
    config = mergekit_config()
    setting = [config.ConditionalParameter(**rule) for rule in weight] if oracle.is_rules(weight) else weight
    found = {}
    for name in tensors:
        layer = oracle.layer_of(name)
        assert layer is not None
        t = layer / (layer_count - 1) if layer_count > 1 else 1
        k = config.evaluate_setting(name, setting, t, validate=float)
        found[name] = 0.0 if k is None else k
    return found


numbers = st.floats(-16, 16, allow_subnormal=False) | st.integers(-16, 16) | st.just("1e-5")
values = numbers | st.lists(numbers, min_size=1, max_size=6)
filters = st.sampled_from(["*", "self_attn", "mlp", "q_proj", "up_proj", "layers.1", "_layernorm", "weight"])
rules = st.fixed_dictionaries({"value": values}, optional={"filter": filters})


@pytest.fixture(scope="module", autouse=True)
def _import_once():
    mergekit_config()


@given(values | st.lists(rules, min_size=1, max_size=4), st.integers(1, 12))
@settings(deadline=None)
def test_coefficients_are_mergekits_to_the_bit(weight, layer_count):
    base = llama_shapes(layers=layer_count)
    tensors = [name for name in base if oracle.layer_of(name) is not None]
    try:
        found = coefficients_for(weight_from(weight), tensors, base)
    except RecipeError:
        # We refuse rules without effect, mergekit does not: what is left without them is a recipe for both.
        winners = {oracle.winner(weight, name) for name in tensors}
        weight = [rule for index, rule in enumerate(weight) if index in winners]
        assume(weight)
        found = coefficients_for(weight_from(weight), tensors, base)
    assert {name: applied.k for name, applied in found.by_tensor.items()} == mergekits(weight, tensors, layer_count)


def test_a_recipe_as_people_write_it():
    weight = [{"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]}, {"filter": "mlp", "value": [1, 0.5, 0]}]
    base = llama_shapes(layers=32)
    tensors = [name for name in base if oracle.layer_of(name) is not None]
    found = coefficients_for(weight_from(weight), tensors, base)
    assert {name: applied.k for name, applied in found.by_tensor.items()} == mergekits(weight, tensors, 32)
    assert {name for name in tensors if "layernorm" in name} == set(found.unmatched)
