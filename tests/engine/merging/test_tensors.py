"""Tensors that are not simply there in all inputs as floats of one shape: what is merged, carried, left out or refused."""

import json
from pathlib import Path

import numpy as np
import pytest

import wsmerge
from tests.builders import llama_shapes, make_checkpoint, random_tensors
from tests.engine.merging.made import HEAD, UP, dtypes_of, entries, fine_tune, merge, model, stacked, values
from tests.engine.test_merge import read_all
from wsmerge.core.dtypes import BF16, F16, F32, F64, dtype_named, from_float32, to_float32
from wsmerge.errors import CheckpointError, NonFiniteError, RecipeError, WsmergeError

BOOL = dtype_named("bool")
BUGS = wsmerge.Numerics(mergekit_bugs=True)
HALF = {"weight": 0.5, "density": 0.5}


@pytest.fixture
def models(tmp_path) -> tuple[Path, Path, Path]:
    base = model(tmp_path / "base")
    return base, fine_tune(base, tmp_path / "one", seed=1), fine_tune(base, tmp_path / "two", seed=2)


def recipe_of(method, base, *others, **top):
    return {
        "merge_method": method,
        "base_model": str(base),
        "models": entries(*((path, HALF) for path in others)),
        **top,
    }


# --- no floats ---


def neox(folder, *, seed, mask=1):
    """A GPT-NeoX with the causal masks that its definition names and published checkpoints hold."""
    hidden, inner, layers = 16, 24, 2
    shapes: dict[str, tuple[int, ...]] = {"gpt_neox.embed_in.weight": (40, hidden), "embed_out.weight": (40, hidden)}
    for norm in ("gpt_neox.final_layer_norm", *(
        f"gpt_neox.layers.{layer}.{part}_layernorm" for layer in range(layers) for part in ("input", "post_attention")
    )):  # fmt: skip
        shapes |= {f"{norm}.weight": (hidden,), f"{norm}.bias": (hidden,)}
    for layer in range(layers):
        for part, shape in (
            ("attention.query_key_value", (3 * hidden, hidden)),
            ("attention.dense", (hidden, hidden)),
            ("mlp.dense_h_to_4h", (inner, hidden)),
            ("mlp.dense_4h_to_h", (hidden, inner)),
        ):
            prefix = f"gpt_neox.layers.{layer}.{part}"
            shapes |= {f"{prefix}.weight": shape, f"{prefix}.bias": shape[:1]}
    masks = {
        f"gpt_neox.layers.{layer}.attention.bias": (BOOL, np.full((1, 1, 8, 8), mask, np.uint8)) for layer in range(2)
    }
    config = {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "vocab_size": 40,
        "num_attention_heads": 2,
        "tie_word_embeddings": False,
    }
    return make_checkpoint(folder, random_tensors(shapes, seed=seed) | masks, config=config)


@pytest.mark.parametrize(
    ("method", "numerics"),
    [
        ("linear", wsmerge.Numerics()),
        ("ties", wsmerge.Numerics(precise=True)),
        ("dare_linear", wsmerge.Numerics(mergekit_rng=True)),  # the one order of its draws must not wait for buffers
        ("passthrough", wsmerge.Numerics()),
    ],
    ids=["linear", "ties", "dare_linear", "passthrough"],
)
def test_buffers_that_agree_are_copied(tmp_path, method, numerics):
    one, two = neox(tmp_path / "one", seed=1), neox(tmp_path / "two", seed=2)
    recipe = {"merge_method": method, "models": entries((one, HALF), (two, HALF))}
    if method == "passthrough":
        recipe["models"] = entries((one, {}))
    elif method != "linear":
        recipe["base_model"] = str(one)
    merge(tmp_path / "out", recipe, numerics=numerics)
    written, given = read_all(tmp_path / "out"), read_all(one)
    assert written.keys() == given.keys()
    for name, (dtype, bits) in given.items():
        if dtype is BOOL:
            assert written[name][0] is BOOL
            np.testing.assert_array_equal(written[name][1], bits)


@pytest.mark.parametrize("rng", [False, True])
def test_buffers_that_differ_are_refused_by_name(tmp_path, rng):
    one, two = neox(tmp_path / "one", seed=1), neox(tmp_path / "two", seed=2, mask=0)
    recipe = recipe_of("dare_linear", one, two)
    with pytest.raises(CheckpointError, match="not the same in all inputs") as caught:
        merge(tmp_path / "out", recipe, numerics=wsmerge.Numerics(mergekit_rng=rng))
    assert "gpt_neox.layers." in str(caught.value.where)
    assert {line.split(":")[0] for line in caught.value.details} == {"one", "two"}
    assert not list(tmp_path.glob("out*"))


# --- tensors that some inputs lack ---


def untied(folder, *, seed):
    return model(folder, seed=seed, shapes=llama_shapes(tied=False))


def test_a_head_of_one_input_is_merged_with_the_other_ones_embedding(tmp_path):
    """lm_head may be absent where it is tied; the other input then takes part with what it is tied to."""
    tied, head = model(tmp_path / "tied"), untied(tmp_path / "head", seed=2)
    recipe = {"merge_method": "linear", "models": entries((tied, {"weight": 1}), (head, {"weight": 3}))}
    report = merge(tmp_path / "out", recipe)
    exact = (values(tied)["model.embed_tokens.weight"] + 3 * values(head)[HEAD]) / 4
    np.testing.assert_allclose(values(tmp_path / "out")[HEAD], exact, rtol=2.0**-8, atol=1e-7)
    assert any("tie_word_embeddings" in line for line in report.warnings)


def test_a_head_that_no_input_stores_is_not_made_up(models, tmp_path):
    merge(tmp_path / "out", recipe_of("slerp", *models[:2], parameters={"t": 0.5}))
    assert HEAD not in read_all(tmp_path / "out")


def test_heads_that_are_stored_and_tied_stay_so(tmp_path):
    """Both ends stored, equal, and configured as tied: so is the result, and there is nothing to warn of."""
    folders = []
    for seed in (1, 2):
        tensors = random_tensors(llama_shapes(tied=False), seed=seed)
        tensors[HEAD] = tensors["model.embed_tokens.weight"]
        folders.append(model(tmp_path / str(seed), extra=tensors, config={"tie_word_embeddings": True}))
    report = merge(
        tmp_path / "out", {"merge_method": "linear", "models": entries(*((path, {"weight": 1}) for path in folders))}
    )
    assert report.warnings == ()
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] is True
    written = values(tmp_path / "out")
    np.testing.assert_array_equal(written[HEAD], written["model.embed_tokens.weight"])


BIAS = "model.layers.0.self_attn.q_proj.bias"


def granite(folder, *, seed, biases):
    """A Granite, which by its definition may have biases in its attention or not."""
    shapes = llama_shapes(layers=2)
    shapes |= {name.replace("weight", "bias"): (16,) for name in shapes if biases and "self_attn" in name}
    config = {"architectures": ["GraniteForCausalLM"], "model_type": "granite"}
    return model(folder, seed=seed, shapes=shapes, config=config)


@pytest.mark.parametrize(
    ("method", "base_has", "outcome"),
    [
        ("slerp", True, "base"),
        ("slerp", False, "other"),
        ("nearswap", True, "base"),
        ("nearswap", False, "refused"),
        ("task_arithmetic", True, "base"),
        ("task_arithmetic", False, "refused"),
        ("linear", True, "base"),
        ("linear", False, "other"),
    ],
)
def test_optional_tensors_by_the_methods_policy(tmp_path, method, base_has, outcome):
    base = granite(tmp_path / "base", seed=1, biases=base_has)
    other = granite(tmp_path / "other", seed=2, biases=not base_has)
    recipe = recipe_of(method, base, other, parameters={"t": 0.5})
    recipe["models"] += entries((base, HALF)) if method == "linear" else []
    if outcome == "refused":
        with pytest.raises((CheckpointError, RecipeError), match=BIAS):
            merge(tmp_path / "out", recipe)
        assert not list(tmp_path.glob("out*"))
        return
    merge(tmp_path / "out", recipe)
    expected = values(base if outcome == "base" else other)[BIAS]
    np.testing.assert_array_equal(values(tmp_path / "out")[BIAS], expected)


@pytest.mark.parametrize(
    ("has", "outcome"),
    [((True, False, False), "base"), ((True, True, False), "left out"), ((False, True, True), "left out"),
     ((True, True, True), "merged")],
)  # fmt: skip
def test_model_stock_takes_the_base_or_leaves_the_tensor_out(tmp_path, has, outcome):
    folders = [granite(tmp_path / str(seed), seed=seed, biases=biases) for seed, biases in enumerate(has)]
    recipe = {"merge_method": "model_stock", "base_model": str(folders[0])}
    report = merge(tmp_path / "out", recipe | {"models": entries(*((path, {}) for path in folders[1:]))})
    written = values(tmp_path / "out")
    assert (BIAS in written) == (outcome != "left out")
    assert any("is left out" in line for line in report.warnings) == (outcome == "left out")
    if outcome != "left out":
        assert (written[BIAS] == values(folders[0])[BIAS]).all() == (outcome == "base")


def test_a_tensor_that_must_be_there_is_missed_by_name(models, tmp_path):
    base, one, _ = models
    tensors = {name: item for name, item in read_all(one).items() if name != UP}
    lacking = make_checkpoint(tmp_path / "lacking", tensors, config=json.loads((one / "config.json").read_text()))
    with pytest.raises(CheckpointError, match="lacking lacks it") as caught:
        merge(tmp_path / "out", recipe_of("task_arithmetic", base, lacking))
    assert caught.value.where == UP


# --- tensors that no definition names ---

EXTRA = {
    "model.layers.1.mlp.router.weight": (BF16, np.full((2, 16), 0x3F80, np.uint16)),
    "model.extra.weight": (BF16, np.full(3, 0x4000, np.uint16)),
}


def test_undefined_tensors_are_refused_with_every_name(models, tmp_path):
    base, one, _ = models
    odd = model(tmp_path / "odd", extra=EXTRA)
    with pytest.raises(CheckpointError, match="would be lost") as caught:
        merge(tmp_path / "out", recipe_of("ties", base, odd, one))
    assert set(caught.value.details) == {f"odd: {name}" for name in EXTRA}
    assert not list(tmp_path.glob("out*"))


def test_undefined_tensors_are_dropped_as_mergekit_does_on_request(models, tmp_path):
    base, one, _ = models
    odd = model(tmp_path / "odd", extra=EXTRA)
    report = merge(tmp_path / "out", recipe_of("ties", base, odd, one), numerics=BUGS)
    assert read_all(tmp_path / "out").keys() == read_all(base).keys()
    assert any("2 tensors are lost" in line and "odd" in line for line in report.warnings)


def test_a_passthrough_carries_them(tmp_path):
    odd = model(tmp_path / "odd", extra=EXTRA)
    merge(tmp_path / "out", {"merge_method": "passthrough", "models": entries((odd, {}))})
    written, given = read_all(tmp_path / "out"), read_all(odd)
    assert written.keys() == given.keys()
    for name in given:
        np.testing.assert_array_equal(written[name][1], given[name][1])


def test_a_stack_carries_those_of_a_layer_along_with_it(tmp_path):
    odd, plain = model(tmp_path / "odd", extra=EXTRA), model(tmp_path / "plain", seed=4)
    slices = stacked(
        [
            [({"model": str(plain)}, (0, 2))],
            [({"model": str(odd)}, (1, 3))],
            [({"model": str(odd)}, (0, 2))],
        ]
    )
    merge(tmp_path / "out", {"merge_method": "passthrough", "base_model": str(odd), "slices": slices})
    routers = {name for name in read_all(tmp_path / "out") if "router" in name}
    # Layer 1 of `odd` is layer 2 of the output, and layer 5.
    assert routers == {f"model.layers.{layer}.mlp.router.weight" for layer in (2, 5)}
    assert "model.extra.weight" in read_all(tmp_path / "out")


def deeper_than_told(folder):
    """A Llama with a third layer, past the two that its configuration counts, and a tower that its definition lacks."""
    extra = {"model.layers.2.eh_proj.weight": (BF16, np.full((16, 32), 0x3F80, np.uint16))}
    tower = {"vision.blocks.5.proj.weight": (BF16, np.full((4, 4), 0x4000, np.uint16))}
    return model(folder, extra=extra | tower, config={"num_hidden_layers": 2})


@pytest.mark.parametrize("form", ["models", "slices", "two slices"])
def test_layers_past_those_that_the_configuration_counts_are_carried(tmp_path, form):
    deep = deeper_than_told(tmp_path / "deep")
    source = {"model": str(deep)}
    slices = {"slices": [[(source, (0, 2))]], "two slices": [[(source, (0, 1))], [(source, (1, 2))]]}
    layers = {"models": [source]} if form == "models" else {"slices": stacked(slices[form])}
    report = merge(tmp_path / "out", {"merge_method": "passthrough", **layers})
    assert report.warnings == ()
    written, given = read_all(tmp_path / "out"), read_all(deep)
    assert written.keys() == given.keys()
    assert all(np.array_equal(written[name][1], given[name][1]) for name in given)


def test_layers_past_those_that_are_counted_are_told_where_slices_leave_them_out(tmp_path):
    deep = deeper_than_told(tmp_path / "deep")
    slices = stacked([[({"model": str(deep)}, (0, 2))], [({"model": str(deep)}, (1, 2))]])
    report = merge(tmp_path / "out", {"merge_method": "passthrough", "slices": slices})
    assert any("10 tensors past the layers" in line and "model.layers.2." in line for line in report.warnings)
    written = read_all(tmp_path / "out")
    assert "vision.blocks.5.proj.weight" in written
    assert "model.layers.2.eh_proj.weight" not in written
    assert "model.layers.2.mlp.up_proj.weight" in written  # of layer 1, a second time


def test_layers_past_those_that_are_counted_are_refused_by_name_where_something_is_merged(tmp_path):
    deep = deeper_than_told(tmp_path / "deep")
    tuned = fine_tune(deep, tmp_path / "tuned", seed=1)
    (tuned / "config.json").write_text((deep / "config.json").read_text())
    with pytest.raises(CheckpointError, match="would be lost") as caught:
        merge(tmp_path / "out", recipe_of("task_arithmetic", deep, tuned))
    assert "deep: model.layers.2.eh_proj.weight" in caught.value.details


def test_dtypes_of_what_is_carried(tmp_path):
    odd = model(tmp_path / "odd", extra=EXTRA | {"model.count": (dtype_named("int64"), np.arange(4))})
    recipe = {"merge_method": "passthrough", "models": entries((odd, {})), "out_dtype": "float32"}
    merge(tmp_path / "out", recipe)
    assert {name: str(read_all(tmp_path / "out")[name][0]) for name in (*EXTRA, "model.count")} == {
        **dict.fromkeys(EXTRA, "float32"),
        "model.count": "int64",
    }


# --- quantised ---


def with_fp8(folder):
    return model(folder, extra={UP: (dtype_named("float8_e4m3fn"), np.full((24, 16), 0x38, np.uint8))})


@pytest.mark.parametrize(
    "make",
    [
        with_fp8,
        lambda folder: model(folder, extra={f"{UP}_scale_inv": (F32, np.ones((1, 1), np.float32))}),
        lambda folder: model(folder, config={"quantization_config": {"quant_method": "gptq"}}),
    ],
)
def test_quantised_inputs_are_refused(models, tmp_path, make):
    quantised = make(tmp_path / "quantised")
    changes = [
        recipe_of("linear", models[0], quantised),
        {"merge_method": "passthrough", "models": entries((quantised, {})), "out_dtype": "bfloat16"},
        {"merge_method": "passthrough", "models": entries((quantised, {"scale": 2.0}))},
    ]
    changes[0]["models"] += entries((models[0], HALF))
    for recipe in changes:
        with pytest.raises(CheckpointError, match=r"quantised|float8") as caught:
            merge(tmp_path / "out", recipe)
        assert "unquantised" in str(caught.value.hint)
    assert not list(tmp_path.glob("out*"))


def test_a_passthrough_copies_quantised_weights(tmp_path):
    quantised = with_fp8(tmp_path / "quantised")
    merge(tmp_path / "out", {"merge_method": "passthrough", "models": entries((quantised, {}))})
    written, given = read_all(tmp_path / "out"), read_all(quantised)
    assert all(written[name][0] is dtype and (written[name][1] == bits).all() for name, (dtype, bits) in given.items())


# --- values ---


def with_value(folder, value, *, dtype="bfloat16", name=UP):
    held = dtype_named(dtype)
    wide = np.full((24, 16), 0.01)
    wide[3, 5] = value
    bits = wide if held is F64 else from_float32(wide.astype(np.float32), held)
    return model(folder, dtype=dtype, extra={name: (held, bits)})


@pytest.mark.parametrize("precise", [False, True])
@pytest.mark.parametrize("method", ["passthrough", "linear"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_float16_cannot_hold_is_refused(tmp_path, method, dtype, precise):
    big = with_value(tmp_path / "big", 1e6, dtype=dtype)
    recipe = {"merge_method": method, "models": entries((big, {"weight": 1})), "out_dtype": "float16"}
    with pytest.raises(NonFiniteError, match=r"1e\+06|9.994e\+05|9.994e\+5") as caught:
        merge(tmp_path / "out", recipe, numerics=wsmerge.Numerics(precise=precise))
    assert caught.value.where == UP
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("method", ["passthrough", "linear", "task_arithmetic", "slerp", "nearswap", "ties"])
def test_nan_and_infinity_of_an_input_are_kept(tmp_path, method, value):
    base, odd = model(tmp_path / "base"), with_value(tmp_path / "odd", value)
    recipe = recipe_of(method, base, odd, parameters={"t": 0.5}, out_dtype="float16")
    if method == "passthrough":
        recipe = {"merge_method": method, "models": entries((odd, {})), "out_dtype": "float16"}
    if method == "linear":
        recipe["models"] += entries((base, HALF))
    merge(tmp_path / "out", recipe)
    written = values(tmp_path / "out")
    assert not np.isfinite(written[UP][3, 5])
    others = [item for name, item in written.items() if name != UP]
    assert all(np.isfinite(item).all() for item in others)


# --- shapes ---


@pytest.mark.parametrize("method", ["linear", "slerp", "ties"])
def test_shapes_that_differ_are_told_with_both(models, tmp_path, method):
    other = model(tmp_path / "other", shapes=llama_shapes(inner=32))
    recipe = recipe_of(method, models[0], other, parameters={"t": 0.5})
    recipe["models"] += entries((models[0], HALF)) if method == "linear" else []
    with pytest.raises(CheckpointError, match="cannot be merged") as caught:
        merge(tmp_path / "out", recipe)
    assert f"{UP}: other: [32, 16]" in caught.value.details
    assert f"{UP}: base: [24, 16]" in caught.value.details
    assert len([line for line in caught.value.details if "differ" in line]) == 9  # three tensors in three layers


def test_vocabularies_that_differ_say_what_to_add(models, tmp_path):
    other = model(tmp_path / "other", shapes=llama_shapes(vocab=44))
    with pytest.raises(CheckpointError, match="shapes differ") as caught:
        merge(tmp_path / "out", recipe_of("task_arithmetic", models[0], other))
    assert "tokenizer" in str(caught.value.hint)
    leave = wsmerge.Leave(truncate_vocabulary=True)
    report = merge(tmp_path / "out", recipe_of("task_arithmetic", models[0], other), leave=leave)
    assert any("embed_tokens" in line and "cut to 40" in line for line in report.warnings)
    assert values(tmp_path / "out")["model.embed_tokens.weight"].shape == (40, 16)


def test_models_of_different_depth_are_told(models, tmp_path):
    deeper = model(tmp_path / "deeper", shapes=llama_shapes(layers=4))
    with pytest.raises(WsmergeError, match="layers"):
        merge(tmp_path / "out", recipe_of("task_arithmetic", models[0], deeper))


# --- dtypes on the way ---


@pytest.mark.parametrize("out", ["float32", "float16"])
@pytest.mark.parametrize("held", ["float32", "float16"])
def test_a_passthrough_is_rounded_to_the_recipes_dtype_first(tmp_path, held, out):
    """As in mergekit: to `dtype`, and from there to `out_dtype`."""
    given = model(tmp_path / "given", dtype=held)
    recipe = {"merge_method": "passthrough", "models": entries((given, {})), "dtype": "bfloat16", "out_dtype": out}
    merge(tmp_path / "twice", recipe)
    merge(tmp_path / "once", recipe, numerics=wsmerge.Numerics(precise=True))
    target = {"float32": F32, "float16": F16}[out]
    for name, (dtype, bits) in read_all(given).items():
        wide = to_float32(bits, dtype)
        twice = from_float32(to_float32(from_float32(wide, BF16), BF16), target)
        np.testing.assert_array_equal(read_all(tmp_path / "twice")[name][1], twice, err_msg=name)
        np.testing.assert_array_equal(read_all(tmp_path / "once")[name][1], from_float32(wide, target), err_msg=name)
    assert dtypes_of(tmp_path / "twice") == {out}
