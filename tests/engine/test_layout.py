import json

from hypothesis import given
from hypothesis import strategies as st

from wsmerge.core.dtypes import BF16, F32, dtype_named
from wsmerge.core.tensor_file import PAGE_BYTES
from wsmerge.core.tensors import TensorSpec
from wsmerge.engine.layout import blocks_of, index_json, lay_out

DTYPES = [BF16, F32, dtype_named("I64"), dtype_named("BOOL")]

specs_strategy = st.lists(
    st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 700), max_size=2)), min_size=1, max_size=12
).map(lambda rows: [TensorSpec(f"t{i}", dtype, tuple(shape)) for i, (dtype, shape) in enumerate(rows)])


@given(specs_strategy, st.integers(1, 1 << 20), st.sampled_from([4096, 1 << 14, 1 << 20]))
def test_blocks_cover_every_byte_of_every_tensor_once(specs, max_shard_bytes, block_bytes):
    shards = lay_out(specs, max_shard_bytes)
    assert sorted(spec.name for shard in shards for spec in shard.specs) == sorted(spec.name for spec in specs)
    order = [spec for shard in shards for spec in shard.specs]
    covered = [0] * len(order)
    for block in blocks_of(shards, block_bytes):
        shard = shards[block.shard]
        used = (
            max(0, min(len(shard.header), block.offset + block.nbytes) - block.offset)
            if block.offset < len(shard.header)
            else 0
        )
        for piece in shard.pieces(block):
            assert piece.at == used
            assert piece.start == covered[piece.tensor]
            assert piece.start % order[piece.tensor].dtype.itemsize == 0
            assert piece.nbytes % order[piece.tensor].dtype.itemsize == 0
            covered[piece.tensor] += piece.nbytes
            used += piece.nbytes
        assert used == block.nbytes
    assert covered == [spec.nbytes for spec in order]


@given(specs_strategy, st.integers(1, 1 << 16))
def test_shards_keep_to_their_size_unless_one_tensor_is_larger(specs, max_shard_bytes):
    for shard in lay_out(specs, max_shard_bytes):
        assert len(shard.header) % PAGE_BYTES == 0
        size = sum(spec.nbytes for spec in shard.specs)
        assert size <= max_shard_bytes or len([spec for spec in shard.specs if spec.nbytes]) == 1


def test_names_and_index_are_those_of_transformers():
    specs = [TensorSpec(name, BF16, (1000,)) for name in ("a", "b", "c")]
    assert [shard.file for shard in lay_out(specs, 10_000)] == ["model.safetensors"]
    shards = lay_out(specs, 4000)
    assert [shard.file for shard in shards] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = json.loads(index_json(shards))
    assert index["metadata"]["total_size"] == 6000
    assert index["weight_map"] == {"a": shards[0].file, "b": shards[0].file, "c": shards[1].file}
