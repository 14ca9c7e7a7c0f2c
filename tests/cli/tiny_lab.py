"""A tiny base with a direction over it."""

from pathlib import Path

import wsmerge
from tests.builders import make_adapter
from tests.steering.sweep.test_sweep import SHAPES
from tests.steering.tiny import save_tiny_base


def save_tiny_lab(folder: Path) -> Path:
    """Write `base` and `direction` into a folder."""
    base = save_tiny_base(folder / "base")
    poles = [make_adapter(folder / f"pole-{pole}", SHAPES, seed=pole, scale=0.4) for pole in (0, 1)]
    wsmerge.extract("sycophancy", base=base, positive=poles[0], negative=poles[1], to=folder / "direction").close()
    return folder
