"""Which steps are computed in blocks here, and which by mergekit's own method on the whole tensor."""

from __future__ import annotations

from wsmerge.engine.methods.native import native_method
from wsmerge.engine.methods.step import BlockMethod, MergeStep

__all__ = ["block_method", "is_native"]


def block_method(step: MergeStep) -> BlockMethod | None:
    """The method that computes `step` block by block; None where mergekit's own must see the whole tensor."""
    return None if step.mergekit_rng else native_method(step)


def is_native(step: MergeStep) -> bool:
    """Whether `step` is computed block by block."""
    return block_method(step) is not None
