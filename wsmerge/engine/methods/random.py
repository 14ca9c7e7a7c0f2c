"""Random numbers by counter: element i of a stream is computed from i, so that threads, blocks and shards do not matter.

    key    = the first 8 bytes, little-endian, of SHA-256 of seed, tensor name and position of the input
    word_j = mix(key + (j + 1) * 0x9E3779B97F4A7C15)  modulo 2**64
    bits_i = the lower 32 bits of word_j for i = 2 j, the upper 32 for i = 2 j + 1
    kept_i = bits_i < round(p * 2**32)                with probability p

The words are those of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014),
started at `key`; `mix` is variant 13 of David Stafford's mixing functions. Two elements share a word, since making one
takes as long as the merging of an element.
"""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["FIRST_FACTOR", "GOLDEN", "SECOND_FACTOR", "keep_limit", "keep_limits", "stream_key"]

GOLDEN: Final = 0x9E3779B97F4A7C15
FIRST_FACTOR: Final = 0xBF58476D1CE4E5B9
SECOND_FACTOR: Final = 0x94D049BB133111EB

_STEPS: Final = 1 << 32


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
    """The number, of 32 bits, that a draw stays below with this probability (to 2**-32)."""
    return min(max(round(probability * _STEPS), 0), _STEPS - 1)


def keep_limits(probabilities: NDArray[np.float64]) -> NDArray[np.uint32]:
    """`keep_limit` of each probability."""
    return np.clip(np.rint(probabilities * _STEPS), 0, _STEPS - 1).astype(np.uint32)
