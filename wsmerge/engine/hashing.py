"""Digests of what passes through the stream, so that no byte is read twice to be known."""

from __future__ import annotations

import hashlib

from wsmerge.core.digest import ContentRow, content_digest
from wsmerge.engine.plan import MergePlan

__all__ = ["BaseHasher"]


class BaseHasher:
    """The content digest of the base of a steering plan, from its tensors' bytes as they come by in the plan's order."""

    def __init__(self, plan: MergePlan) -> None:
        self._plan = plan
        self._current = 0
        self._hash = hashlib.sha256()
        self._rows: list[ContentRow] = []

    def update(self, tensor: int, data: memoryview) -> None:
        """The next bytes of the input of output tensor number `tensor`; tensors come in order, each whole."""
        self._advance(tensor)
        self._hash.update(data)

    def content_digest(self) -> str:
        """The digest, when all has come by."""
        self._advance(len(self._plan.tensors))
        return content_digest(self._rows)

    def _advance(self, tensor: int) -> None:
        while self._current < tensor:  # a tensor without elements has no piece, and a digest all the same
            spec = self._plan.tensors[self._current].step.inputs[0].tensor.spec
            self._rows.append(ContentRow(spec.name, "weight", spec.dtype.name, spec.shape, self._hash.hexdigest()))
            self._hash = hashlib.sha256()
            self._current += 1
