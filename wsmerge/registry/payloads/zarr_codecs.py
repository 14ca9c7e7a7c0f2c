"""How the chunks of a zarr payload are compressed.

Measured on deltas of a real 135M model (chunks of 1 MiB, one core; ratio, MB/s of writing and of reading):

    codec                     dense float32       bf16 differences    top 20 % of dense    LoRA factors
    zstd 1                    1.08   970  1370    5.29   420   920    4.21  560  1450      1.08   995  1360
    blosc zstd 3 bitshuffle   1.15   460  2180    5.95   290  1400    2.48  120   820      1.14   570  2910
    pcodec 8                  1.20   190  2350    7.13   310  2340    5.69  340  1970      1.21   210  2370

Which of the first two is smaller depends on the zeros in the numbers and not on the kind of direction, so `auto` packs a
sample of each array with both. pcodec is best everywhere, but a reader needs a further package: it is never chosen unasked.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from wsmerge.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zarr.abc.codec import ArrayBytesCodec, BytesBytesCodec

__all__ = ["CODECS", "Codec", "Packing", "check_codec", "packing_of", "quiet_codecs"]

Codec = Literal["auto", "zstd", "blosc", "pcodec", "none"]
CODECS: Final[tuple[Codec, ...]] = get_args(Codec)
_ZSTD_LEVEL: Final = 1
_BLOSC_LEVEL: Final = 3
_PCODEC_LEVEL: Final = 8


class Packing(NamedTuple):
    """What makes a chunk's elements bytes, and what packs the bytes; as `zarr.create_array` takes them."""

    serializer: ArrayBytesCodec | Literal["auto"]
    compressors: tuple[BytesBytesCodec, ...]


def check_codec(name: str) -> Codec:
    """`name`, if chunks can be packed with the codec of that name.

    Raises:
        UsageError: there is none.
        MissingDependencyError: its package is not installed.
    """
    if name == "pcodec" and find_spec("pcodec") is None:
        raise MissingDependencyError("the codec pcodec is not installed", hint="pip install pcodec")
    for known in CODECS:
        if name == known:
            return known
    raise UsageError(f"there is no codec {name!r}", hint=f"one of {', '.join(CODECS)}")


def packing_of(codec: Codec, sample: NDArray[Any]) -> Packing:
    """How to pack the chunks of an array of which `sample` is a part, each with its CRC32C."""
    from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec  # noqa: PLC0415 - zarr is slow to import

    chosen = _smallest(sample) if codec == "auto" else codec
    checksum = Crc32cCodec()
    if chosen == "zstd":
        return Packing("auto", (ZstdCodec(level=_ZSTD_LEVEL), checksum))
    if chosen == "blosc":
        width = sample.dtype.itemsize
        blosc = BloscCodec(cname="zstd", clevel=_BLOSC_LEVEL, shuffle="bitshuffle", typesize=width)
        return Packing("auto", (blosc, checksum))
    if chosen == "pcodec":
        from zarr.codecs.numcodecs import PCodec  # noqa: PLC0415 - as above

        with quiet_codecs():
            return Packing(PCodec(level=_PCODEC_LEVEL), (checksum,))
    return Packing("auto", (checksum,))


@contextmanager
def quiet_codecs() -> Iterator[None]:
    """Without zarr's warning, at every use, that a codec is in no specification: whoever asks for pcodec knows."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Numcodecs codecs are not in the Zarr version 3 specification")
        yield


def _smallest(sample: NDArray[Any]) -> Codec:
    from numcodecs import Blosc, Zstd  # type: ignore[import-untyped]  # noqa: PLC0415 - no types; slow, as zarr itself

    held = np.ascontiguousarray(sample)
    packers: dict[Codec, Callable[[NDArray[Any]], bytes]] = {
        "zstd": Zstd(_ZSTD_LEVEL).encode,
        "blosc": Blosc("zstd", _BLOSC_LEVEL, Blosc.BITSHUFFLE).encode,
    }
    return min(packers, key=lambda name: len(packers[name](held)))
