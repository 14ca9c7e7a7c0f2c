"""The options of commands on recipes, gathered into the API's settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from wsmerge.errors import UsageError

if TYPE_CHECKING:
    from wsmerge.api import Settings
    from wsmerge.engine.merging.raw import Missing

__all__ = ["Cut", "Exactness", "Forms", "Permissions", "settings_from"]


@dataclass(frozen=True, slots=True)
class Cut:
    """How the work is cut: bytes of a shard, MiB of a block, threads."""

    max_shard_bytes: int
    block_mib: int = 8
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class Exactness:
    """What decides the bits."""

    precise: bool = False
    mergekit_bugs: bool = False
    mergekit_rng: bool = False
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Permissions:
    """What is refused unless it is allowed, and what is only warned of unless it is forbidden."""

    allow_crimes: bool = False
    truncate_embeddings: bool = False
    trust_remote_code: bool = False
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Forms:
    """Raw tensor files, and what becomes of tensors that some of them lack."""

    raw: bool = False
    union: bool = False
    intersection: bool = False

    @property
    def missing(self) -> Missing | None:
        """As the API has it.

        Raises:
            UsageError: options that exclude each other, or mean nothing without --raw.
        """
        if (self.union or self.intersection) and not self.raw:
            raise UsageError("--tensor-union and --tensor-intersection are for --raw")
        if self.union and self.intersection:
            raise UsageError("--tensor-union and --tensor-intersection exclude each other")
        if not self.raw:
            return None
        return "union" if self.union else "intersection" if self.intersection else "refuse"


def settings_from(
    cut: Cut,
    exactness: Exactness | None = None,
    permissions: Permissions | None = None,
    forms: Forms | None = None,
    *,
    stream: bool = False,
) -> Settings:
    """The settings that the options come to."""
    from wsmerge.api import Settings
    from wsmerge.engine.merging.build import Leave
    from wsmerge.engine.numerics import Numerics
    from wsmerge.engine.plan import PlanOptions

    bits, allowed = exactness or Exactness(), permissions or Permissions()
    return Settings(
        options=PlanOptions(cut.max_shard_bytes, cut.block_mib << 20, cut.threads),
        numerics=Numerics(bits.precise, bits.mergekit_bugs, bits.mergekit_rng, bits.seed),
        leave=Leave(allowed.allow_crimes, allowed.truncate_embeddings, allowed.trust_remote_code),
        strict=allowed.strict,
        raw=(forms or Forms()).missing,
        stream=stream,
    )
