"""Directions in place of models, judged by naive float64 sums."""

import numpy as np
import pytest

from tests.builders import llama_shapes, make_adapter, make_checkpoint, random_tensors
from tests.sources import MemoryDirection, identity, random_direction
from wsmerge.core.deltas import DenseDelta
from wsmerge.core.dtypes import BF16, F32, dtype_named
from wsmerge.core.reading import tensor_values
from wsmerge.core.tensors import TensorInput, TensorSpec
from wsmerge.engine.adapter import Adapter
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.engine.inputs.adapted import adapted_tensor
from wsmerge.engine.inputs.directed import delta_tensor, steered_tensor
from wsmerge.engine.inputs.stored import StoredTensor
from wsmerge.errors import BaseMismatchError

UP = "model.layers.0.mlp.up_proj.weight"
RANK = 6
EPS = 2.0**-24


@pytest.fixture(params=["bfloat16", "float16", "float32"])
def base(request, tmp_path):
    shapes = llama_shapes(layers=1, hidden=300, inner=400)
    with Checkpoint(make_checkpoint(tmp_path / "base", random_tensors(shapes, dtype=request.param))) as checkpoint:
        yield checkpoint


def read(tensor: TensorInput) -> np.ndarray:
    assert tensor.spec.dtype is F32
    data = bytearray(tensor.spec.nbytes)
    tensor.read_into(0, memoryview(data))
    return np.frombuffer(data, np.float32).reshape(tensor.spec.shape)


def test_low_rank(base):
    direction = random_direction({UP: (400, 300)}, rank=RANK)
    delta = direction.low_rank(UP)
    exact = delta.dense()
    bound = RANK * EPS * (np.abs(delta.b).astype(np.float64) @ np.abs(delta.a))
    w = read(delta_tensor(direction, base.specs[UP], UP))
    assert (np.abs(w - exact) <= bound).all()
    assert w.any()
    steered = read(steered_tensor(StoredTensor(base, UP), direction, UP))
    stored = tensor_values(base, UP, 0, w.size).reshape(w.shape)
    np.testing.assert_array_equal(steered, (stored + w).astype(np.float32))


def test_dense(base):
    direction = random_direction({UP: (400, 300)}, rank=None)
    w = read(delta_tensor(direction, base.specs[UP], UP))
    np.testing.assert_array_equal(w, direction.deltas[UP].dense())
    stored = tensor_values(base, UP, 0, w.size).reshape(w.shape)
    steered = read(steered_tensor(StoredTensor(base, UP), direction, UP))
    np.testing.assert_array_equal(steered, (stored + w).astype(np.float32))


def test_no_delta_is_zeros_and_the_base(base):
    direction = random_direction({UP: (400, 300)}, rank=RANK)
    name = "model.norm.weight"
    assert not read(delta_tensor(direction, base.specs[name], None)).any()
    steered = read(steered_tensor(StoredTensor(base, name), direction, None))
    np.testing.assert_array_equal(steered, tensor_values(base, name, 0, 300))


@pytest.mark.parametrize("rank", [RANK, None])
def test_any_range_gives_the_same_bytes(base, rank):
    direction = random_direction({UP: (400, 300)}, rank=rank)
    generator = np.random.default_rng(0)
    for tensor in (
        delta_tensor(direction, base.specs[UP], UP),
        steered_tensor(StoredTensor(base, UP), direction, UP),
    ):
        whole = read(tensor).tobytes()
        for low, high in np.sort(generator.integers(0, 120_000, (20, 2))):
            part = bytearray(4 * (high - low))
            tensor.read_into(4 * int(low), memoryview(part))
            assert bytes(part) == whole[4 * low : 4 * high]


def test_a_direction_on_an_adapted_tensor(base, tmp_path):
    direction = random_direction({UP: (400, 300)}, rank=RANK)
    folder = make_adapter(tmp_path / "adapter", {UP: (400, 300)}, rank=3)
    with Adapter(folder, base) as adapter:
        adapted = adapted_tensor(StoredTensor(base, UP), adapter, UP, precise=False)
        data = bytearray(adapted.spec.nbytes)
        adapted.read_into(0, memoryview(data))
        tensor = steered_tensor(adapted, direction, UP)
        assert tensor.label == f"base+adapter + memory: {UP}"
        held = make_checkpoint(
            tmp_path / "held", {UP: (adapted.spec.dtype, np.frombuffer(data, adapted.spec.dtype.storage).reshape(400, 300))},
            config={"model_type": "llama"},
        )  # fmt: skip
        with Checkpoint(held) as stored:
            expected = read(steered_tensor(StoredTensor(stored, UP), direction, UP))
        np.testing.assert_array_equal(read(tensor), expected)


def test_names_and_labels():
    direction = random_direction({UP: (4, 5)}, rank=RANK, label="formal@1.0.0")
    tensor = delta_tensor(direction, TensorSpec("out.name", BF16, (4, 5)), UP)
    assert tensor.spec == TensorSpec("out.name", F32, (4, 5))
    assert tensor.label == f"formal@1.0.0: {UP}"


def test_what_does_not_fit_is_refused(tmp_path):
    direction = random_direction({UP: (4, 5)}, rank=RANK, label="formal@1.0.0")
    with pytest.raises(BaseMismatchError, match=r"formal@1.0.0: its delta .* is \[4, 5\], and other is \[5, 4\]"):
        delta_tensor(direction, TensorSpec("other", BF16, (5, 4)), UP)
    counts = {"counts": (dtype_named("int64"), np.arange(3))}
    folder = make_checkpoint(tmp_path / "base", counts, config={"model_type": "llama"})
    values = MemoryDirection({"counts": DenseDelta(np.ones(3, np.float32))}, identity({"counts": (3,)}))
    with Checkpoint(folder) as base:
        stored = StoredTensor(base, "counts")
        assert steered_tensor(stored, values, None) is stored
        with pytest.raises(BaseMismatchError, match="holds int64"):
            steered_tensor(stored, values, "counts")
