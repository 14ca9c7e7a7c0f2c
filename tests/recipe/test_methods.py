from types import SimpleNamespace

import pytest

from tests.recipe.live import mergekit
from wsmerge.errors import RecipeError
from wsmerge.recipe.methods import METHODS, REQUIRED, Method, Parameter, method_named


def faults(name, inputs, base):
    return list(method_named(name).input_faults(inputs, base))


@pytest.mark.slow
def test_the_table_is_mergekits():
    live = {method.spec.name: method.spec for method in mergekit("merge_methods").registered_methods()}
    assert set(METHODS) == set(live)
    assert len(METHODS) == 20
    for name, spec in live.items():
        method, contract = METHODS[name], spec.contract
        ours = [(one.name, one.type, one.scope, one.required, one.default) for one in method.parameters]
        theirs = [
            (one.name, one.value_type, one.scope.value, one.required, REQUIRED if one.required else one.default)
            for one in spec.parameters
        ]
        assert ours == theirs, name
        assert (method.base, method.optional_tensors) == (contract.base.value, spec.optional_tensor_policy.value), name
        assert (method.min_inputs, method.max_inputs) == (contract.min_inputs, contract.max_inputs), name
        assert (method.min_non_base, method.max_non_base) == (contract.min_non_base, contract.max_non_base), name


@pytest.mark.slow
def test_inputs_are_refused_where_mergekit_refuses_them():
    live = {method.spec.name: method for method in mergekit("merge_methods").registered_methods()}
    cases = [(inputs, base) for inputs in ("", "a", "ab", "abc", "aab", "abcd") for base in (None, "a", "z")]
    refused = 0
    for name in METHODS:
        for inputs, base in cases:
            try:
                live[name].validate_inputs(list(inputs), base)
            except ValueError:
                refused += 1
                assert faults(name, inputs, base), (name, inputs, base)
            else:
                assert not faults(name, inputs, base), (name, inputs, base)
    assert 0 < refused < len(cases) * len(METHODS)


@pytest.mark.slow
def test_a_method_that_a_user_registered_is_found(monkeypatch):
    registry = mergekit("merge_methods.registry")
    base = mergekit("merge_methods.base")
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))

    mine = base.MergeMethodSpec(
        "mine",
        (base.ParameterSpec("weight", float, base.ParameterScope.NON_BASE),),
        contract=base.InputContract(base=base.BasePolicy.FORBIDDEN, max_inputs=3),
    )
    with pytest.raises(RecipeError, match="there is no merge_method 'mine'"):
        method_named("mine")
    registry.register(SimpleNamespace(spec=mine))
    assert method_named("mine") == Method(
        "mine", (Parameter("weight", float, "non_base"),), base="forbidden", max_inputs=3
    )
    assert faults("mine", "ab", "a") == ["merge_method mine takes no base_model"]


def test_a_misspelt_method_is_told_its_near_names_and_how_to_register_one():
    with pytest.raises(RecipeError) as caught:
        method_named("dare_tie")
    assert caught.value.message.startswith("there is no merge_method 'dare_tie'; did you mean dare_ties")
    assert caught.value.hint is not None
    assert "--plugin MODULE" in caught.value.hint
    with pytest.raises(RecipeError, match="there is no merge_method 'xyzzy'\n"):
        method_named("xyzzy")


@pytest.mark.parametrize(
    ("name", "inputs", "base", "found"),
    [
        ("linear", "aa", None, ["a is an input twice; merge_method linear takes each model once"]),
        ("ties", "ab", None, ["merge_method ties needs base_model"]),
        ("ties", "ab", "z", ["base_model z is no input; list it among the sources"]),
        ("linear", "ab", "z", []),
        ("slerp", "abc", "a", ["merge_method slerp takes 2 inputs, the base counted, not 3"]),
        ("model_stock", "ab", "a", ["merge_method model_stock takes at least 3 inputs, the base counted, not 2"]),
        ("passthrough", "ab", None, ["merge_method passthrough takes 1 input, not 2"]),
        ("nuslerp", "ab", "a", ["merge_method nuslerp takes 2 inputs besides the base, not 1"]),
        ("multislerp", "a", "a", ["merge_method multislerp takes at least 1 input besides the base, not 0"]),
        ("karcher", "", None, ["merge_method karcher takes at least 1 input, not 0"]),
    ],
)
def test_what_is_wrong_with_inputs_is_told_in_words(name, inputs, base, found):
    assert faults(name, inputs, base) == found


def test_refused_inputs_are_told_all_at_once():
    with pytest.raises(RecipeError) as caught:
        METHODS["slerp"].check_inputs("aab", None, where="r.yml:3: models")
    assert caught.value.where == "r.yml:3: models"
    assert len(caught.value.details) == 3
    METHODS["slerp"].check_inputs("ab", "a")


@pytest.mark.parametrize(
    ("type_", "value", "valid"),
    [
        (float, "1e-5", 1e-5),
        (float, 2, 2.0),
        (float, True, 1.0),
        (int, 2.0, 2),
        (int, "12", 12),
        (bool, 1.0, True),
        (bool, "yes", True),
        (bool, 0, False),
        (float | None, None, None),
    ],
)
def test_values_are_taken_as_pydantic_takes_them(type_, value, valid):
    found = Parameter("p", type_, "shared").validate(value)
    assert found == valid
    assert type(found) is type(valid)


@pytest.mark.parametrize(("type_", "value"), [(int, 2.5), (bool, 2), (float, "much"), (float, None), (bool, "maybe")])
def test_values_of_another_type_are_refused(type_, value):
    with pytest.raises(RecipeError, match=f"p cannot be {value!r}: input should be a valid|p cannot be {value!r}:"):
        Parameter("p", type_, "shared").validate(value)


def test_methods_that_draw_random_numbers_and_those_on_deltas_are_marked():
    assert {name for name, method in METHODS.items() if method.randomised} == {
        "arcee_fusion", "dare_linear", "dare_ties", "della", "della_linear",
    }  # fmt: skip
    assert {name for name, method in METHODS.items() if not method.on_deltas} == {
        "arcee_fusion", "karcher", "linear", "model_stock", "multislerp", "nearswap", "nuslerp", "passthrough", "ram",
        "ramplus_tl", "slerp",
    }  # fmt: skip
