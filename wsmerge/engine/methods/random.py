"""Random numbers by counter: element i of a stream is computed from i, so that threads, blocks and shards do not matter.

    key    = the first 8 bytes, little-endian, of SHA-256 of seed, tensor name and position of the input
    bits_i = mix(key + (i + 1) * 0x9E3779B97F4A7C15)  modulo 2**64
    kept_i = (bits_i >> 11) < ceil(p * 2**53)          with probability p

This is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014), started at `key`
and asked for its output number i; `mix` is variant 13 of David Stafford's mixing functions.
"""

from __future__ import annotations

import hashlib
import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["FIRST_FACTOR", "GOLDEN", "SECOND_FACTOR", "keep_limit", "keep_limits", "stream_key"]

GOLDEN: Final = 0x9E3779B97F4A7C15
FIRST_FACTOR: Final = 0xBF58476D1CE4E5B9
SECOND_FACTOR: Final = 0x94D049BB133111EB

_STEPS: Final = 1 << 53


def stream_key(seed: int, name: str, position: int) -> int:
    """The key of the stream for one input of one output tensor.

    Args:
        seed: the recipe's.
        name: name of the output tensor.
        position: of the input among those that are not the base.
    """
    # Each part ends with a byte that no other part holds, so that no two triples give the same text.
    text = f"{seed}\n{position}\n{name}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little")


def keep_limit(probability: float) -> int:
    """The number that the upper 53 bits of a draw stay below with this probability."""
    return min(max(math.ceil(probability * _STEPS), 0), _STEPS)


def keep_limits(probabilities: NDArray[np.float64]) -> NDArray[np.uint64]:
    """`keep_limit` of each probability."""
    return np.clip(np.ceil(probabilities * _STEPS), 0, _STEPS).astype(np.uint64)
