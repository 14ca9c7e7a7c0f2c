"""The state of a training between two steps, on disk: `step-00000040.pt`, the newest one alone.

A checkpoint is a mapping of tensors, numbers and lists as `torch.save` writes it, read again without running any code of
it. It appears whole: synced, then renamed into its place, and only then is the one before it deleted.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any, Final

import torch

from wsmerge.core.files import make_folder, sync_folder
from wsmerge.errors import OutputError

__all__ = ["Checkpoints"]

_PATTERN: Final = "step-*.pt"
_STAGED: Final = "unfinished.pt"


class Checkpoints:
    """The checkpoints of one training.

    Args:
        folder: where they lie; made when the first is saved.
        every: steps between two.
    """

    def __init__(self, folder: Path, every: int | None = None) -> None:
        self.folder = folder
        self.every = every

    def is_due(self, step: int) -> bool:
        """Whether one is to be saved after `step`."""
        return self.every is not None and step % self.every == 0

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Save the state after `step`, and delete those before it.

        Raises:
            OutputError: the file system refuses.
        """
        target = self.folder / f"step-{step:08}.pt"
        staged = self.folder / _STAGED
        try:
            make_folder(self.folder)
            with staged.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            staged.replace(target)
            sync_folder(self.folder)
            for path in self.folder.glob(_PATTERN):
                if path != target:
                    path.unlink()
        except OSError as error:
            raise OutputError(f"a checkpoint cannot be written: {error.strerror}", where=str(self.folder)) from error

    def latest(self) -> dict[str, Any] | None:
        """Return the newest state, in main memory; None where there is none.

        Raises:
            OutputError: it is damaged.
        """
        found = sorted(self.folder.glob(_PATTERN))
        if not found:
            return None
        try:
            state: dict[str, Any] = torch.load(found[-1], map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise OutputError(
                f"the checkpoint is damaged: {error}",
                where=str(found[-1]),
                hint="delete it to train from the beginning",
            ) from error
        return state
