import numpy as np

from tests.builders import make_checkpoint, random_tensors
from wsmerge.core.dtypes import BF16
from wsmerge.core.tensors import TensorSpec
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.engine.inputs.stored import StoredTensor


def test_a_stored_tensor_is_read_by_range_under_its_name_or_another(tmp_path):
    tensors = random_tensors({"a.weight": (3, 4), "b.weight": (5,)})
    with Checkpoint(
        make_checkpoint(tmp_path / "chat", tensors, config={"model_type": "llama"}, shards=2)
    ) as checkpoint:
        one = StoredTensor(checkpoint, "a.weight")
        assert (one.label, one.spec) == ("chat: a.weight", TensorSpec("a.weight", BF16, (3, 4)))
        other = StoredTensor(checkpoint, "a.weight", as_name="z")
        assert (other.label, other.spec.name) == ("chat: a.weight", "z")
        for tensor in (one, other):
            part = bytearray(6)
            tensor.read_into(4, memoryview(part))
            np.testing.assert_array_equal(np.frombuffer(part, "<u2"), tensors["a.weight"][1].reshape(-1)[2:5])
