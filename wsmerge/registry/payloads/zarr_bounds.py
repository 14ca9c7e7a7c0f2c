"""Bounds on what the chunks of a stranger's zarr array unpack to: 50 KB of zstd can declare 64 GB.

Before each compressor of an array stands, as a codec of its own, a check of how large its bytes unpack: by what their
header declares, or by unpacking them piece by piece where no header does. What cannot be checked is refused.

This module imports zarr, so it is itself imported only where a zarr payload is read.
"""

from __future__ import annotations

import asyncio
import bz2
import lzma
import math
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import ShardingCodec
from zarr.codecs.numcodecs import PCodec
from zarr.registry import register_codec

if TYPE_CHECKING:
    from zarr.abc.codec import Codec
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, NDBuffer

__all__ = ["bounded_codecs", "chunks_within"]

Json = dict[str, Any]

_BOUND: Final = "wsmerge.bound"
_BOUNDED_PCODEC: Final = "wsmerge.pcodec"
_PCODEC: Final = "numcodecs.pcodec"
_DTYPE_SETTINGS: Final = frozenset({"dtype", "astype", "encode_dtype", "decode_dtype"})
_MOST_ITEM_BYTES: Final = 8
_MOST_STREAMS: Final = 64
_SHARDS: Final = "sharding_indexed"
_STEP: Final = 1 << 20
_SLACK_BYTES: Final = 1 << 16
_LZMA_MEMORY: Final = 256 << 20
_BLOSC_HEADER_BYTES: Final = 16
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
# What these give back is as long as what they take, or a fixed multiple of it.
_HARMLESS: Final = frozenset(
    {"bytes", "transpose", "crc32c", "endian"}
    | {f"numcodecs.{name}" for name in ("crc32", "crc32c", "adler32", "fletcher32", "jenkins_lookup3", "shuffle")}
    | {f"numcodecs.{name}" for name in ("delta", "bitround", "fixedscaleoffset", "quantize", "packbits", "astype")}
)


def bounded_codecs(codecs: Any) -> list[Any]:  # noqa: ANN401 - parsed JSON
    """The codecs of an array's metadata, inside its shards too, with a check for each that unpacks.

    Raises:
        ValueError: they are no list of codecs, or one of them cannot be checked.
    """
    if not isinstance(codecs, list):
        raise ValueError("its codecs are no list")  # noqa: TRY004 - told with what zarr refuses, as a ValueError
    bounded: list[Any] = []
    for codec in codecs:
        name, settings = _name_and_settings(codec)
        if name == _SHARDS:
            bounded.append(
                {"name": name, "configuration": settings | {"codecs": bounded_codecs(settings.get("codecs"))}}
            )
        elif name == _PCODEC:
            bounded.append({"name": _BOUNDED_PCODEC, "configuration": settings})
        elif name in _HARMLESS:
            _check_dtypes(name, settings)
            bounded.append(codec)
        elif name in _UNPACKED:
            bounded += [codec, {"name": _BOUND, "configuration": {"codec": name, "settings": settings}}]
        else:
            raise ValueError(f"nobody knows how large what {name} has packed becomes; pack it with zstd or blosc")
    return bounded


def chunks_within(codecs: Iterable[Codec]) -> list[tuple[int, ...]]:
    """The shapes of chunks in shards, and of those in shards within them, by the codecs of an array."""
    shards = [codec for codec in codecs if isinstance(codec, ShardingCodec)]
    return [shape for codec in shards for shape in (codec.chunk_shape, *chunks_within(codec.codecs))]


def _check_dtypes(name: str, settings: Json) -> None:
    """Refuse elements of any size that a filter makes of numbers, such as text of a million letters."""
    for key in _DTYPE_SETTINGS & settings.keys():
        told = settings[key]
        try:
            dtype = np.dtype(told) if isinstance(told, str) else None
        except TypeError:
            dtype = None
        if told is not None and (dtype is None or dtype.kind not in "biuf" or dtype.itemsize > _MOST_ITEM_BYTES):
            raise ValueError(
                f"{key} of {name} is {told!r}, which is no type of numbers of {_MOST_ITEM_BYTES} bytes or less"
            )


def _name_and_settings(codec: Any) -> tuple[str, Json]:  # noqa: ANN401 - parsed JSON
    if isinstance(codec, str):
        return codec, {}
    name = codec.get("name") if isinstance(codec, dict) else None
    settings = (codec.get("configuration") or {}) if isinstance(codec, dict) else None
    if not isinstance(name, str) or not isinstance(settings, dict):
        raise ValueError(f"{codec!r} is no codec")  # noqa: TRY004 - as above
    return name, settings


def _zstd(data: bytes, _limit: int, _settings: Json) -> int:
    if data[:4] != _ZSTD_MAGIC or len(data) < 5:
        raise ValueError("no frame of zstd")
    described = data[4]
    single = described >> 5 & 1
    at = 5 + (1 - single) + (0, 1, 2, 4)[described & 3]
    width = (single, 2, 4, 8)[described >> 6]
    if not width or len(data) < at + width:
        raise ValueError("the frame of zstd does not say how large it becomes")
    return int.from_bytes(data[at : at + width], "little") + (256 if width == 2 else 0)


def _blosc(data: bytes, _limit: int, _settings: Json) -> int:
    # Blosc reads as far as its header says, past the end of what it is given: it then gives foreign memory, or crashes.
    if len(data) < _BLOSC_HEADER_BYTES or int.from_bytes(data[12:16], "little") != len(data):
        raise ValueError("the buffer of blosc is not as long as its header says")
    return int.from_bytes(data[4:8], "little")


def _lz4(data: bytes, _limit: int, _settings: Json) -> int:
    return int.from_bytes(data[:4], "little")


def _streamed(data: bytes, limit: int, make: Callable[[], Any]) -> int:
    """The bytes that all streams in `data` unpack to, or a number past `limit`; a MB is held at a time."""
    total = streams = 0
    while data and total <= limit:
        streams += 1
        if streams > _MOST_STREAMS:  # what is behind a stream is copied, so a million of them would take hours
            raise ValueError(f"more than {_MOST_STREAMS} streams in one chunk")
        unpacker, rest = make(), data
        while not unpacker.eof and total <= limit:
            part = unpacker.decompress(rest, _STEP)
            total += len(part)
            rest = getattr(unpacker, "unconsumed_tail", b"")
            if not (part or rest or unpacker.eof):
                return total  # it is torn, which the codec tells
        data = unpacker.unused_data
    return total


def _gzip(data: bytes, limit: int, _settings: Json) -> int:
    return _streamed(data, limit, lambda: zlib.decompressobj(wbits=31))


def _zlib(data: bytes, limit: int, _settings: Json) -> int:
    return _streamed(data, limit, zlib.decompressobj)


def _bz2(data: bytes, limit: int, _settings: Json) -> int:
    return _streamed(data, limit, bz2.BZ2Decompressor)


def _lzma(data: bytes, limit: int, settings: Json) -> int:
    kind = settings.get("format", lzma.FORMAT_XZ)
    if kind not in (lzma.FORMAT_XZ, lzma.FORMAT_ALONE, lzma.FORMAT_AUTO):
        raise ValueError("raw lzma does not say how much memory it needs")
    return _streamed(data, limit, lambda: lzma.LZMADecompressor(format=kind, memlimit=_LZMA_MEMORY))


_UNPACKED: Final[Mapping[str, Callable[[bytes, int, Json], int]]] = {
    "zstd": _zstd,
    "numcodecs.zstd": _zstd,
    "blosc": _blosc,
    "numcodecs.blosc": _blosc,
    "numcodecs.lz4": _lz4,
    "gzip": _gzip,
    "numcodecs.gzip": _gzip,
    "numcodecs.zlib": _zlib,
    "numcodecs.bz2": _bz2,
    "numcodecs.lzma": _lzma,
}
"""How many bytes something packed becomes."""


@dataclass(frozen=True)
class _Bound(BytesBytesCodec):
    """Lets packed bytes through if they unpack to about a chunk at most."""

    codec: str
    settings: Json
    is_fixed_size = True

    @classmethod
    def from_dict(cls, data: Json) -> Self:
        return cls(**data["configuration"])

    def to_dict(self) -> Json:
        return {"name": _BOUND, "configuration": {"codec": self.codec, "settings": self.settings}}

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        expected = math.prod(chunk_spec.shape) * chunk_spec.dtype.to_native_dtype().itemsize
        limit = 2 * expected + _SLACK_BYTES  # a chunk within another codec's frame
        found = await asyncio.to_thread(_UNPACKED[self.codec], chunk_bytes.to_bytes(), limit, self.settings)
        if found > limit:
            raise ValueError(f"a chunk of {expected:,} bytes unpacks to more than {limit:,}")
        return chunk_bytes

    def compute_encoded_size(self, input_byte_length: int, _chunk_spec: ArraySpec) -> int:
        return input_byte_length


class _BoundedPCodec(PCodec):
    """pcodec that unpacks into the chunk's own room and no further."""

    @classmethod
    def from_dict(cls, data: Json) -> Self:
        return super().from_dict(data | {"name": _PCODEC})

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        out: Any = np.empty(chunk_spec.shape, chunk_spec.dtype.to_native_dtype())
        await asyncio.to_thread(self._codec.decode, chunk_data.to_bytes(), out.reshape(-1))
        return chunk_spec.prototype.nd_buffer.from_ndarray_like(out)


register_codec(_BOUND, _Bound)
register_codec(_BOUNDED_PCODEC, _BoundedPCodec)
