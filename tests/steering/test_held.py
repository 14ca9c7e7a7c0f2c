"""Coefficients that change at will: what the model is at each of them, and that nothing is left of it."""

import copy
import math
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

import wsmerge
from tests.builders import make_adapter
from tests.peft_adapters import quietly
from tests.sources import MemoryDirection
from tests.steering.test_steer import EMBED, HEAD, UP, bits, direction, float64, make_model
from tests.steering.tiny import save_tiny_base, tiny_model
from wsmerge.core.deltas import LowRankDelta
from wsmerge.errors import BaseMismatchError, NonFiniteError, RecipeError, UsageError
from wsmerge.steering.held import Steering
from wsmerge.steering.steer import steered

NAMES = (UP, EMBED, "model.layers.0.self_attn.q_proj.weight", "model.norm.weight")


def at(source: MemoryDirection, k: float) -> tuple[MemoryDirection, dict[str, float]]:
    return source, dict.fromkeys(source.shapes, k)


@settings(max_examples=25)
@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    steps=st.lists(st.tuples(st.sampled_from([-2.0, 0.0, 0.3, 16.0]), st.sampled_from([0.0, 1.0, -0.7])), max_size=5),
)
def test_every_setting_is_what_steering_the_original_gives_to_the_bit(dtype, steps):
    model = make_model(dtype=dtype)
    one, two = direction(model, *NAMES), direction(model, UP, EMBED, rank=None, seed=2)
    original = bits(model)
    fresh = copy.deepcopy(model)
    with Steering(model, {"one": one, "two": two}) as steering:
        for k_one, k_two in steps:
            steering.set({"one": k_one, "two": k_two})
            with steered(fresh, [at(one, k_one), at(two, k_two)]):
                assert bits(model) == bits(fresh)
        steering.set({})
        assert bits(model) == original
        steering.set({"two": 3.0})
    assert bits(model) == original


def test_a_block_ends_with_what_was_set_before_also_when_it_raises():
    model = make_model(dtype=torch.bfloat16)
    steering = Steering(model, {"one": direction(model, *NAMES)})
    original = bits(model)
    steering.set({"one": 2.0})
    between = bits(model)
    with suppress(ZeroDivisionError), steering.at(-1.0), steering.at({"one": 0.0}):
        assert bits(model) == original
        raise ZeroDivisionError
    assert bits(model) == between
    steering.reset()
    assert bits(model) == original


class CountingDirection(MemoryDirection):
    """Counts how often factors are read."""

    reads = 0

    def low_rank(self, name: str) -> LowRankDelta:
        self.reads += 1
        return super().low_rank(name)


def test_factors_are_read_once_and_originals_copied_once():
    model = make_model()
    whole = direction(model, UP, EMBED)
    source = CountingDirection(whole.deltas, whole.base)
    with Steering(model, {"one": source}) as steering:
        for k in (1.0, -1.0, 0.0, 2.0):
            steering.set({"one": k})
        assert source.reads == 2
        assert len(steering._block.records) == 2


def test_a_parameter_whose_coefficient_stays_is_not_touched():
    model = make_model()
    with Steering(model, {"one": direction(model, UP), "two": direction(model, EMBED)}) as steering:
        steering.set({"one": 1.0, "two": 1.0})
        version = model.get_parameter(UP)._version
        steering.set({"one": 1.0, "two": -1.0})
        assert model.get_parameter(UP)._version == version


def test_coefficients_by_layer():
    model = make_model()
    names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in (0, 1)]
    source = direction(model, *names)
    old = {name: float64(model.get_parameter(name)) for name in names}
    with Steering(model, {"one": source}) as steering:
        steering.set({"one": {0: 0.5, 1: -2.0}})
        for name, k in zip(names, (0.5, -2.0), strict=True):
            expected = old[name] + k * source.deltas[name].dense()
            np.testing.assert_allclose(float64(model.get_parameter(name)), expected, atol=1e-6)
        steering.set({"one": [0.0, 1.0]})
        assert np.array_equal(float64(model.get_parameter(names[0])), old[names[0]])


def test_a_tied_parameter_changes_once_and_comes_back():
    model = make_model(tied=True)
    source = direction(model, EMBED, tied={HEAD: EMBED})
    old, before = float64(model.get_parameter(EMBED)), bits(model)
    with Steering(model, {"one": source}) as steering:
        for k in (2.0, -1.0):
            steering.set({"one": k})
            expected = old + k * source.deltas[EMBED].dense()
            np.testing.assert_allclose(float64(model.get_parameter(HEAD)), expected, atol=1e-5)
    assert bits(model) == before


def test_a_model_with_an_adapter_beside_it():
    plain = make_model()
    source = direction(plain, UP, "model.layers.0.self_attn.q_proj.weight")
    config = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    adapted = quietly(get_peft_model, copy.deepcopy(plain), config)
    before, tokens = bits(adapted), torch.arange(6)[None]
    with torch.no_grad(), Steering(adapted, {"one": source}) as steering:
        unsteered = adapted(tokens).logits
        steering.set({"one": 1.0})
        assert not torch.allclose(adapted(tokens).logits, unsteered)
        steering.set({"one": 0.0})
        assert torch.equal(adapted(tokens).logits, unsteered)
        steering.set({"one": -1.0})
    assert bits(adapted) == before


class FlakyDirection(MemoryDirection):
    """Fails at one tensor as long as it is told to."""

    fails = False

    def low_rank(self, name: str) -> LowRankDelta:
        if self.fails and name == EMBED:
            raise OSError("gone")
        return super().low_rank(name)


def test_a_setting_that_fails_leaves_the_original():
    model = make_model()
    whole = direction(model, UP, EMBED)
    source = FlakyDirection(whole.deltas, whole.base)
    original = bits(model)
    steering = Steering(model, {"one": source})
    source.fails = True
    with pytest.raises(OSError, match="gone"):
        steering.set({"one": 1.0})
    assert bits(model) == original
    assert not steering.coefficients
    source.fails = False
    steering.set({"one": 1.0})
    assert bits(model) != original


def test_what_cannot_be_set_is_refused_and_nothing_changes():
    model = make_model()
    steering = Steering(model, {"sycophancy": direction(model, UP), "other": direction(model, EMBED)})
    steering.set({"other": 1.0})
    before = bits(model)
    with pytest.raises(UsageError, match="did you mean 'sycophancy'"):
        steering.set({"sycophanty": 1.0})
    with pytest.raises(UsageError, match="which direction"), steering.at(1.0):
        pass
    with pytest.raises(NonFiniteError):
        steering.set_coefficients({"other": {EMBED: math.inf}})
    with pytest.raises(RecipeError, match="layers 7"):
        steering.set({"sycophancy": {7: 1.0}})
    assert bits(model) == before


def test_a_direction_that_does_not_fit_is_refused_at_once():
    bad = direction(make_model(), UP)
    bad.deltas = {"model.layers.9.mlp.up_proj.weight": bad.deltas[UP]}
    with pytest.raises(BaseMismatchError, match=r"layers\.9"):
        Steering(make_model(), {"bad": bad})


def test_references_and_opened_directions_in_the_api(tmp_path):
    base = save_tiny_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "plus", {"model.layers.0.mlp.up_proj.weight": (64, 32)}, seed=1, scale=0.3)
    opened = wsmerge.extract("yes", base=base, positive=adapter, to=tmp_path / "direction")
    model = tiny_model()
    original = bits(model)
    with opened, wsmerge.steerable(model, {"path": str(tmp_path / "direction"), "open": opened}) as steering:
        steering.set({"path": 1.5})
        once = bits(model)
        steering.set({"open": 1.5})
        assert bits(model) == once != original
    with wsmerge.steerable(model, [str(tmp_path / "direction")]) as steering, steering.at(1.5):
        assert bits(model) == once
    assert bits(model) == original


@pytest.mark.parametrize("k", [1.5, np.float32(1.5), np.float64(1.5), torch.tensor(1.5), np.array(1.5)])
def test_numbers_and_paths_of_a_notebook(tmp_path, k):
    base = save_tiny_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "plus", {"model.layers.0.mlp.up_proj.weight": (64, 32)}, seed=1, scale=0.3)
    folder = tmp_path / "direction"
    wsmerge.extract("yes", base=base, positive=adapter, to=folder).close()
    model = tiny_model()
    with wsmerge.steer(model, {str(folder): 1.5}):
        wanted = bits(model)
    with wsmerge.steer(model, {folder: k}):
        assert bits(model) == wanted
    with wsmerge.steerable(model, [folder]) as steering:
        with steering.at(k):
            assert bits(model) == wanted
        steering.set({folder: k})
        assert bits(model) == wanted
    with pytest.raises(UsageError, match="is no direction"), wsmerge.steer(model, {7: k}):  # type: ignore[arg-type]
        pass
