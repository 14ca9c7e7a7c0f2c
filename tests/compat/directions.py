"""The directions that the golden artifacts hold, by a formula, so that what their bytes mean is told a second time.

Every value is a multiple of 1/2048 and below 1/4, so that products of factors are exact in float32.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tests.sources import MemoryDirection
from wsmerge.core.deltas import Delta, DenseDelta, LowRankDelta
from wsmerge.core.tensors import BaseIdentity
from wsmerge.registry import About, DatasetRecord, ParentRecord, PoleRecord

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
NORM = "model.norm.weight"
DOWN = "model.layers.0.mlp.down_proj.weight"
QUERY = "model.layers.0.self_attn.q_proj.weight"
CONVOLVED = "model.layers.1.attn.c_attn.weight"

_ABOUT = About(
    name="golden",
    kind="contrastive",
    version="1.2.3-rc.1",
    description="Writes formally; \N{LATIN SMALL LETTER E WITH ACUTE}, <&>, and a line\nbreak.",
    base_revision="0123456789abcdef0123456789abcdef01234567",
    poles=(
        PoleRecord(pole="plus", source="acme/formal-model", digest="1" * 64, training={"r": 2, "lr": 1e-4}),
        PoleRecord(pole="minus", source="acme/casual-model"),
    ),
    datasets=(DatasetRecord(source="acme/letters", split="train", count=12, sha256="2" * 64),),
    licence="cc-by-4.0",
    parents=(ParentRecord(reference="parent@1.0.0", version_digest="3" * 64, coefficient=-0.5),),
    created="2026-11-25T12:00:00Z",
)


def values(seed: int, *shape: int) -> NDArray[np.float32]:
    """Multiples of 1/2048 between -1/4 and 1/4, float32."""
    numbers = np.arange(np.prod(shape), dtype=np.int64) * 7919 + seed * 104_729
    return ((numbers % 1009 - 504) / 2048).astype(np.float32).reshape(shape)


def _low_rank(seed: int, rows: int, columns: int) -> LowRankDelta:
    return LowRankDelta(values(seed, rows, 2), values(seed + 1, 2, columns))


def _direction(deltas: dict[str, Delta], tied: dict[str, str] | None = None) -> MemoryDirection:
    return MemoryDirection(deltas, BaseIdentity("acme/base", "4" * 64, "5" * 64, tied or {}))


def golden() -> dict[str, tuple[MemoryDirection, About, int]]:
    """Source, what the manifest says, and bytes of a shard at most, of each golden artifact."""
    plain = 1 << 30
    return {
        "dense": (_direction({DOWN: DenseDelta(values(1, 6, 8)), NORM: DenseDelta(values(2, 6))}), _ABOUT, plain),
        "sharded": (
            _direction({DOWN: DenseDelta(values(1, 6, 8)), QUERY: DenseDelta(values(3, 6, 6))}),
            replace(_ABOUT, kind="task_vector", poles=(), parents=()),
            200,
        ),
        "adapter": (
            _direction(
                {DOWN: _low_rank(4, 6, 8), CONVOLVED: _low_rank(6, 6, 10), EMBEDDING: _low_rank(8, 12, 6)},
            ),
            replace(_ABOUT, layouts={CONVOLVED: "transposed", EMBEDDING: "embedding"}),
            plain,
        ),
        "mixed": (
            _direction(
                {QUERY: _low_rank(10, 6, 6), NORM: DenseDelta(values(12, 6)), EMBEDDING: _low_rank(13, 12, 6)},
                tied={HEAD: EMBEDDING},
            ),
            replace(_ABOUT, kind="composed", poles=(), datasets=()),
            plain,
        ),
    }
