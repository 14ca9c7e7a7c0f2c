"""Weights that are made of stored tensors, against what mergekit and transformers make of them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import make_checkpoint, random_tensors
from tests.engine.architecture.live import mergekit
from wsmerge.core.dtypes import F32
from wsmerge.engine.architecture import Weight, all_weights, architecture_of, resolve_name, undefined_tensors
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.engine.inputs import converted
from wsmerge.engine.inputs.converted import ConversionCache, ConvertedTensor, find_conversion
from wsmerge.engine.inputs.converted_rows import RowMap
from wsmerge.errors import CheckpointError

pytestmark = [
    pytest.mark.slow,
]

EXPERTS = 11  # past 10, where the order by number and the order by letters differ


@pytest.fixture(scope="module")
def torch():
    mergekit("architecture.conversion")
    import torch  # noqa: PLC0415 - slow to load

    return torch


@pytest.fixture(scope="module", params=["bfloat16", "float16", "float32"])
def mixtral(request, torch, tmp_path_factory) -> Iterator[Checkpoint]:
    import transformers  # noqa: PLC0415 - slow to load

    config = transformers.MixtralConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=EXPERTS,
    )
    folder = tmp_path_factory.mktemp("mixtral")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.MixtralForCausalLM(config).to(getattr(torch, request.param))
    model.save_pretrained(folder, max_shard_size="20KB")
    with Checkpoint(folder) as checkpoint:
        yield checkpoint


def live(torch, checkpoint, target):
    """What mergekit makes, as bytes, dtype and shape."""
    specs = checkpoint.specs
    stored = {
        name: torch.frombuffer(checkpoint.read(name), dtype=getattr(torch, spec.dtype.recipe_name)).reshape(spec.shape)
        for name, spec in specs.items()
    }
    convert = mergekit("architecture.conversion").convert_checkpoint_tensors
    made = convert(checkpoint.config["model_type"], stored, target)
    if made is None:
        return None
    flat = made.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return flat, str(made.dtype).removeprefix("torch."), tuple(made.shape)


def found(checkpoint: Checkpoint, target: str, cache: ConversionCache | None = None) -> ConvertedTensor:
    tensor = find_conversion(checkpoint, Weight(target), cache or ConversionCache())
    assert tensor is not None
    return tensor


def whole(tensor: ConvertedTensor) -> bytes:
    out = bytearray(tensor.spec.nbytes)
    tensor.read_into(0, memoryview(out))
    return bytes(out)


def described(tensor: ConvertedTensor):
    return whole(tensor), tensor.spec.dtype.recipe_name, tensor.spec.shape


def test_every_weight_of_mixtral_is_mergekits(torch, mixtral):
    architecture, cache, made = architecture_of([mixtral]), ConversionCache(), 0
    for weight in all_weights(architecture, mixtral.config):
        if resolve_name(weight, mixtral.specs) is not None:
            continue
        tensor = found(mixtral, weight.name, cache)
        assert described(tensor) == live(torch, mixtral, weight.name)
        assert tensor.spec.name == weight.name
        assert tensor.is_read_by_range
        assert weight.name in tensor.label
        made += 1
    assert made == 2 * 3
    assert undefined_tensors(architecture, mixtral, cache) == ()


def test_what_it_is_made_of_is_told(mixtral):
    tensor = found(mixtral, "model.layers.1.mlp.experts.down_proj")
    prefix = "model.layers.1.block_sparse_moe.experts"
    assert tensor.sources == tuple(f"{prefix}.{expert}.w2.weight" for expert in range(EXPERTS))
    assert tensor.label.endswith(f"down_proj (made of {prefix}.0.w2.weight and {EXPERTS - 1} more)")


@given(data=st.data())
def test_any_range_reads_the_same_bytes(mixtral, data):
    tensor = found(mixtral, "model.layers.0.mlp.experts.gate_up_proj", CACHE)
    size, all_bytes = tensor.spec.dtype.itemsize, whole(tensor)
    start = data.draw(st.integers(0, tensor.spec.numel)) * size
    count = data.draw(st.integers(0, tensor.spec.numel - start // size)) * size
    out = bytearray(count)
    tensor.read_into(start, memoryview(out))
    assert bytes(out) == all_bytes[start : start + count]


CACHE = ConversionCache()


def test_what_no_conversion_makes(torch, mixtral):
    absent = Weight("model.layers.0.mlp.experts.no_such", aliases=("model.layers.7.mlp.experts.down_proj",))
    assert find_conversion(mixtral, absent, ConversionCache()) is None
    assert live(torch, mixtral, absent.name) is None


def test_an_alias_is_made_where_the_name_is_not(torch, mixtral):
    target = "model.layers.0.mlp.gate.weight"
    tensor = find_conversion(mixtral, Weight("router", aliases=(target,)), ConversionCache())
    assert tensor is not None
    assert tensor.spec.name == "router"
    assert described(tensor) == live(torch, mixtral, target)


def test_a_model_type_without_conversions_needs_no_mergekit(tmp_path, monkeypatch):
    monkeypatch.setattr(converted, "_convert", None)
    folder = make_checkpoint(tmp_path / "m", random_tensors({"w": (2, 2)}), config={"model_type": "no-such-model"})
    with Checkpoint(folder) as checkpoint:
        assert find_conversion(checkpoint, Weight("x"), ConversionCache()) is None
    (folder / "config.json").write_text(json.dumps({"a": 1}))
    with Checkpoint(folder) as checkpoint:
        assert find_conversion(checkpoint, Weight("x"), ConversionCache()) is None


def test_transformers_is_loaded_only_where_it_may_know_a_conversion(tmp_path):
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from wsmerge.engine.architecture import Weight\n"
        "from wsmerge.engine.checkpoint import Checkpoint\n"
        "from wsmerge.engine.inputs.converted import ConversionCache, find_conversion\n"
        "with Checkpoint(Path(sys.argv[1])) as checkpoint:\n"
        "    assert find_conversion(checkpoint, Weight('x'), ConversionCache()) is None\n"
        "print(*sys.modules)\n"
    )
    folder = make_checkpoint(tmp_path / "m", random_tensors({"w": (2, 2)}), config={"model_type": "llama"})
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "mergekit"} & set(done.stdout.split())


def test_transformers_names_each_model_type_with_conversions_in_one_file(torch):  # noqa: ARG001 - loads transformers first
    from transformers import conversion_mapping  # noqa: PLC0415 - slow to load

    source = Path(conversion_mapping.__file__).read_text(encoding="utf-8")
    types = conversion_mapping._build_checkpoint_conversion_mapping()
    assert "mixtral" in types
    assert [name for name in types if f'"{name}"' not in source] == []


@pytest.fixture(scope="module")
def odd_type(torch):  # noqa: ARG001 - loads transformers first
    """Conversions of a made-up model type, of the kinds that are more than moving rows, and of some that are not."""
    from transformers import core_model_loading as loading  # noqa: PLC0415 - slow to load
    from transformers.conversion_mapping import register_checkpoint_conversion_mapping  # noqa: PLC0415 - slow to load

    class AddOne(loading.ConversionOps):
        def convert(self, input_dict, source_patterns, target_patterns, **_more):  # noqa: ARG002 - the interface
            return {target_patterns[0]: next(iter(input_dict.values()))[0] + 1}

    class Absolute(loading.ConversionOps):
        def convert(self, input_dict, source_patterns, target_patterns, **_more):  # noqa: ARG002 - the interface
            return {target_patterns[0]: next(iter(input_dict.values()))[0].abs()}

    class Roll(loading.ConversionOps):
        def convert(self, input_dict, source_patterns, target_patterns, **_more):  # noqa: ARG002 - the interface
            return {target_patterns[0]: next(iter(input_dict.values()))[0].roll(1, dims=-1)}

    mapping: list[Any] = [
        loading.WeightConverter("old.square", "new.square", [loading.Transpose(0, 1)]),
        loading.WeightConverter("old.oblong", "new.oblong", [loading.Transpose(0, 1)]),
        loading.WeightConverter("old.norm", "new.norm", [AddOne()]),
        loading.WeightConverter("old.sizes", "new.sizes", [Absolute()]),
        loading.WeightConverter("old.rolled", "new.rolled", [Roll()]),
        loading.WeightConverter(["old.left", "old.right"], "new.wide", [loading.Concatenate(dim=1)]),
        loading.WeightConverter(["old.upper", "old.lower"], "new.tall", [loading.Concatenate(dim=0)]),
        loading.WeightConverter("old.qkv", ["new.q", "new.k"], [loading.Chunk(dim=0)]),
        loading.WeightConverter("old.pairs", "new.pairs", [loading.Interleave(dim=0)]),
        loading.WeightConverter("old.columns", "new.columns", [loading.Interleave(dim=1)]),
        loading.WeightRenaming("old.scalar", "new.scalar"),
        loading.WeightRenaming("old.flat", "new.flat"),
    ]
    register_checkpoint_conversion_mapping("wsmerge-test", mapping, overwrite=True)
    return "wsmerge-test"


SHAPES = {
    "old.square": (4, 4),
    "old.oblong": (3, 4),
    "old.norm": (6,),
    "old.sizes": (5, 2),
    "old.rolled": (3, 5),
    "old.left": (4, 2),
    "old.right": (4, 3),
    "old.upper": (2, 5),
    "old.lower": (3, 5),
    "old.qkv": (6, 5),
    "old.pairs": (6, 4),
    "old.columns": (3, 6),
    "old.flat": (7,),
}
BY_RANGE = {"new.tall", "new.q", "new.k", "new.pairs", "new.flat"}
AS_WHOLE = {"new.square", "new.oblong", "new.norm", "new.sizes", "new.rolled", "new.wide", "new.columns", "new.scalar"}


@pytest.fixture
def odd(tmp_path, odd_type):
    scalar = {"old.scalar": (F32, np.array(1.5, np.float32))}
    tensors = random_tensors(SHAPES, scale=1) | scalar
    folder = make_checkpoint(tmp_path / "odd", tensors, config={"model_type": odd_type})
    with Checkpoint(folder) as checkpoint:
        yield checkpoint


@pytest.mark.parametrize("target", sorted(BY_RANGE | AS_WHOLE))
def test_rows_are_told_from_what_has_to_be_made(torch, odd, target):
    tensor = found(odd, target)
    assert tensor.is_read_by_range is (target in BY_RANGE)
    assert described(tensor) == live(torch, odd, target)


def test_what_has_to_be_made_is_made_once_for_all_threads(odd, monkeypatch):
    made, entered, make = [], threading.Barrier(4), converted._make

    def counted(checkpoint, sources, target):
        made.append(target)
        return make(checkpoint, sources, target)

    monkeypatch.setattr(converted, "_make", counted)
    tensor = found(odd, "new.oblong")
    assert made == []  # its dtype and shape are known without

    def read(_number):
        entered.wait()
        return whole(tensor)

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(read, range(4)))) == 1
    assert made == ["new.oblong"]


def test_only_the_last_two_are_held_until_the_cache_is_closed(odd, monkeypatch):
    made, make = [], converted._make

    def counted(checkpoint, sources, target):
        made.append(target)
        return make(checkpoint, sources, target)

    monkeypatch.setattr(converted, "_make", counted)
    with ConversionCache() as cache:
        square, oblong, wide = (found(odd, f"new.{name}", cache) for name in ("square", "oblong", "wide"))
        for tensor in (square, oblong, square, wide, square):
            whole(tensor)
        assert made == ["new.square", "new.oblong", "new.wide"]
        whole(oblong)
        assert made[3:] == ["new.oblong"]
    whole(square)
    assert made[4:] == ["new.square"]


def test_each_checkpoint_has_its_own_two(tmp_path, odd_type):
    config, cache = {"model_type": odd_type}, ConversionCache()
    folders = [
        make_checkpoint(tmp_path / f"m{seed}", random_tensors(SHAPES, seed=seed), config=config) for seed in range(3)
    ]
    models = [Checkpoint(folder) for folder in folders]
    tensors = [found(model, "new.square", cache) for model in models]
    values = [whole(tensor) for tensor in tensors]
    assert len(set(values)) == 3
    assert all(cache.held(model, "new.square") is not None for model in models)
    for model in models:
        model.close()
    assert [whole(tensor) for tensor in tensors] == values  # from the cache: the files are closed


def test_shapes_that_do_not_fit_are_refused(tmp_path, odd_type):
    shapes = {"old.left": (4, 2), "old.right": (3, 3)}
    folder = make_checkpoint(tmp_path / "m", random_tensors(shapes), config={"model_type": odd_type})
    with Checkpoint(folder) as checkpoint, pytest.raises(CheckpointError, match="cannot make it") as caught:
        found(checkpoint, "new.wide")
    assert "new.wide" in str(caught.value)
    assert "save it again" in str(caught.value)


def test_pieces_of_a_row_map():
    rows = RowMap(starts=(0, 10, 30), sources=("a", "b", "a"), firsts=(5, 0, 100))
    assert list(rows.pieces(0, 40)) == [
        ("a", 5, slice(0, 10)),
        ("b", 0, slice(10, 30)),
        ("a", 100, slice(30, 40)),
    ]
    assert list(rows.pieces(12, 3)) == [("b", 2, slice(0, 3))]
    assert list(rows.pieces(9, 2)) == [("a", 14, slice(0, 1)), ("b", 0, slice(1, 2))]
    assert list(rows.pieces(40, 0)) == []
    assert np.cumsum([piece[2].stop - piece[2].start for piece in rows.pieces(3, 30)])[-1] == 30
