"""How results are rounded, and what is done where mergekit's own result is a silent mistake."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from wsmerge.errors import UsageError

__all__ = ["Numerics"]


@dataclass(frozen=True, slots=True)
class Numerics:
    """What decides the bits of a merge, beside the recipe.

    Attributes:
        precise: compute merge methods in float32 throughout and round once, instead of rounding to the recipe's dtype
            after every operation as mergekit does. `dtype` then only says what the output's dtype is.
        mergekit_bugs: reproduce mergekit where its result is a silent mistake, which is refused or mended otherwise.
        mergekit_rng: run mergekit's own kernels of randomised methods in its order, for its exact random numbers.
        seed: of randomised methods.
    """

    precise: bool = False
    mergekit_bugs: bool = False
    mergekit_rng: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.precise and self.mergekit_rng:
            raise UsageError(
                "--precise and --mergekit-rng exclude each other", hint="mergekit's kernels round as mergekit does"
            )
        if not 0 <= self.seed < 1 << 32:
            raise UsageError(f"a seed of {self.seed} is out of range", hint="give 0 to 4294967295")

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return asdict(self)
