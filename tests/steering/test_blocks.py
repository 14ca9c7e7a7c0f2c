"""Blocks that begin and end in any order and thread, and parameters that others change meanwhile."""

import asyncio
import copy
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.steering.test_steer import EMBED, HEAD, UP, all_at, bits, direction, float64, make_model
from wsmerge.errors import SteeringError
from wsmerge.steering.held import Steering
from wsmerge.steering.steer import steered

NORM = "model.norm.weight"
NAMES = (UP, EMBED, NORM)


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(0, 2), st.sampled_from([None, 0.0, 0.7, -2.0])), max_size=8),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_a_parameter_is_the_original_plus_the_sum_of_all_that_is_open(steps, dtype):
    model = make_model(dtype=dtype)
    sources = [
        direction(model, UP, EMBED),
        direction(model, UP, NORM, rank=None, seed=2),
        direction(model, EMBED, seed=3),
    ]
    original, old = bits(model), {name: float64(model.get_parameter(name)) for name in NAMES}
    held: dict[int, Steering] = {}
    ks = [0.0] * len(sources)
    for who, k in steps:
        if k is None:
            ks[who] = 0.0
            if who in held:
                held.pop(who).close()
        else:
            ks[who] = k
            held.setdefault(who, Steering(model, {"one": sources[who]})).set({"one": k})
        for name in NAMES:
            change = sum(k * one.deltas[name].dense() for k, one in zip(ks, sources, strict=True) if name in one.deltas)
            now, wanted = float64(model.get_parameter(name)), old[name] + change
            # Rounded once: were each block to start from the rounded values of another, bfloat16 would be off by more.
            half_a_step = 2.0**-8 * np.abs(wanted) if dtype == torch.bfloat16 else 0.0
            assert (np.abs(now - wanted) <= half_a_step + 2e-6).all()
        if not any(ks):
            assert bits(model) == original
    for steering in held.values():
        steering.close()
    assert bits(model) == original


def test_blocks_that_end_in_the_order_in_which_they_began():
    model = make_model(dtype=torch.bfloat16)
    first, second = [all_at(direction(model, UP), 1.0)], [all_at(direction(model, UP, EMBED, seed=2), -3.0)]
    original, fresh = bits(model), copy.deepcopy(model)
    one, two = ExitStack(), ExitStack()
    one.enter_context(steered(model, first))
    two.enter_context(steered(model, second))
    one.close()
    with steered(fresh, second):
        assert bits(model) == bits(fresh)
    two.close()
    assert bits(model) == original


def test_settings_that_end_in_the_order_in_which_they_began():
    model = make_model()
    original = bits(model)
    with Steering(model, {"one": direction(model, UP)}) as steering:
        steering.set({"one": 0.5})
        half = bits(model)
        one, two = steering.at(1.0), steering.at(2.0)
        one.__enter__()
        two.__enter__()
        one.__exit__(None, None, None)
        assert steering.coefficients["one"][UP] == 2.0
        two.__exit__(None, None, None)
        assert steering.coefficients["one"][UP] == 0.5
        assert bits(model) == half
    assert bits(model) == original


def test_a_setting_within_another_block():
    model = make_model()
    source, other = direction(model, UP), direction(model, UP, seed=2)
    with Steering(model, {"one": source}) as steering:
        steering.set({"one": 0.5})
        half = bits(model)
        steering.set({"one": 1.0})
        with steered(model, [all_at(other, 1.0)]):
            steering.set({"one": 0.5})
        assert bits(model) == half


def test_a_wrapper_and_what_it_wraps_are_one_model():
    model = make_model()
    inner = model.get_submodule("model")
    original = bits(model)
    outer = ExitStack()
    outer.enter_context(steered(model, [all_at(direction(model, UP, EMBED), 1.0)]))
    with steered(inner, [all_at(direction(model, UP, seed=2), 1.0)]):
        outer.close()
    assert bits(model) == original


def in_a_thread(work):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(timeout=30)


def test_a_second_thread_is_refused_and_changes_nothing():
    model = make_model()
    source = direction(model, UP)
    original = bits(model)

    def other() -> None:
        with steered(model, [all_at(source, 5.0)]):
            pytest.fail("two threads steer one model")

    with steered(model, [all_at(source, 1.0)]):
        between = bits(model)
        with pytest.raises(SteeringError, match="another thread"):
            in_a_thread(other)
        assert bits(model) == between
    assert bits(model) == original
    with pytest.raises(pytest.fail.Exception):
        in_a_thread(other)
    assert bits(model) == original


def test_threads_with_a_model_each_do_not_meet():
    models = [make_model(seed=seed) for seed in (0, 1)]
    both = threading.Barrier(2, timeout=30)

    def work(model) -> bool:
        original = bits(model)
        with steered(model, [all_at(direction(model, UP), 1.0)]):
            both.wait()
        return bits(model) == original

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, models)) == [True, True]


def test_a_block_may_end_in_another_thread():
    model = make_model()
    original = bits(model)
    block = steered(model, [all_at(direction(model, UP), 1.0)])
    in_a_thread(block.__enter__)  # that thread has ended, so this one may steer as well
    with steered(model, [all_at(direction(model, EMBED), 1.0)]):
        block.__exit__(None, None, None)
    assert bits(model) == original


def test_one_steering_is_used_by_one_thread_at_a_time():
    model = make_model()
    with Steering(model, {"one": direction(model, UP)}) as steering:
        in_a_thread(lambda: steering.set({"one": 1.0}))
        with steering.at(2.0):
            between = bits(model)
            with pytest.raises(SteeringError, match="another thread"):
                in_a_thread(steering.at(3.0).__enter__)
            with pytest.raises(SteeringError, match="another thread"):
                in_a_thread(lambda: steering.set({"one": 1.0}))
            assert bits(model) == between
        assert steering.coefficients["one"][UP] == 1.0


def test_a_second_task_is_refused():
    model = make_model()
    source, original = direction(model, UP), bits(model)

    async def request(entered: asyncio.Event, leave: asyncio.Event) -> None:
        with steered(model, [all_at(source, 1.0)]), steered(model, [all_at(source, 1.0)]):
            entered.set()
            await leave.wait()

    async def serve() -> None:
        entered, leave = asyncio.Event(), asyncio.Event()
        first = asyncio.create_task(request(entered, leave))
        await entered.wait()
        with pytest.raises(SteeringError, match="task"):
            await asyncio.create_task(request(asyncio.Event(), leave))
        leave.set()
        await first

    asyncio.run(serve())
    assert bits(model) == original


def sgd(model) -> None:
    model.get_parameter(UP).grad = torch.ones_like(model.get_parameter(UP))
    torch.optim.SGD(model.parameters(), lr=0.5).step()


def through_data(model) -> None:
    model.get_parameter(UP).data[0, 0] += 1


def swapped_rows(model) -> None:
    with torch.no_grad():
        model.get_parameter(UP).copy_(model.get_parameter(UP).flip(0))


def swapped_columns(model) -> None:
    with torch.no_grad():
        model.get_parameter(UP).copy_(model.get_parameter(UP).flip(1))


def loaded(model) -> None:
    model.load_state_dict(make_model(seed=5).state_dict())


def assigned(model) -> None:
    model.load_state_dict(copy.deepcopy(make_model(seed=5).state_dict()), assign=True)


def emptied(model) -> None:
    model.get_submodule("model.layers.1.mlp").to_empty(device="cpu")
    with torch.no_grad():
        model.get_parameter(UP).fill_(3.0)


def shortened(model) -> None:
    kept = torch.nn.Parameter(model.get_parameter(UP).detach()[:5].clone())
    model.get_submodule("model.layers.1.mlp.up_proj").register_parameter("weight", kept)


@pytest.mark.parametrize(
    "change", [sgd, through_data, swapped_rows, swapped_columns, loaded, assigned, emptied, shortened]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_others_changed_is_told_and_left(change, dtype):
    model = make_model(dtype=dtype)
    original = bits(model)
    block = steered(model, [all_at(direction(model, UP, NORM), 1.0)])
    block.__enter__()
    change(model)
    theirs = bits(model)
    with pytest.raises(SteeringError, match=UP):
        block.__exit__(None, None, None)
    after = bits(model)
    assert after[UP] == theirs[UP]
    if change in (sgd, through_data, swapped_rows, swapped_columns, emptied, shortened):
        assert after[NORM] == original[NORM]  # all that is as it was written is restored
    with steered(model, []):  # and the model may be steered again
        assert bits(model) == after


def test_a_change_is_told_before_another_block_builds_on_it():
    model = make_model()
    source = direction(model, UP)
    outer = steered(model, [all_at(source, 1.0)])
    outer.__enter__()
    through_data(model)
    theirs = bits(model)
    with pytest.raises(SteeringError, match="changed in place"), steered(model, [all_at(source, 1.0)]):
        pytest.fail("a block on values that nobody knows")
    with pytest.raises(SteeringError):
        outer.__exit__(None, None, None)
    assert bits(model) == theirs


def test_resized_embeddings_are_told_and_all_else_is_restored():
    model = make_model(tied=True)
    original = bits(model)
    block = steered(model, [all_at(direction(model, EMBED, UP, tied={HEAD: EMBED}), 1.0)])
    block.__enter__()
    model.resize_token_embeddings(47)  # type: ignore[operator]  # torch types a module's attributes as tensors
    with pytest.raises(SteeringError, match=r"embed_tokens.*\[47, 16\]"):
        block.__exit__(None, None, None)
    assert bits(model)[UP] == original[UP]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("clone", [True, False])
def test_parameters_replaced_by_equal_ones_are_restored(tied, clone):
    model = make_model(tied=tied)
    original = bits(model)
    with steered(model, [all_at(direction(model, UP, EMBED, tied={HEAD: EMBED}), 1.0)]):
        state = {name: value.clone() if clone else value for name, value in model.state_dict().items()}
        model.load_state_dict(state, assign=True)
    assert bits(model) == original


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_conversion_within_the_block_ends_as_the_converted_base(dtype):
    model = make_model()
    expected = bits(copy.deepcopy(model).to(dtype))
    source = direction(model, *NAMES)
    with steered(model, [all_at(source, 1.0)]), steered(model, [all_at(source, 0.5)]):
        model.to(dtype)
    assert bits(model) == expected
    model = make_model()
    with Steering(model, {"one": source}) as steering:
        steering.set({"one": 1.0})
        model.to(dtype)
        steering.set({"one": 2.0})
        fresh = make_model().to(dtype)
        with steered(fresh, [all_at(source, 2.0)]):
            assert bits(model) == bits(fresh)
    assert bits(model) == expected


def test_a_setting_ends_changes_in_place_and_says_so():
    model = make_model()
    with Steering(model, {"one": direction(model, UP, NORM)}) as steering:
        steering.set({"one": 1.0})
        wanted = bits(model)
        through_data(model)
        with pytest.warns(UserWarning, match=UP):
            steering.set({"one": 1.0})
        assert bits(model) == wanted


def test_training_between_settings_at_zero_is_kept():
    model = make_model()
    with Steering(model, {"one": direction(model, UP)}) as steering:
        steering.set({"one": 1.0})
        steering.set({"one": 0.0})
        sgd(model)
        trained = bits(model)
        with steering.at(-1.0):
            assert bits(model) != trained
        assert bits(model) == trained
    assert bits(model) == trained


def test_ctrl_c_at_the_end_leaves_nothing(monkeypatch):
    model = make_model()
    original = bits(model)
    source = direction(model, *NAMES)
    block = steered(model, [all_at(source, 1.0)])
    block.__enter__()
    copied, presses = torch.Tensor.copy_, iter([True])

    def interrupted(self, *others):
        if next(presses, False):
            raise KeyboardInterrupt
        return copied(self, *others)

    monkeypatch.setattr(torch.Tensor, "copy_", interrupted)
    with pytest.raises(KeyboardInterrupt):
        block.__exit__(None, None, None)
    assert bits(model) == original


def test_a_steering_that_nobody_closed_keeps_no_model():
    model = make_model()
    alive = weakref.ref(model)
    steering = Steering(model, {"one": direction(model, UP)})
    steering.set({"one": 1.0})
    del model, steering
    gc.collect()
    assert alive() is None
