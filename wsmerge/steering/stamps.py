"""What tells two checkpoints apart without reading their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["file_sizes"]

# Weights, configuration, tokenizer and chat template.
_DECIDING: Final = ("*.safetensors", "*.bin", "*.json", "*.jinja", "*.model", "*.txt")


def file_sizes(checkpoint: Path) -> dict[str, int]:
    """Bytes of each file of a checkpoint, a folder or one file, that decides what the model answers, by name.

    Weights that were replaced by others of the same shapes go unnoticed: reading them all takes long.
    """
    files = [checkpoint] if checkpoint.is_file() else [file for kind in _DECIDING for file in checkpoint.glob(kind)]
    return {file.name: file.stat().st_size for file in sorted(files)}
