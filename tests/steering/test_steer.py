"""Steering a loaded model: what it adds, and that it leaves no trace."""

import copy
import math
from contextlib import suppress

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from tests.peft_adapters import quietly
from tests.sources import MemoryDirection, identity
from wsmerge.core.deltas import Delta, DenseDelta, LowRankDelta
from wsmerge.core.dtypes import BF16, F16, F32, F64, from_float64
from wsmerge.errors import BaseMismatchError, NonFiniteError
from wsmerge.steering import steer
from wsmerge.steering.parameters import named_slots
from wsmerge.steering.steer import steered

DTYPES = {torch.bfloat16: BF16, torch.float16: F16, torch.float32: F32, torch.float64: F64}
UP, EMBED, HEAD = "model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight", "lm_head.weight"


def make_model(*, tied: bool = True, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=tied, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model: torch.nn.Module = LlamaForCausalLM(config)
    model.to(dtype).train(mode=False)
    return model


def direction(model, *names: str, rank: int | None = 3, seed: int = 1, tied=None, label="one") -> MemoryDirection:
    generator = np.random.default_rng(seed)
    shapes = {name: tuple(model.get_parameter(name).shape) for name in names}

    def normal(*shape: int) -> NDArray[np.float32]:
        return np.asarray(generator.standard_normal(shape) * 0.3, np.float32)

    def delta(shape: tuple[int, ...]) -> Delta:
        return (
            DenseDelta(normal(*shape))
            if rank is None or len(shape) != 2
            else LowRankDelta(normal(shape[0], rank), normal(rank, shape[1]))
        )

    return MemoryDirection(
        {name: delta(shape) for name, shape in shapes.items()}, identity(shapes, tied=tied), label=label
    )


def all_at(source: MemoryDirection, k: float) -> tuple[MemoryDirection, dict[str, float]]:
    return source, dict.fromkeys(source.shapes, k)


def bits(model) -> dict[str, bytes]:
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return {
        name: value.detach().contiguous().view(integers[value.element_size()]).numpy().tobytes()
        for name, value in model.state_dict().items()
    }


def float64(parameter: torch.Tensor) -> np.ndarray:
    return parameter.detach().double().numpy().copy()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rank", [3, None])
def test_the_sum_is_added_and_rounded_once(dtype, rank):
    model = make_model(dtype=dtype)
    one, two = direction(model, UP, "model.norm.weight", rank=rank), direction(model, UP, rank=2, seed=2)
    before, untouched = {name: float64(model.get_parameter(name)) for name in one.shapes}, bits(model)
    with steered(model, [all_at(one, -1.5), all_at(two, 0.7)]):
        for name, old in before.items():
            change = -1.5 * one.deltas[name].dense()
            change += 0.7 * two.deltas[name].dense() if name in two.deltas else 0
            ours = float64(model.get_parameter(name))
            if dtype in (torch.float32, torch.float64):
                # The change is summed in float32: a few units in the last place of the products' magnitude.
                assert np.abs(ours - (old + change)).max() <= 1e-6
            else:
                expected = torch.from_numpy(old + change).to(torch.float32).to(dtype).double().numpy()
                neighbours = np.mean(ours != expected)
                assert neighbours <= 0.005  # float32 sums that straddle a tie
                step = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}[dtype]
                assert (np.abs(ours - expected) <= step * np.abs(expected)).all()
        changed = {name for name, value in bits(model).items() if value != untouched[name]}
        assert changed == set(before)
    assert bits(model) == untouched


def test_bf16_is_the_correctly_rounded_result():
    model = make_model(dtype=torch.bfloat16)
    source = direction(model, *[name for name, p in model.named_parameters() if p.ndim == 2], rank=4)
    old = {name: float64(model.get_parameter(name)) for name in source.shapes}
    with steered(model, [all_at(source, 0.1)]):
        wrong = total = 0
        for name, before in old.items():
            expected = from_float64(before + 0.1 * source.deltas[name].dense(), BF16)
            ours = model.get_parameter(name).detach().view(torch.uint16).numpy()
            wrong, total = wrong + int((ours != expected).sum()), total + expected.size
    assert wrong <= 1 + total * 1e-4


def test_a_float64_model_keeps_its_digits():
    model = make_model(dtype=torch.float64)
    source = direction(model, UP)
    old = float64(model.get_parameter(UP))
    with steered(model, [all_at(source, 2.0**-40)]):
        change = float64(model.get_parameter(UP)) - old
    expected = 2.0**-40 * source.deltas[UP].dense()
    assert np.abs(change - expected).max() < 1e-6 * np.abs(expected).max() + 1e-16


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_bit_comes_back_also_when_the_body_raises(dtype):
    model = make_model(dtype=dtype)
    with torch.no_grad():
        parameter = model.get_parameter(UP)
        parameter[0, 0], parameter[0, 1], parameter[0, 2] = math.nan, math.inf, -0.0
    before, flags = bits(model), {name: p.requires_grad for name, p in model.named_parameters()}
    with suppress(ZeroDivisionError), steered(model, [all_at(direction(model, UP, EMBED), 16.0)]):
        assert bits(model) != before
        raise ZeroDivisionError
    assert bits(model) == before
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags


def test_a_tied_parameter_changes_once():
    model = make_model(tied=True)
    source = direction(model, EMBED, tied={HEAD: EMBED})
    old = float64(model.get_parameter(EMBED))
    before = bits(model)
    with steered(model, [all_at(source, 2.0)]):
        assert np.allclose(float64(model.get_parameter(HEAD)), old + 2 * source.deltas[EMBED].dense(), atol=1e-5)
        assert model.get_parameter(HEAD) is model.get_parameter(EMBED)
    assert bits(model) == before


def test_a_direction_with_both_names_changes_the_one_parameter_once():
    model = make_model(tied=True)
    source = direction(model, EMBED)
    source.deltas = {**source.deltas, HEAD: source.deltas[EMBED]}
    old = float64(model.get_parameter(EMBED))
    with steered(model, [all_at(source, 2.0)]):
        assert np.allclose(float64(model.get_parameter(EMBED)), old + 2 * source.deltas[EMBED].dense(), atol=1e-5)


@pytest.mark.parametrize("what", ["deltas", "coefficients"])
def test_a_direction_that_wants_two_changes_of_one_parameter_is_refused(what):
    model = make_model(tied=True)
    source = direction(model, EMBED)
    source.deltas = {**source.deltas, HEAD: -source.deltas[EMBED] if what == "deltas" else source.deltas[EMBED]}
    ks = {EMBED: 1.0, HEAD: 1.0 if what == "deltas" else 2.0}
    with pytest.raises(BaseMismatchError, match="are one parameter here"), steered(model, [(source, ks)]):
        pass


def test_an_untied_model_gets_both_ends_of_what_the_base_ties():
    model = make_model(tied=False)
    source = direction(model, EMBED, tied={HEAD: EMBED})
    old = {name: float64(model.get_parameter(name)) for name in (EMBED, HEAD)}
    with steered(model, [all_at(source, 1.0)]):
        for name, before in old.items():
            assert np.allclose(float64(model.get_parameter(name)), before + source.deltas[EMBED].dense(), atol=1e-5)


def test_zero_coefficients_touch_nothing():
    model = make_model()
    version = model.get_parameter(UP)._version
    with steered(model, [all_at(direction(model, UP), 0.0), (direction(model, EMBED), {})]):
        assert model.get_parameter(UP)._version == version


def test_nested_blocks_end_inside_out():
    model = make_model(dtype=torch.bfloat16)
    first, second = direction(model, UP), direction(model, UP, EMBED, seed=2)
    outside = bits(model)
    with steered(model, [all_at(first, 3.0)]):
        between = bits(model)
        with suppress(KeyError), steered(model, [all_at(second, -5.0)]):
            assert bits(model) != between
            raise KeyError
        assert bits(model) == between
    assert bits(model) == outside


def test_all_that_does_not_fit_at_once_and_nothing_is_changed():
    model = make_model()
    before = bits(model)
    good = direction(model, UP)
    bad = direction(model, UP, label="bad")
    bad.deltas = {
        UP: LowRankDelta(np.ones((24, 1), np.float32), np.ones((1, 17), np.float32)),
        "model.layers.9.mlp.up_proj.weight": DenseDelta(np.ones((24, 16), np.float32)),
        "model.norm.bias": DenseDelta(np.ones(16, np.float32)),
    }
    with pytest.raises(BaseMismatchError) as caught, steered(model, [all_at(good, 1.0), all_at(bad, 1.0)]):
        pass
    assert len(caught.value.details) == 3
    assert "[24, 16] in the model, its delta [24, 17]" in str(caught.value)
    assert "near: " in str(caught.value)
    assert bits(model) == before


def test_parameters_that_cannot_be_changed():
    model = make_model()
    source = direction(model, UP, "model.layers.0.mlp.up_proj.weight")
    model.get_submodule("model.layers.1.mlp.up_proj").to("meta")
    packed = torch.nn.Parameter(torch.ones(24, 16, dtype=torch.int8), requires_grad=False)
    model.get_submodule("model.layers.0.mlp.up_proj").register_parameter("weight", packed)
    with pytest.raises(BaseMismatchError) as caught, steered(model, [all_at(source, 1.0)]):
        pass
    assert "meta device" in str(caught.value)
    assert "int8" in str(caught.value)


class PackedParameter(torch.nn.Parameter):
    """As quantisation libraries have them."""


def test_parameters_of_other_kinds_are_refused():
    model = make_model()
    source = direction(model, UP)
    model.get_submodule("model.layers.1.mlp.up_proj").register_parameter("weight", PackedParameter(torch.ones(24, 16)))
    with pytest.raises(BaseMismatchError, match="PackedParameter"), steered(model, [all_at(source, 1.0)]):
        pass


@pytest.mark.parametrize("k", [math.nan, math.inf])
def test_coefficients_must_be_finite(k):
    model = make_model()
    with pytest.raises(NonFiniteError, match=UP), steered(model, [all_at(direction(model, UP), k)]):
        pass


class BrokenDirection(MemoryDirection):
    """Fails at its second tensor, as an artifact on a disk that breaks would."""

    def low_rank(self, name: str) -> LowRankDelta:
        if name == EMBED:
            raise OSError("gone")
        return super().low_rank(name)


def test_a_failure_half_way_restores_everything():
    model = make_model()
    whole = direction(model, UP, EMBED)
    before = bits(model)
    with pytest.raises(OSError, match="gone"), steered(model, [all_at(BrokenDirection(whole.deltas, whole.base), 1.0)]):
        pytest.fail("the body must not run")
    assert bits(model) == before


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_any_gradient_mode(mode):
    model = make_model()
    source = direction(model, UP, EMBED)
    before = bits(model)
    tokens = torch.arange(6)[None]
    plain = model(tokens).logits.detach()
    with mode(), steered(model, [all_at(source, 1.0)]):
        assert not torch.allclose(model(tokens).logits, plain)
    assert bits(model) == before
    assert torch.equal(model(tokens).logits.detach(), plain)


def test_a_model_made_in_inference_mode():
    with torch.inference_mode():
        model = make_model()
    assert model.get_parameter(UP).is_inference()
    before = bits(model)
    with steered(model, [all_at(direction(model, UP), 1.0)]):
        assert bits(model) != before
    assert bits(model) == before


def test_gradients_within_the_block_and_none_across_its_border():
    model = make_model()
    source = direction(model, UP)
    tokens = torch.arange(6)[None]
    with steered(model, [all_at(source, 1.0)]):
        model(tokens).logits.sum().backward()
        assert model.get_parameter(UP).grad is not None
        assert model.get_parameter(UP).is_leaf
    loss = model(tokens).logits.sum()
    with steered(model, [all_at(source, 1.0)]), pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_wrapped_models_are_matched_by_checkpoint_names():
    plain = make_model()
    names = [name for name, _ in named_slots(plain)]
    assert HEAD in names
    assert UP in names
    source = direction(plain, UP, "model.layers.0.self_attn.q_proj.weight")
    tokens = torch.arange(6)[None]
    with torch.no_grad(), steered(plain, [all_at(source, 1.0)]):
        expected = plain(tokens).logits
    adapted = quietly(get_peft_model, copy.deepcopy(plain), LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))
    wrapped = torch.nn.Sequential()
    wrapped.add_module("module", copy.deepcopy(plain))
    for model, call in ((adapted, adapted), (wrapped, wrapped[0])):
        assert sorted(name for name, _ in named_slots(model)) == sorted(names)
        before = bits(model)
        with torch.no_grad(), steered(model, [all_at(source, 1.0)]):
            assert torch.allclose(call(tokens).logits, expected, atol=1e-6)
        assert bits(model) == before


def test_names_without_the_models_prefix():
    inner = make_model().get_submodule("model")
    source = direction(make_model(), UP)
    before = bits(inner)
    with steered(inner, [all_at(source, 1.0)]):
        assert bits(inner) != before
    assert bits(inner) == before


@pytest.mark.parametrize("rank", [3, None])
def test_blocks_do_not_change_the_result(monkeypatch, rank):
    model = make_model()
    source = direction(model, UP, EMBED, "model.norm.weight", rank=rank)
    with steered(model, [all_at(source, 1.5)]):
        whole = {name: float64(model.get_parameter(name)) for name in source.shapes}
    monkeypatch.setattr(steer, "_BLOCK_ELEMENTS", 40)
    with steered(model, [all_at(source, 1.5)]):
        for name, values in whole.items():
            assert np.allclose(float64(model.get_parameter(name)), values, atol=1e-7)


def test_transposed_and_scalar_parameters():
    module = torch.nn.Module()
    module.register_parameter("turned", torch.nn.Parameter(torch.arange(12.0).reshape(3, 4).T))
    module.register_parameter("scalar", torch.nn.Parameter(torch.tensor(2.0)))
    deltas = {
        "turned": DenseDelta(np.arange(12, dtype=np.float32).reshape(4, 3)),
        "scalar": DenseDelta(np.array(0.5, np.float32)),
    }
    source = MemoryDirection(deltas, identity({"turned": (4, 3), "scalar": ()}))
    with steered(module, [all_at(source, 2.0)]):
        turned, scalar = module.get_parameter("turned"), module.get_parameter("scalar")
        assert torch.equal(turned.detach(), torch.arange(12.0).reshape(3, 4).T + 2 * torch.arange(12.0).reshape(4, 3))
        assert scalar.item() == 3.0
    assert torch.equal(module.get_parameter("turned").detach(), torch.arange(12.0).reshape(3, 4).T)
    assert module.get_parameter("scalar").item() == 2.0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_on_a_gpu(dtype):
    model = make_model(dtype=dtype)
    source = direction(model, UP, EMBED, "model.norm.weight")
    with steered(model, [all_at(source, 1.5)]):
        expected = {name: float64(model.get_parameter(name)) for name in source.shapes}
    before = bits(model)
    model.to("cuda")
    with steered(model, [all_at(source, 1.5)]):
        assert model.get_parameter(UP).device.type == "cuda"
        for name, values in expected.items():
            ours = float64(model.get_parameter(name).cpu())
            assert np.abs(ours - values).max() <= 0.02 * np.abs(values).max()
    model.to("cpu")
    assert bits(model) == before
