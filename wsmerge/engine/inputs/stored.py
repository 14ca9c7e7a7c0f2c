"""Tensors read as they are stored."""

from __future__ import annotations

from dataclasses import replace

from wsmerge.core.tensors import Source, StoredName

__all__ = ["StoredTensor"]


class StoredTensor:
    """One tensor of a checkpoint; a core `TensorInput`.

    Attributes:
        label: the checkpoint and the tensor's stored name: `acme/chat: model.layers.3.mlp.up_proj.weight`.
        spec: as stored, but named `as_name` where that is given.
        made_of: itself.

    Args:
        checkpoint: where it lies; must stay open while the tensor is read.
        name: its name there.
        as_name: the name that it has in the merge.
        made_of: what it counts as, where that is not the checkpoint's tensor.
    """

    def __init__(
        self, checkpoint: Source, name: str, *, as_name: str | None = None, made_of: StoredName | None = None
    ) -> None:
        self.label = f"{checkpoint.label}: {name}"
        self.spec = replace(checkpoint.specs[name], name=as_name or name)
        self.made_of = (made_of or StoredName(checkpoint, name),)
        self._checkpoint = checkpoint
        self._name = name

    def read_into(self, start: int, out: memoryview) -> None:
        """Fill `out` with the bytes from byte `start` on."""
        self._checkpoint.read_into(self._name, start, out)
