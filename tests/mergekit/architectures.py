"""Which architectures the methods are run on: dtypes, sharding and tying are spread over them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from tests.mergekit.models import Zoo

__all__ = ["ARCHITECTURES", "Architecture"]


class Architecture(NamedTuple):
    """A kind of model, and how it is stored."""

    kind: str
    dtype: str
    sharded: bool = False
    tied: bool = False

    def models(self, zoo: Zoo) -> tuple[Path, Path, Path, Path]:
        """A base and three fine-tunes."""
        base = zoo.base(self.kind, dtype=self.dtype, sharded=self.sharded, tied=self.tied)
        return base, zoo.tuned(base, 1), zoo.tuned(base, 2), zoo.tuned(base, 3)

    def __str__(self) -> str:
        return "-".join([self.kind, self.dtype, "shards" if self.sharded else "one", "tied" if self.tied else "untied"])


ARCHITECTURES = [
    Architecture("llama", "bf16", sharded=True),
    Architecture("llama", "f32", tied=True),
    Architecture("qwen2", "f16", tied=True),
    Architecture("gemma2", "bf16", tied=True),
    Architecture("gemma3", "f32", sharded=True, tied=True),
    Architecture("mistral", "f16", sharded=True),
    Architecture("phi3", "bf16"),
    Architecture("gpt_neox", "f32"),
    Architecture("gpt2", "f16", tied=True),
    Architecture("mixtral", "bf16", sharded=True),
]
