"""safetensors files: a strict reader by header and byte range, and the header of a file to be written.

    8 bytes          length n of the header, little-endian
    n bytes          JSON: {name: {dtype, shape, data_offsets: [begin, end)}, "__metadata__": {str: str}}
    the rest         the tensors, back to back, in the order of their offsets

Nothing is mapped or kept in memory but the header. The reader refuses what the format forbids: holes, overlaps,
trailing bytes, duplicate names, a truncated file.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from wsmerge.core.closing import Closing
from wsmerge.core.dtypes import DTYPES
from wsmerge.core.files import refuse_lfs_pointer
from wsmerge.core.opening import parse_json
from wsmerge.core.ranges import LocalFile, RangeFile, read_range
from wsmerge.core.tensors import TensorSpec, is_shape
from wsmerge.errors import Problems, TensorFileError

__all__ = ["PAGE_BYTES", "TensorFile", "encode_header"]

PAGE_BYTES: Final = 4096
_LENGTH_BYTES: Final = 8
_START_BYTES: Final = 64  # tells what else a file is
_MAX_HEADER_BYTES: Final = 100_000_000
_METADATA_KEY: Final = "__metadata__"


class TensorFile(Closing):
    """One safetensors file, open for reading; a context manager. Reads are positional, so threads may share it.

    Args:
        file: a path, or a file that lies elsewhere, which is closed with this one.

    Raises:
        TensorFileError: the file is missing, truncated or not well-formed; all problems of its header at once.
    """

    def __init__(self, file: Path | RangeFile) -> None:
        self.file = LocalFile(file) if isinstance(file, Path) else file
        try:
            header, self._data_start = _read_header(self.file)
            where = self.file.label
            self.metadata: Mapping[str, str] = _metadata(header.pop(_METADATA_KEY, None), where)
            self.specs, self._begins = _check_entries(header, self.file.size - self._data_start, where)
        except BaseException:
            self.file.close()
            raise

    @property
    def label(self) -> str:
        """The file's path or address."""
        return self.file.label

    @property
    def path(self) -> Path:
        """Where the file lies on this machine's disks.

        Raises:
            TensorFileError: it lies elsewhere.
        """
        if isinstance(self.file, LocalFile):
            return self.file.path
        raise TensorFileError("is not on this machine", where=self.label)

    def offset(self, name: str) -> int:
        """Byte of the file at which tensor `name` starts."""
        return self._data_start + self._begins[name]

    def place(self, name: str) -> tuple[RangeFile, int]:
        """The file that tensor `name` lies in as it is, and the byte that it starts at."""
        return self.file, self.offset(name)

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        """Fill `out` with the bytes of tensor `name` from its byte `start` on."""
        self.file.read_into(self._data_start + self._begins[name] + start, out)

    def read(self, name: str) -> bytearray:
        """All bytes of tensor `name`."""
        data = bytearray(self.specs[name].nbytes)
        self.read_into(name, 0, memoryview(data))
        return data

    def close(self) -> None:
        """Close the file; reading afterwards is an error."""
        self.file.close()


def encode_header(
    specs: Sequence[TensorSpec], metadata: Mapping[str, str] | None = None, *, align_bytes: int = 8
) -> bytes:
    """The length and header of a file that holds `specs` back to back in this order.

    The header is padded with spaces so that the data starts at a multiple of `align_bytes`. More than one key in
    `metadata` is fine here: unlike the safetensors package, the order is the given one, so equal inputs give equal bytes.
    """
    header: dict[str, Any] = {_METADATA_KEY: dict(metadata)} if metadata else {}
    begin = 0
    for spec in specs:
        header[spec.name] = {
            "dtype": spec.dtype.name,
            "shape": list(spec.shape),
            "data_offsets": [begin, begin + spec.nbytes],
        }
        begin += spec.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    padding = -(_LENGTH_BYTES + len(text)) % align_bytes
    return (len(text) + padding).to_bytes(_LENGTH_BYTES, "little") + text + b" " * padding


def _read_header(file: RangeFile) -> tuple[dict[str, Any], int]:
    path, size = file.label, file.size
    start = read_range(file, 0, min(size, _START_BYTES))
    refuse_lfs_pointer(start, path, TensorFileError)
    length = int.from_bytes(start[:_LENGTH_BYTES], "little")
    if size < _LENGTH_BYTES or length > _MAX_HEADER_BYTES or _LENGTH_BYTES + length > size:
        raise TensorFileError(
            f"not a whole safetensors file: {size} bytes, and its header claims {length}",
            where=path,
            hint="download or write the file again",
        )
    text = read_range(file, _LENGTH_BYTES, length)
    try:
        header = parse_json(text, object_pairs_hook=_no_duplicates)
    except ValueError as error:
        raise TensorFileError(f"its header is not valid JSON: {error}", where=path) from error
    if not isinstance(header, dict) or not text.startswith(b"{"):
        raise TensorFileError("its header is no JSON object", where=path)
    return header, _LENGTH_BYTES + length


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"{twice!r} occurs twice")
    return entries


def _metadata(value: Any, path: str) -> dict[str, str]:  # noqa: ANN401 - parsed JSON
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise TensorFileError(f"its {_METADATA_KEY} does not map text to text", where=path)
    return value


def _check_entries(
    header: Mapping[str, Any], data_bytes: int, path: str
) -> tuple[dict[str, TensorSpec], dict[str, int]]:
    """Specs and begins in the order of the data, which must be covered without holes or overlaps."""
    problems = Problems()
    entries = [entry for name, value in header.items() if (entry := _entry(name, value, problems))]
    problems.raise_if_any(TensorFileError, "its header is not well-formed", where=path)
    entries.sort(key=lambda entry: entry[1:])
    covered = 0
    for spec, begin, end in entries:
        if begin != covered:
            problems.add(f"{spec.name}: starts at byte {begin}, and the tensor before it ends at {covered}")
        if end - begin != spec.nbytes:
            problems.add(
                f"{spec.name}: {spec.dtype.name} {list(spec.shape)} takes {spec.nbytes} bytes, not {end - begin}"
            )
        covered = end
    if not problems and covered != data_bytes:
        state = "truncated" if data_bytes < covered else "longer than its header says"
        problems.add(f"the file is {state}: {data_bytes} bytes of data, {covered} expected")
    problems.raise_if_any(
        TensorFileError, "not a whole safetensors file", where=path, hint="download or write the file again"
    )
    return {spec.name: spec for spec, _, _ in entries}, {spec.name: begin for spec, begin, _ in entries}


def _entry(name: str, value: Any, problems: Problems) -> tuple[TensorSpec, int, int] | None:  # noqa: ANN401 - parsed JSON
    try:
        dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
    except (KeyError, TypeError, ValueError):
        problems.add(f"{name}: lacks dtype, shape or data_offsets")
        return None
    if not isinstance(dtype, str) or dtype not in DTYPES:
        problems.add(f"{name}: unknown dtype {dtype!r}")
    elif not name.isascii() and any("\ud800" <= letter <= "\udfff" for letter in name):
        problems.add(f"{name!r}: half a surrogate pair is no name")
    elif not is_shape(shape):
        problems.add(f"{name}: its shape {shape} is no list of natural numbers that an array can have")
    elif not _naturals((begin, end)):
        problems.add(f"{name}: its offsets {[begin, end]} are not natural numbers of 63 bits")
    else:
        return TensorSpec(name, DTYPES[dtype], tuple(shape)), begin, end
    return None


def _naturals(values: Iterable[Any]) -> bool:
    # A bool is no number here, and what takes more than 63 bits is no length of anything.
    return all(type(value) is int and 0 <= value < 1 << 63 for value in values)
