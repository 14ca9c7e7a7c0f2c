from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.builders import llama_shapes
from tests.oracles import coefficients as oracle
from wsmerge.errors import BaseMismatchError, RecipeError
from wsmerge.recipe import coefficients_for, gradient_at, parse_recipe, recipe_coefficients, weight_from

BASE = tuple(llama_shapes(layers=6, tied=False))
LINEAR = tuple(name for name in BASE if "_proj" in name)


def k_of(weight: Any, tensors: Iterable[str] = LINEAR, base: Iterable[str] = BASE) -> dict[str, float]:
    found = coefficients_for(weight_from(weight), tensors, base)
    return {name: applied.k for name, applied in found.by_tensor.items()}


def faults_of(weight: Any, tensors: Iterable[str] = LINEAR, base: Iterable[str] = BASE) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        coefficients_for(weight_from(weight), tensors, base)
    return list(caught.value.details)


def in_layer(layer: int, part: str = "self_attn.q_proj") -> str:
    return f"model.layers.{layer}.{part}.weight"


def test_a_number_is_for_every_tensor_in_the_order_of_the_direction():
    assert list(k_of(-1.5, reversed(BASE)).items()) == [(name, -1.5) for name in reversed(BASE)]


def test_the_first_rule_that_matches_counts_and_says_so():
    weight = weight_from(
        [{"filter": "self_attn", "value": [0, 0.5, 1.0, 0.5, 0]}, {"layers": "2-3", "value": 2}, {"value": 0.25}]
    )
    found = coefficients_for(weight, LINEAR, BASE).by_tensor
    assert found[in_layer(3)].rule == "weight[0]: filter self_attn"
    assert found[in_layer(3)].k == pytest.approx(0.8)
    assert (found[in_layer(3, "mlp.up_proj")].k, found[in_layer(3, "mlp.up_proj")].rule) == (2, "weight[1]: layers 2-3")
    assert (found[in_layer(4, "mlp.up_proj")].k, found[in_layer(4, "mlp.up_proj")].rule) == (0.25, "weight[2]: all")


def test_what_nothing_matches_has_k_zero_and_is_named():
    found = coefficients_for(weight_from({3: 1.5}), LINEAR, BASE)
    assert {name for name, applied in found.by_tensor.items() if applied.k} == {n for n in LINEAR if ".3." in n}
    assert set(found.unmatched) == {name for name in LINEAR if ".3." not in name}
    assert found.by_tensor[in_layer(0)].rule == "unmatched"


def test_filter_and_layers_of_one_rule_must_both_hold():
    k = k_of([{"filter": "mlp", "layers": [0, "4-5"], "value": 1}])
    assert {name for name in k if k[name]} == {name for name in LINEAR if "mlp" in name and name[13] in "045"}


def test_tensors_of_no_layer_match_no_layers():
    k = k_of([{"layers": "0-5", "value": 1}], BASE)
    assert {name for name in k if not k[name]} == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}


def test_a_gradient_under_layers_still_counts_all_layers_of_the_base():
    k = k_of([{"layers": "2-3", "value": [0, 5]}])
    assert [k[in_layer(layer)] for layer in range(6)] == [0, 0, 2, 3, 0, 0]


def test_a_gradient_counts_the_layers_of_the_base_and_not_of_the_direction():
    assert k_of([0, 5], [in_layer(1), in_layer(4)]) == {in_layer(1): 1, in_layer(4): 4}


@pytest.mark.parametrize(("layer", "count", "k"), [(0, 1, 7), (0, 2, 3), (1, 2, 7), (1, 3, 5), (2, 5, 5)])
def test_a_gradient_runs_from_the_first_layer_to_the_last(layer, count, k):
    assert gradient_at((3.0, 7.0), layer, count) == k


def test_a_gradient_of_one_value_is_that_value():
    assert set(k_of([0.3]).values()) == {0.3}


def test_each_stack_counts_its_own_layers():
    vision = tuple(f"vision_tower.blocks.{layer}.attn.qkv.weight" for layer in range(3))
    k = k_of([0, 10], LINEAR + vision, BASE + vision)
    assert [k[name] for name in vision] == [0, 5, 10]
    assert [k[in_layer(layer)] for layer in range(6)] == [0, 2, 4, 6, 8, 10]
    k = k_of([{"layers": "4-5", "value": 1}], LINEAR + vision, BASE + vision)
    assert not any(k[name] for name in vision)
    assert faults_of([{"filter": "vision", "layers": "2-3", "value": 1}], LINEAR + vision, BASE + vision) == [
        "weight[0]: filter vision and layers 2-3: the base has 3 layers there, 0-2"
    ]


@pytest.mark.parametrize(
    ("weight", "fault"),
    [
        ([{"filter": "self_atn", "value": 1}], "weight[0]: filter 'self_atn' is in the name of no tensor of the direction; did you mean 'self_attn'?"),
        ([{"filter": "expert", "value": 1}], "weight[0]: filter 'expert' is in the name of no tensor of the direction; it has mlp.down_proj, mlp.gate_proj, mlp.up_proj, self_attn.k_proj, self_attn.o_proj, self_attn.q_proj, self_attn.v_proj"),
        ([{"filter": "q_.*", "value": 1}], "weight[0]: filter 'q_.*' is in the name of no tensor of the direction, and it is a substring, not a pattern; it has mlp.down_proj, mlp.gate_proj, mlp.up_proj, self_attn.k_proj, self_attn.o_proj, self_attn.q_proj, self_attn.v_proj"),
        ([{"filter": "lm_head", "value": 1}], "weight[0]: filter 'lm_head' is in the name of no tensor of the direction, only in names of the base; the direction has mlp.down_proj, mlp.gate_proj, mlp.up_proj, self_attn.k_proj, self_attn.o_proj, self_attn.q_proj, self_attn.v_proj"),
        ({"filter": "self_atn", "value": 1}, "weight: filter 'self_atn' is in the name of no tensor of the direction; did you mean 'self_attn'?"),
        ([{"layers": "4-6", "value": 1}], "weight[0]: layers 4-6: the base has 6 layers there, 0-5"),
        ([{"layers": [0, 99], "value": 1}], "weight[0]: layers 0, 99: the base has 6 layers there, 0-5"),
        ([{"layers": 6, "value": 1}], "weight[0]: layers 6: the base has 6 layers there, 0-5"),
        ([{"filter": "mlp", "value": 1}, {"filter": "up_proj", "value": 2}], "weight[1]: filter up_proj: never applies, since all its tensors go to weight[0] (filter mlp); drop it or place it earlier"),
        ([{"layers": 0, "value": 1}, {"layers": [1, 2], "value": 1}, {"layers": "0-2", "value": 2}], "weight[2]: layers 0-2: never applies, since all its tensors go to weight[0] (layers 0) and weight[1] (layers 1, 2); drop it or place it earlier"),
        ([{"value": 1}, {"value": 2}], "weight[1]: all: never applies, since all its tensors go to weight[0] (all); drop it or place it earlier"),
    ],
)  # fmt: skip
def test_rules_that_cannot_apply(weight, fault):
    assert faults_of(weight) == [fault]


def test_layers_that_the_direction_does_not_have():
    only = [in_layer(layer) for layer in (1, 2, 4)]
    assert faults_of([{"layers": 3, "value": 1}, {"value": 1}], only) == [
        "weight[0]: layers 3: the direction has no such tensor in these layers, only in 1-2, 4"
    ]
    assert k_of([{"layers": "2-3", "value": 1}, {"value": 0}], only)[in_layer(2)] == 1


def test_layers_of_tensors_that_lie_in_none():
    assert faults_of([{"filter": "embed", "layers": 0, "value": 1}], BASE) == [
        "weight[0]: filter embed and layers 0: these tensors lie in no layer, so no layers match them"
    ]


def test_a_last_rule_for_all_may_find_nothing_left():
    assert set(k_of([{"filter": "_proj", "value": 1}, {"value": 9}]).values()) == {1}


def test_a_gradient_that_reaches_a_tensor_of_no_layer_is_refused_unless_another_rule_covers_it():
    (fault,) = faults_of([0, 1], BASE)
    assert fault == (
        "weight: the gradient reaches tensors of no layer "
        "(model.embed_tokens.weight, model.norm.weight, lm_head.weight); "
        "place rules with a filter and a number before it, for embed_tokens, norm, lm_head"
    )
    covered = [{"filter": "embed", "value": 1}, {"filter": "lm_head", "value": 2}, {"filter": "model.norm", "value": 3}]
    k = k_of([*covered, {"value": [0, 5]}], BASE)
    assert [k[name] for name in ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight")] == [1, 2, 3]
    assert k[in_layer(4)] == 4
    assert len(faults_of([{"value": [0, 1]}, *covered], BASE)) == 4


def test_a_layer_that_the_base_lacks_is_a_mismatch():
    with pytest.raises(BaseMismatchError) as caught:
        coefficients_for(1.0, [in_layer(6), in_layer(7), "text.layers.0.x.weight"], BASE)
    assert caught.value.details == (
        "model.layers.6.self_attn.q_proj.weight: the base has 6 layers in model.layers",
        "model.layers.7.self_attn.q_proj.weight: the base has 6 layers in model.layers",
        "text.layers.0.x.weight: the base has 0 layers in text.layers",
    )


def test_faults_of_all_directions_come_together_with_their_lines():
    loaded = parse_recipe(
        "base_model: b\ndirections:\n  - direction: a\n    weight: [0, 1]\n"
        "  - direction: b\n    weight:\n      - value: 1\n      - layers: 9\n        value: 1\n"
    )
    with pytest.raises(RecipeError) as caught:
        recipe_coefficients(loaded, [["lm_head.weight"], LINEAR], BASE)
    first, second = caught.value.details
    assert first.startswith("line 4: directions[0].weight: the gradient reaches tensors of no layer (lm_head.weight)")
    assert second == "line 8: directions[1].weight[1]: layers 9: the base has 6 layers there, 0-5"


def test_directions_come_back_in_the_order_of_the_recipe():
    entries = [{"direction": "a", "weight": 1}, {"direction": "a", "weight": [0, 5]}]
    loaded = parse_recipe({"base_model": "b", "directions": entries})
    found = recipe_coefficients(loaded, [LINEAR, LINEAR], BASE)
    assert [one.by_tensor[in_layer(3)].k for one in found] == [1, 3]


# A rule of a weight as YAML gives it; filters overlap on purpose.
numbers = st.floats(-16, 16, allow_subnormal=False)
values = numbers | st.lists(numbers, min_size=1, max_size=6)
filters = st.sampled_from(
    ["*", "self_attn", "mlp", "q_proj", "_proj", "layers.1", "embed", "norm", "lm_head", "weight"]
)


@st.composite
def weights_and_bases(draw):
    count = draw(st.integers(1, 12))
    span = st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)).map(sorted).map(lambda s: f"{s[0]}-{s[1]}")
    layers = span | st.integers(0, count - 1) | st.lists(span | st.integers(0, count - 1), min_size=1, max_size=3)
    rule = st.fixed_dictionaries({"value": values}, optional={"filter": filters, "layers": layers})
    base = list(llama_shapes(layers=count, tied=False))
    tensors = draw(st.lists(st.sampled_from(base), min_size=1, unique=True))
    return draw(values | st.lists(rule, min_size=1, max_size=4)), tensors, base, count


def sound(weight: Any, tensors: Sequence[str]) -> bool:
    """Whether every rule applies to a tensor, and no gradient to one of no layer."""
    winners = {name: oracle.winner(weight, name) for name in tensors}
    if oracle.is_rules(weight) and set(range(len(weight))) - set(winners.values()):
        return False
    gradients = (
        isinstance((weight[index] if oracle.is_rules(weight) else {"value": weight})["value"], list)
        for name, index in winners.items()
        if index is not None and oracle.layer_of(name) is None
    )
    return not any(gradients)


@given(weights_and_bases())
def test_coefficients_are_those_of_the_oracle(case):
    weight, tensors, base, count = case
    assume(sound(weight, tensors))
    k = k_of(weight, tensors, base)
    assert list(k) == tensors
    assert k == pytest.approx(oracle.expected(weight, tensors, count), rel=1e-12, abs=1e-12)


@given(weights_and_bases())
def test_what_is_refused_is_just_what_is_not_sound(case):
    weight, tensors, base, _ = case
    # A last rule for all tensors is the one rule that may find nothing left.
    assume(not oracle.is_rules(weight) or weight[-1].get("filter", "*") != "*" or "layers" in weight[-1])
    with nullcontext() if sound(weight, tensors) else pytest.raises(RecipeError):
        k_of(weight, tensors, base)


@given(st.lists(numbers, min_size=1, max_size=9), st.integers(1, 200), st.data())
def test_a_gradient_is_that_of_the_oracle_and_stays_within_its_values(values, count, data):
    layer = data.draw(st.integers(0, count - 1))
    k = gradient_at(tuple(values), layer, count)
    name = f"model.layers.{layer}.x.weight"
    assert k == pytest.approx(oracle.expected(values, [name], count)[name], rel=1e-12, abs=1e-12)
    assert min(values) - 1e-12 <= k <= max(values) + 1e-12
