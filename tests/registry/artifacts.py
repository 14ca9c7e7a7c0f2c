"""Small artifacts for the tests of this room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.builders import llama_shapes
from tests.sources import random_direction
from wsmerge.registry import About, Direction, write_direction

CREATED = "2026-01-01T00:00:00Z"
SHAPES = {name: shape for name, shape in llama_shapes(layers=2).items() if "self_attn.q" in name or "down" in name}


def about(name: str = "formal", version: str = "1.0.0", **more: Any) -> About:
    return About(name=name, version=version, kind="contrastive", created=CREATED, **more)


def make_artifact(folder: Path, name: str = "formal", version: str = "1.0.0", *, seed: int = 1, **more: Any) -> Path:
    """An artifact of four low-rank deltas; equal arguments give equal digests."""
    with write_direction(folder, random_direction(SHAPES, seed=seed), about(name, version, **more)):
        return folder


def same_bytes(left: Direction, right: Direction) -> bool:
    return left.manifest.content_digest == right.manifest.content_digest
