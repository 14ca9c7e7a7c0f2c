"""Parameters: gradients, filters, scopes and their precedence, dtypes."""

from __future__ import annotations

import pytest
import yaml

from tests.mergekit.oracle import read_tensors, run_mergekit
from tests.mergekit.running import agree, merge_ours, models_recipe
from wsmerge.errors import WsmergeError

LAYERS = 4


@pytest.fixture(scope="module")
def models(zoo):
    base = zoo.base("llama", layers=LAYERS)
    return base, zoo.tuned(base, 1), zoo.tuned(base, 2), zoo.tuned(base, 3)


WEIGHTS = {
    "gradient": [0.1, 0.9],
    "a gradient longer than the layers": [0, 0.5, 0.3, 0.7, 0.5, 0.7, 0.3, 0.5, 0.3, 0.7, 0.5, 0.7, 1],
    "a gradient of one value": [0.4],
    "negative and scientific": ["-1e-1", 1.5],
    "a filter that not all tensors match": [{"filter": "self_attn", "value": 0.7}, {"value": 0.2}],
    "gradients under filters": [
        {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
        {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
        {"value": 0.5},
    ],
    "a star": [{"filter": "lm_head", "value": 0.9}, {"filter": "*", "value": [0.3, 0.6]}, {"value": 100.0}],
    "the first that matches": [{"filter": "proj", "value": 0.3}, {"filter": "q_proj", "value": 100.0}, {"value": 0.1}],
    "a lone rule": {"value": 0.6},
    "a boolean for a number": True,
    "a string for a number": "0.25",
}


@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_weights(models, tmp_path, method, weight):
    base, one, two, _ = models
    sources = [(one, {"weight": weight}), (two, {"weight": 0.5})]
    agree(models_recipe(method, sources, base=base if method == "task_arithmetic" else None), tmp_path)


@pytest.mark.parametrize("t", [WEIGHTS["gradients under filters"], [0, 1], 0, 1, [0, 0.5, 0.25]], ids=str)
def test_slerp_over_the_layers(models, tmp_path, t):
    base, one, *_ = models
    agree(models_recipe("slerp", [base, one], base=base, parameters={"t": t}), tmp_path)


def test_lists_of_booleans_are_steps(models, tmp_path):
    _, one, two, _ = models
    sources = [(one, {"weight": 0.7}), (two, {"weight": 0.7})]
    agree(models_recipe("linear", sources, parameters={"normalize": [True, False, True]}), tmp_path)


def test_a_rule_decides_a_boolean(models, tmp_path):
    base, one, two, _ = models
    sources = [(one, {"weight": 0.7}), (two, {"weight": 0.7})]
    normalize = [{"filter": "mlp", "value": True}, {"value": False}]
    agree(models_recipe("task_arithmetic", sources, base=base, parameters={"normalize": normalize}), tmp_path)


@pytest.mark.parametrize("max_iter", [[1, 4], {"value": 3}, "5"], ids=str)
def test_integers(models, tmp_path, max_iter):
    # layers 0 to 3 give 1, 2, 3, 4 iterations; a fraction would be refused
    agree(models_recipe("karcher", models[1:], parameters={"max_iter": max_iter, "tol": "1e-12"}), tmp_path)


@pytest.mark.parametrize(
    "parameters", [{"max_iter": [1, 2]}, {"max_iter": 2.5}, {"max_iter": "many"}, {"tol": "small"}], ids=str
)
def test_what_mergekit_refuses_is_refused_before_anything_is_written(models, tmp_path, parameters):
    recipe = models_recipe("karcher", models[1:], parameters=parameters)
    with pytest.raises(ValueError, match=r".*"):  # pydantic's, through mergekit
        run_mergekit(recipe, tmp_path / "theirs")
    with pytest.raises(WsmergeError) as error:
        merge_ours(recipe, tmp_path / "ours")
    assert next(iter(parameters)) in str(error.value)
    assert not list(tmp_path.glob("ours*"))


def scoped(models, **where):
    """A recipe over two slices, with `weight` or `normalize` at the places that `where` names."""
    _, one, two, _ = models
    place = {"source": {}, "slice": {}, "module": {}, "top": {}} | where
    weight = {"weight": 0.25}
    first = {"model": str(one), "layer_range": [0, 2], "parameters": place["source"]}
    second = {"model": str(two), "layer_range": [0, 2], "parameters": {} if place["slice"] else weight}
    slices = [
        {"sources": [first, second], "parameters": place["slice"]},
        {
            "sources": [
                {"model": str(one), "layer_range": [2, 4], "parameters": weight},
                {"model": str(two), "layer_range": [1, 3], "parameters": weight},
            ]
        },
    ]
    recipe = {
        "merge_method": "linear",
        "modules": {"default": {"slices": slices, "parameters": place["module"]}},
        "parameters": place["top"],
    }
    return yaml.safe_dump(recipe, sort_keys=False)


SCOPES = {
    "source over slice": {"source": {"weight": 0.6}, "slice": {"weight": 0.3}},
    "slice over module": {"slice": {"weight": 0.3}, "module": {"weight": 0.8}},
    "module over top": {"module": {"weight": 0.8}, "top": {"weight": 0.1}},
    "top": {"top": {"weight": 0.1}},
    "a shared one": {"top": {"weight": 0.7, "normalize": True}, "module": {"normalize": False}},
    "a shared one of a slice": {"top": {"weight": 0.7}, "slice": {"weight": 0.7, "normalize": False}},
    "a rule that does not match falls through": {
        "source": {"weight": [{"filter": "mlp", "value": 0.9}]},
        "slice": {"weight": [{"filter": "self_attn", "value": 0.4}]},
        "top": {"weight": 0.2},
    },
    "an empty list falls through": {"source": {"weight": []}, "top": {"weight": 0.2}},
    # A shared parameter of a source is not read; mergekit says nothing.
    "a shared one of a source": {"source": {"weight": 0.2, "normalize": False}},
}


@pytest.mark.parametrize("where", SCOPES.values(), ids=SCOPES)
def test_scopes(models, tmp_path, where):
    agree(scoped(models, **where), tmp_path)


def test_filters_see_the_name_of_the_input(models, tmp_path):
    # Layer 1 of the output is made of layer 3 of the second input, whose weight is filtered by that name.
    _, one, two, _ = models
    weight = [{"filter": "layers.3.", "value": 0.9}, {"filter": "layers.1.", "value": 0.1}, {"value": 0.5}]
    normalize = [{"filter": "layers.1.", "value": False}, {"value": True}]
    recipe = {
        "merge_method": "linear",
        "slices": [
            {
                "sources": [
                    {"model": str(one), "layer_range": [0, 2], "parameters": {"weight": weight}},
                    {"model": str(two), "layer_range": [2, 4], "parameters": {"weight": weight}},
                ]
            }
        ],
        "parameters": {"normalize": normalize},
    }
    agree(yaml.safe_dump(recipe, sort_keys=False), tmp_path)


def test_gradients_run_over_each_slice(models, tmp_path):
    _, one, two, _ = models
    entries = [
        {
            "sources": [
                {"model": str(one), "layer_range": layers, "parameters": {"weight": [0, 1]}},
                {"model": str(two), "layer_range": layers, "parameters": {"weight": [1, 0.5, 0]}},
            ]
        }
        for layers in ([0, 3], [3, 4])
    ]
    agree(yaml.safe_dump({"merge_method": "linear", "slices": entries}), tmp_path)


DTYPES = [
    {},
    {"dtype": "bfloat16"},
    {"dtype": "float16"},
    {"dtype": "float32"},
    {"dtype": "float32", "out_dtype": "bfloat16"},
]
DTYPES += [{"out_dtype": "float16"}, {"dtype": "bfloat16", "out_dtype": "float32"}]


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "slerp", "nuslerp", "model_stock"])
def test_dtypes(models, tmp_path, method, dtypes):
    base, one, two, three = models
    parameters = {"weight": 0.6} if method in {"linear", "task_arithmetic", "nuslerp"} else {}
    others = {"slerp": [base, one], "nuslerp": [one, two]}.get(method, [one, two, three])
    sources = [(model, parameters) for model in others]
    shared = {"parameters": {"t": 0.4}} if method == "slerp" else {}
    agree(models_recipe(method, sources, base=None if method == "linear" else base, **shared, **dtypes), tmp_path)


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_inputs_of_several_dtypes_are_promoted(zoo, models, tmp_path, method, dtypes):
    base, one, *_ = models
    sources = [(one, {"weight": 0.5}), (zoo.tuned(base, 2, dtype="f32"), {"weight": 0.3})]
    sources.append((zoo.tuned(base, 3, dtype="f16"), {"weight": 0.4}))
    both = agree(models_recipe(method, sources, base=base if method == "task_arithmetic" else None, **dtypes), tmp_path)
    assert len({tensor.dtype for tensor in read_tensors(both.ours).values()}) == 1


@pytest.mark.parametrize("weights", [(0.5, -0.5), (0.0, 0.0), (1e-9, 0.0)], ids=str)
@pytest.mark.parametrize("method", ["task_arithmetic", "nuslerp", "multislerp"])
def test_weights_that_sum_to_nothing(models, tmp_path, method, weights):
    base, one, two, _ = models
    sources = [(one, {"weight": weights[0]}), (two, {"weight": weights[1]})]
    parameters = {"normalize": True} if method == "task_arithmetic" else {}
    agree(models_recipe(method, sources, base=base, parameters=parameters), tmp_path)
