"""Whole tensors by mergekit's own methods: what they are given, what comes back, and what is drawn."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from wsmerge.core.dtypes import BF16, F16, F32, F64, DType, from_float32, to_float32
from wsmerge.core.tensors import StoredName, TensorSpec
from wsmerge.engine.methods.step import MergeStep, StepInput
from wsmerge.engine.methods.tensorwise import merge_whole, probed_dtype, seed_torch
from wsmerge.errors import CheckpointError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what mergekit's own imports warn of is not ours
    import torch
    from mergekit import merge_methods

KINDS = {BF16: torch.bfloat16, F16: torch.float16, F32: torch.float32, F64: torch.float64}
SHAPE = (40, 30)


@dataclass(frozen=True)
class InMemory:
    """A tensor of elements that are in memory."""

    bits: NDArray[Any]
    spec: TensorSpec
    label: str = "memory"
    made_of: tuple[StoredName, ...] = ()

    def read_into(self, start: int, out: memoryview) -> None:
        out[:] = self.bits.tobytes()[start : start + len(out)]


def stored(seed: int, dtype: DType, scale: float = 1.0, shape: tuple[int, ...] = SHAPE) -> InMemory:
    values = np.random.default_rng(seed).standard_normal(shape) * scale
    bits = values if dtype is F64 else from_float32(values.astype(np.float32), dtype)
    return InMemory(bits, TensorSpec("w", dtype, shape))


def step_of(method, inputs, dtype=BF16, *, each=None, shared=None, base=0, delta=(), **more):
    return MergeStep(
        method,
        TensorSpec("w", dtype, inputs[0].spec.shape),
        tuple(StepInput(item, i == base, i in delta, dict(each or {})) for i, item in enumerate(inputs)),
        dict(shared or {}),
        **more,
    )


def as_torch(item):
    if item.spec.dtype is BF16:
        return torch.from_numpy(item.bits.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(item.bits.copy())


def result_of(step):
    bits = np.frombuffer(merge_whole(step), step.result_dtype.storage).reshape(step.spec.shape)
    return bits if step.result_dtype is F64 else to_float32(bits, step.result_dtype)


@pytest.mark.parametrize("dtype", [BF16, F16, F32, F64])
@pytest.mark.parametrize("method", ["slerp", "nearswap", "karcher", "model_stock"])
def test_the_bits_are_those_of_mergekits_public_api(method, dtype):
    count = 3 if method in ("karcher", "model_stock") else 2
    inputs = [stored(seed, dtype) for seed in range(count)]
    shared = {"slerp": {"t": 0.3}, "nearswap": {"t": 0.01}, "karcher": {"max_iter": 10, "tol": 1e-5}}.get(method, {})
    if method == "model_stock":
        shared = {"filter_wise": False}
    base = None if method == "karcher" else 0
    theirs = merge_methods.merge_tensors(
        [as_torch(item) for item in inputs], merge_methods.get(method), parameters=shared, base_index=base
    )
    ours = result_of(step_of(method, inputs, dtype, shared=shared, base=base))
    np.testing.assert_array_equal(ours, theirs.to(torch.float64 if dtype is F64 else torch.float32).numpy())


def test_inputs_are_rounded_to_the_steps_dtype_first():
    inputs = [stored(0, F32), stored(1, F64)]
    rounded = [
        InMemory(from_float32(item.bits.astype(np.float32), BF16), TensorSpec("w", BF16, SHAPE)) for item in inputs
    ]
    shared = {"t": 0.3}
    np.testing.assert_array_equal(
        result_of(step_of("slerp", inputs, shared=shared)), result_of(step_of("slerp", rounded, shared=shared))
    )


GTA = {"normalize": False, "rescale": False, "lambda": 1.0, "int8_mask": False}


@pytest.mark.parametrize("dtype", [F32, F64])
def test_a_delta_enters_as_it_is(dtype):
    """Over a base near 1000, w is below the last place of float32: (base + w) - base would be nothing."""
    base, w, other = stored(0, dtype, 1000), stored(1, F32, 1e-7), stored(2, dtype, 1000)
    each = {"weight": 1e6, "density": 1.0}
    found = result_of(step_of("task_arithmetic", [base, w], dtype, each=each, shared=GTA, delta=(1,)))
    exact = base.bits.astype(np.float64) + 1e6 * w.bits.astype(np.float64)
    np.testing.assert_allclose(found, exact, rtol=1e-12 if dtype is F64 else 2.0**-23)
    both = step_of(
        "task_arithmetic", [base, other, w], dtype, each={"weight": 1.0, "density": 1.0}, shared=GTA, delta=(2,)
    )
    np.testing.assert_allclose(result_of(both), other.bits.astype(np.float64) + w.bits, rtol=2.0**-21, atol=1e-4)


@pytest.mark.parametrize("method", ["dare_linear", "della_linear"])
def test_draws_depend_on_seed_and_name_and_on_nothing_else(method):
    inputs = [stored(seed, F32) for seed in range(2)]
    each = {"weight": 1.0, "density": 0.5, **({"epsilon": 0.1} if method == "della_linear" else {})}
    step = step_of(method, inputs, F32, each=each, shared=GTA, seed=1)
    first = result_of(step)
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    np.testing.assert_array_equal(result_of(step), first)
    assert torch.equal(torch.random.get_rng_state(), state)  # the caller's own draws go on as they would have
    assert (result_of(replace(step, seed=2)) != first).any()
    assert (result_of(replace(step, spec=TensorSpec("v", F32, SHAPE))) != first).any()


def test_mergekits_stream_goes_on_from_tensor_to_tensor():
    inputs = [stored(seed, F32) for seed in range(2)]
    each = {"weight": 1.0, "density": 0.5}
    step = step_of("dare_linear", inputs, F32, each=each, shared=GTA, mergekit_rng=True)
    with torch.random.fork_rng(devices=[]):
        seed_torch(5)
        ours = [result_of(step), result_of(step)]
        torch.manual_seed(5)
        tensors = [as_torch(item) for item in inputs]
        theirs = []
        for _ in range(2):
            masked = torch.bernoulli(torch.full(SHAPE, 0.5)) * (tensors[1] - tensors[0])
            theirs.append((tensors[0] + masked).numpy())
    for mine, naive in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine, naive)
    assert (ours[0] != ours[1]).any()


def test_a_refusal_names_tensor_and_method():
    inputs = [stored(seed, F32) for seed in range(2)]
    each = {"weight": 1.0, "density": 0.5, "epsilon": 0.9}
    with pytest.raises(CheckpointError, match="mergekit's della refuses it") as caught:
        merge_whole(step_of("della", inputs, F32, each=each, shared=GTA))
    assert caught.value.where == "w"


def test_a_failure_inside_mergekit_is_a_refusal():
    # mergekit takes one number for a row without columns to sort.
    scalar = stored(1, F32, shape=())
    step = step_of("della", [scalar, stored(2, F32, shape=())], F32, each={"weight": 1.0, "density": 0.5})
    with pytest.raises(CheckpointError, match="della"):
        merge_whole(step)


def test_sums_are_those_of_the_threads_that_torch_was_given(monkeypatch):
    # In a thread of its own, BLAS would sum with as many threads as there are cores.
    def products(groups, **_):
        (group,) = groups
        one, other = (tensor.flatten() for tensor in group.tensors)
        return [torch.stack([torch.dot(one[:size], other[:size]) for size in range(20_000, one.numel(), 100)])]

    monkeypatch.setattr(merge_methods, "get", lambda _name: products)
    step = step_of("products", [stored(seed, F32, shape=(300, 90)) for seed in range(2)], F32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        wanted = bytes(merge_whole(step))
        with ThreadPoolExecutor(1) as pool:
            assert bytes(pool.submit(merge_whole, step).result()) == wanted
    finally:
        torch.set_num_threads(threads)


def test_a_tensor_without_elements():
    empty = [stored(seed, BF16, shape=(0, 4)) for seed in range(2)]
    assert len(merge_whole(step_of("nearswap", empty, shared={"t": 0.1}))) == 0


@pytest.mark.parametrize(
    ("method", "dtype", "gives"),
    [("slerp", BF16, BF16), ("arcee_fusion", BF16, F32), ("arcee_fusion", F32, F32), ("nearswap", F16, F16)],
)
def test_the_dtype_of_a_result_is_told_without_the_tensor(method, dtype, gives):
    class Unread:
        label, spec = "unread", TensorSpec("w", dtype, SHAPE)

        def read_into(self, *_):
            pytest.fail("it was read")

    shared = {"t": 0.5} if method in ("slerp", "nearswap") else {}
    state = torch.random.get_rng_state()
    assert probed_dtype(step_of(method, [Unread(), Unread()], dtype, shared=shared)) is gives
    assert torch.equal(torch.random.get_rng_state(), state)
