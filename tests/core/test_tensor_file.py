"""safetensors files: round trips, agreement with the safetensors package, and what broken files do."""

import json
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.builders import write_tensor_file
from wsmerge.core.dtypes import DTYPES, F32, DType, dtype_named
from wsmerge.core.tensor_file import TensorFile, encode_header
from wsmerge.core.tensors import TensorSpec
from wsmerge.errors import TensorFileError

IN_TMP = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)

tensor_sets = st.dictionaries(
    st.text(st.characters(blacklist_categories=["Cs"]), max_size=8).filter(lambda name: name != "__metadata__"),
    st.tuples(
        st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 4), max_size=3).map(tuple), st.integers(0, 2**32)
    ),
    max_size=5,
)


def filled(drawn) -> dict[str, tuple[DType, NDArray[Any]]]:
    tensors = {}
    for name, (dtype_name, shape, seed) in drawn.items():
        dtype = DTYPES[dtype_name]
        count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        data = np.random.default_rng(seed).integers(0, 2, count, dtype=np.uint8)
        tensors[name] = (dtype, np.frombuffer(data.tobytes(), dtype.storage).reshape(shape))
    return tensors


def write_raw(path, header, data=b"") -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@IN_TMP
@given(tensor_sets)
def test_round_trip(tmp_path, drawn):
    tensors = filled(drawn)
    write_tensor_file(tmp_path / "t.safetensors", tensors)
    with TensorFile(tmp_path / "t.safetensors") as file:
        assert file.metadata == {"format": "pt"}
        # Tensors without elements share their neighbours' offset, so only the others have an order.
        assert [name for name in file.specs if file.specs[name].nbytes] == [
            name for name, (_, values) in tensors.items() if values.size
        ]
        for name, (dtype, values) in tensors.items():
            assert file.specs[name] == TensorSpec(name, dtype, values.shape)
            assert file.read(name) == values.tobytes()


@IN_TMP
@given(st.integers(1, 300), st.data())
def test_any_byte_range(tmp_path, count, data):
    values = np.arange(count, dtype=np.float32)
    write_tensor_file(tmp_path / "t.safetensors", {"a": (F32, values[:3]), "b": (F32, values)})
    start = data.draw(st.integers(0, values.nbytes))
    length = data.draw(st.integers(0, values.nbytes - start))
    out = bytearray(length)
    with TensorFile(tmp_path / "t.safetensors") as file:
        file.read_into("b", start, memoryview(out))
    assert out == values.tobytes()[start : start + length]


def test_the_safetensors_package_and_we_read_each_other(tmp_path):
    values: dict[str, NDArray[Any]] = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.arange(3, dtype=np.int64),
    }
    write_tensor_file(tmp_path / "ours", {name: (dtype_named(str(v.dtype)), v) for name, v in values.items()})
    read = safetensors.numpy.load_file(tmp_path / "ours")
    assert {name: v.tolist() for name, v in read.items()} == {name: v.tolist() for name, v in values.items()}
    safetensors.numpy.save_file(values, tmp_path / "theirs")
    with TensorFile(tmp_path / "theirs") as file:
        assert {name: bytes(file.read(name)) for name in file.specs} == {
            name: v.tobytes() for name, v in values.items()
        }


def test_the_header_is_padded_to_the_page():
    header = encode_header([TensorSpec("a", F32, (2,))], {"b": "2", "a": "1"}, align_bytes=4096)
    assert len(header) == 4096
    assert int.from_bytes(header[:8], "little") == 4088
    assert list(json.loads(header[8:])["__metadata__"]) == ["b", "a"]


def opened_or_refused(path) -> bool:
    """Whether the file opens; anything but `TensorFileError` on the way is a failure of the test."""
    try:
        with TensorFile(path) as file:
            for name in file.specs:
                file.read(name)
    except TensorFileError:
        return False
    return True


SMALL = {"model.a": (F32, np.arange(6, dtype=np.float32).reshape(2, 3)), "b": (F32, np.ones(2, np.float32))}


@IN_TMP
@given(st.data())
def test_flipped_bytes_are_refused_or_harmless_and_never_crash(tmp_path, data):
    path = tmp_path / "t.safetensors"
    write_tensor_file(path, SMALL)
    content = bytearray(path.read_bytes())
    header_bytes = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, header_bytes - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    if opened_or_refused(path):
        # What we accept, the package accepts: we are not the more lenient of the two.
        safetensors.numpy.load_file(path)


@IN_TMP
@given(st.integers(0, 400))
def test_a_truncated_file_is_refused(tmp_path, kept):
    path = tmp_path / "t.safetensors"
    write_tensor_file(path, SMALL)
    content = path.read_bytes()
    path.write_bytes(content[: min(kept, len(content) - 1)])
    assert not opened_or_refused(path)


@IN_TMP
@given(st.binary(max_size=64))
def test_garbage_is_refused(tmp_path, content):
    path = tmp_path / "t.safetensors"
    path.write_bytes(content)
    if opened_or_refused(path):
        safetensors.numpy.load_file(path)


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": ENTRY, "b": ENTRY | {"data_offsets": [12, 20]}}, b"x" * 20, "b: starts at byte 12"),
        ({"a": ENTRY, "b": ENTRY | {"data_offsets": [4, 12]}}, b"x" * 12, "b: starts at byte 4"),
        ({"a": ENTRY}, b"x" * 12, "longer than its header says"),
        ({"a": ENTRY}, b"x" * 4, "truncated"),
        ({"a": ENTRY | {"shape": [3]}}, b"x" * 8, "takes 12 bytes, not 8"),
        ({"a": ENTRY | {"dtype": "F12"}}, b"x" * 8, "unknown dtype 'F12'"),
        ({"a": ENTRY | {"dtype": ["F32"]}}, b"x" * 8, "unknown dtype"),
        ({"a": ENTRY | {"shape": [True, 2]}}, b"x" * 8, "natural numbers"),
        ({"a": ENTRY | {"shape": [-2]}}, b"x" * 8, "natural numbers"),
        ({"a": ENTRY | {"shape": [1] * 64 + [2]}}, b"x" * 8, "that an array can have"),
        ({"a": ENTRY | {"shape": [0, 1 << 62, 1 << 62], "data_offsets": [0, 0]}}, b"", "that an array can have"),
        ({"a": ENTRY | {"data_offsets": [0, 1 << 63]}}, b"", "of 63 bits"),
        ({"a": ENTRY | {"shape": 2}}, b"x" * 8, "a"),
        ({"a": 3}, b"", "lacks dtype"),
        ({"__metadata__": {"a": 1}}, b"", "metadata"),
        ({"__metadata__": 3}, b"", "metadata"),
        ([1], b"", "no JSON object"),
        (b"  {}", b"", "no JSON object"),
        ({"\ud800": ENTRY}, b"x" * 8, "half a surrogate pair"),
        (b'{"a": 1, "a": 1}', b"", "occurs twice"),
        (b"{", b"", "not valid JSON"),
        (b"\xff\xfe", b"", "not valid JSON"),
        (b"[" * 100_000, b"", "not valid JSON"),
    ],
)
def test_malformed_headers_are_named(tmp_path, header, data, message):
    path = tmp_path / "t.safetensors"
    write_raw(path, header, data)
    with pytest.raises(TensorFileError) as caught:
        TensorFile(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_all_problems_of_a_header_at_once(tmp_path):
    write_raw(tmp_path / "t", {"a": 3, "b": ENTRY | {"dtype": "F12"}, "c": ENTRY | {"shape": [-1]}})
    with pytest.raises(TensorFileError) as caught:
        TensorFile(tmp_path / "t")
    assert [line[0] for line in caught.value.details] == ["a", "b", "c"]


def test_a_name_given_twice_among_many_is_found_at_once(tmp_path):
    # Looking for each name among all of them would take hours.
    names = ",".join(f'"{number}":0' for number in range(300_000))
    write_raw(tmp_path / "t", f'{{{names},"z":0,"z":0}}'.encode())
    with pytest.raises(TensorFileError, match="'z' occurs twice"):
        TensorFile(tmp_path / "t")


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(TensorFileError, match="cannot be opened"):
        TensorFile(tmp_path / "none")
    assert not opened_or_refused(tmp_path)


def test_a_file_shortened_while_open(tmp_path):
    path = tmp_path / "t.safetensors"
    write_tensor_file(path, SMALL)
    with TensorFile(path) as file:
        path.write_bytes(path.read_bytes()[:-4])
        with pytest.raises(TensorFileError, match="shortened meanwhile"):
            file.read("b")
