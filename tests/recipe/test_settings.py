"""Parameters against mergekit's own resolver: the same values, and refusals where it refuses."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from tests.recipe.live import mergekit
from wsmerge.errors import RecipeError
from wsmerge.recipe.merging import Conditional, Setting
from wsmerge.recipe.methods import METHODS, Method, Parameter, Scope
from wsmerge.recipe.settings import evaluate, resolve

SETTING: TypeAdapter[Any] = TypeAdapter(Setting)
NAMES = ("model.layers.3.self_attn.q_proj.weight", "model.layers.5.mlp.up_proj.weight", "lm_head.weight", "")

scalars = (
    st.booleans()
    | st.integers(-9, 9)
    | st.floats(-9, 9, allow_subnormal=False)
    | st.sampled_from(["1e-5", "2", "much", "true", ""])
)
values = scalars | st.lists(scalars, max_size=5)
entries = st.fixed_dictionaries(
    {"value": values}, optional={"filter": st.sampled_from(["*", "self_attn", "mlp", "layers.5", "head", "", None])}
)
settings = values | entries | st.lists(entries, min_size=1, max_size=4)
places = st.sampled_from([0, 1, 0.5]) | st.floats(0, 1)
types = st.sampled_from([float, int, bool, float | None])


@pytest.fixture(scope="module", autouse=True)
def _import_once():
    mergekit("parameter_resolver")


def theirs(setting: Any) -> Any:
    """A setting as mergekit's own schema reads it."""
    model = mergekit("config").OutputSliceDefinition
    return model.model_validate({"sources": [], "parameters": {"p": setting}}).parameters["p"]


def outcome(compute, *refused):
    try:
        found = compute()
    except refused:
        return "refused"
    return [(value, type(value)) for value in found] if isinstance(found, list) else (found, type(found))


@pytest.mark.slow
@given(settings, types, st.sampled_from(NAMES), places)
def test_a_setting_is_worth_what_mergekit_says(setting, type_, name, t):
    parameter = Parameter("p", type_, "shared")
    validate = TypeAdapter(type_).validate_python
    ours = outcome(lambda: evaluate(SETTING.validate_python(setting), name, t, parameter.validate), RecipeError)
    mergekits = outcome(
        lambda: mergekit("config").evaluate_setting(name, theirs(setting), t, validate=validate), ValidationError
    )
    assert ours == mergekits


def scopes_of(draw_from):
    return st.lists(
        st.none() | st.dictionaries(st.sampled_from(["shared", "each", "rest"]), draw_from, max_size=3),
        min_size=1,
        max_size=3,
    )


quiet = st.integers(-9, 9) | st.lists(st.integers(-9, 9), max_size=3)
quiet_entries = st.fixed_dictionaries(
    {"value": quiet, "filter": st.sampled_from(["*", "self_attn", "mlp", "layers.5"])}
)
quiet_settings = quiet | st.lists(quiet_entries, min_size=1, max_size=3)


@pytest.mark.slow
@given(st.data(), st.tuples(*[st.booleans()] * 3), places)
def test_scopes_are_asked_in_mergekits_order(data, required, t):
    kinds: tuple[tuple[str, Scope], ...] = (("shared", "shared"), ("each", "input"), ("rest", "non_base"))
    default = {"default": 0.25}
    method = Method(
        "m",
        tuple(
            Parameter(name, float, scope, **({} if need else default))
            for (name, scope), need in zip(kinds, required, strict=True)
        ),
        base="optional",
    )
    base = mergekit("merge_methods.base")
    spec = base.MergeMethodSpec(
        "m",
        tuple(
            base.ParameterSpec(one.name, float, base.ParameterScope(one.scope), **({} if one.required else default))
            for one in method.parameters
        ),
        contract=base.InputContract(base=base.BasePolicy.OPTIONAL),
    )
    count = data.draw(st.integers(1, 3))
    names = data.draw(st.lists(st.sampled_from(NAMES[:3]), min_size=count, max_size=count))
    base_index = data.draw(st.none() | st.integers(0, count - 1))
    scopes = data.draw(scopes_of(quiet_settings))
    own = [data.draw(scopes_of(quiet_settings)) for _ in range(count)]

    def read(convert, scope):
        return None if scope is None else {name: convert(setting) for name, setting in scope.items()}

    def ours():
        shared, per_input = resolve(
            method,
            tensor_name=NAMES[0],
            inputs=names,
            scopes=[read(SETTING.validate_python, scope) for scope in scopes],
            input_scopes=[[read(SETTING.validate_python, scope) for scope in [*mine, *scopes]] for mine in own],
            base_index=base_index,
            t=t,
        )
        return [shared, *per_input]

    def mergekits():
        shared, per_input = mergekit("parameter_resolver").resolve_parameters(
            spec,
            tensor_name=NAMES[0],
            inputs=dict(enumerate(names)),
            sources=lambda model: [read(theirs, one) for one in [*([] if model is None else own[model]), *scopes]],
            base_model=base_index,
            t=t,
        )
        return [shared, *per_input.values()]

    assert outcome(ours, RecipeError) == outcome(mergekits, RuntimeError)


def test_every_missing_parameter_is_told():
    with pytest.raises(RecipeError) as caught:
        resolve(
            METHODS["ties"],
            tensor_name="out",
            inputs=["a", "b", "c"],
            scopes=[{"normalize": "maybe"}],
            input_scopes=[[], [{"weight": (Conditional(filter="x", value=1),)}], [{"weight": 1}]],
            base_index=None,
            t=0,
        )
    assert caught.value.where == "out"
    assert caught.value.details == (
        "out: normalize cannot be 'maybe': input should be a valid boolean, unable to interpret input",
        "input 1, a: missing required parameter weight",
        "input 2, b: missing required parameter weight",
    )


def test_the_base_needs_no_weight_and_defaults_are_filled_in():
    shared, per_input = resolve(
        METHODS["ties"],
        tensor_name="out",
        inputs=["out", "out"],
        scopes=[None, {"lambda": "0.5", "normalize": 0.0}],
        input_scopes=[[None], [{"weight": (0.0, 1.0)}, None]],
        base_index=0,
        t=0.25,
    )
    assert shared == {"int8_mask": False, "normalize": False, "rescale": False, "lambda": 0.5}
    assert per_input == [{}, {"weight": 0.25, "density": 1.0}]
    assert shared["normalize"] is False
