"""Ranges of files read in one call: what reading them one by one gives, and the same errors."""

import numpy as np
import pytest

from wsmerge.core.ranges import LocalFile
from wsmerge.engine import gather as gather_module
from wsmerge.engine.gather import gather
from wsmerge.engine.kernels import kernels_name
from wsmerge.errors import TensorFileError


class Elsewhere:
    """A file that is not on this machine."""

    def __init__(self, data):
        self.data, self.label, self.size = data, "elsewhere", len(data)

    def read_into(self, start, out):
        out[:] = self.data[start : start + len(out)]

    def close(self):
        pass


@pytest.fixture
def contents():
    generator = np.random.default_rng(0)
    return [generator.bytes(size) for size in (5000, 300, 70_000)]


@pytest.fixture
def files(tmp_path, contents):
    opened = []
    for number, data in enumerate(contents):
        (tmp_path / f"{number}").write_bytes(data)
        opened.append(LocalFile(tmp_path / f"{number}"))
    yield opened
    for file in opened:
        file.close()


def ranges(contents, count=200):
    generator = np.random.default_rng(1)
    which = generator.integers(0, len(contents), count)
    starts = np.array([generator.integers(0, len(contents[file])) for file in which])
    nbytes = np.array(
        [generator.integers(0, len(contents[file]) - start + 1) for file, start in zip(which, starts, strict=True)]
    )
    return which, starts, nbytes


def expected(contents, which, starts, nbytes):
    wanted = zip(which.tolist(), starts.tolist(), nbytes.tolist(), strict=True)
    return b"".join(contents[file][start : start + count] for file, start, count in wanted)


@pytest.mark.parametrize("way", ["compiled", "one by one", "one elsewhere"])
def test_ranges_of_several_files(monkeypatch, files, contents, way):
    if way == "one by one":
        monkeypatch.setattr(gather_module, "_read_ranges", lambda: None)
    else:
        assert (gather_module._read_ranges() is not None) == (kernels_name() == "numba")
    given = [*files[:2], Elsewhere(contents[2])] if way == "one elsewhere" else files
    which, starts, nbytes = ranges(contents)
    out = np.empty(nbytes.sum(), np.uint8)
    gather(given, which, starts, nbytes, out)
    assert out.tobytes() == expected(contents, which, starts, nbytes)


def test_nothing_is_read_where_nothing_is_wanted(files):
    none = np.zeros(0, np.int64)
    gather(files, none, none, none, np.empty(0, np.uint8))


def test_a_file_that_ends_before_its_ranges_do_is_named(files, contents, tmp_path):
    which, starts = np.array([0, 1, 2, 1]), np.array([10, 100, 20, 0])
    out = np.empty(1200, np.uint8)
    (tmp_path / "1").write_bytes(contents[1][:150])
    with pytest.raises(TensorFileError, match="shortened") as raised:
        gather(files, which, starts, np.array([500, 100, 500, 100]), out)
    assert raised.value.where == str(tmp_path / "1")
    assert out[:550].tobytes() == contents[0][10:510] + contents[1][100:150]


def test_a_closed_file_is_named(files):
    files[0].close()
    with pytest.raises(TensorFileError, match="cannot be read"):
        gather(files, np.zeros(1, np.int64), np.zeros(1, np.int64), np.ones(1, np.int64), np.empty(1, np.uint8))


@pytest.mark.parametrize("size", [99, 101])
def test_a_buffer_of_another_size_is_refused(files, size):
    with pytest.raises(ValueError, match="do not fill"):
        gather(files, np.zeros(1, np.int64), np.zeros(1, np.int64), np.full(1, 100), np.empty(size, np.uint8))
