"""Train the bundled directions again, and put them where they lie: `directions/NAME/`.

    python experiments/smollm2/build_directions.py [NAME ...]

Trains the two poles of each direction from `directions/NAME/train.yaml` and the pair files beside it (minutes a pole on
two cores), extracts their difference over the embedded model, and replaces the artifact's files in that folder. The pairs
themselves come from `make_pairs.py`.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

from platformdirs import user_cache_path

import wsmerge
from wsmerge.registry import DatasetRecord
from wsmerge.steering.embedded import embedded_model
from wsmerge.steering.pairs import load_pairs
from wsmerge.steering.training import POLES, Step, load_train_config, train_pair

DIRECTIONS: Final = Path(__file__).resolve().parents[2] / "directions"
VERSION: Final = "1.0.0"
SETTINGS: Final = {
    "steps",
    "batch_size",
    "learning_rate",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "seed",
}
"""What the manifest tells of the training, beside what the adapters do."""


def main() -> None:
    """Build the directions that the arguments name, or all of them."""
    names = sys.argv[1:] or sorted(path.parent.name for path in DIRECTIONS.glob("*/train.yaml"))
    base = embedded_model(user_cache_path("wsmerge"), progress=print)
    for name in names:
        with tempfile.TemporaryDirectory() as scratch:
            poles = train_pair(DIRECTIONS / name / "train.yaml", base, Path(scratch) / "poles", progress=_show).poles
            build(name, base, poles["plus"], poles["minus"], Path(scratch) / "artifact")


def build(name: str, base: Path, plus: Path, minus: Path, scratch: Path) -> None:
    """Extract the direction of two trained poles and put its files into `directions/NAME/`."""
    folder = DIRECTIONS / name
    config = load_train_config(folder / "train.yaml")
    details = wsmerge.Details(
        version=VERSION,
        description=config.behaviour,
        licence="Apache-2.0",
        datasets=_datasets(folder),
        training=config.model_dump(mode="json", include=SETTINGS),
    )
    with wsmerge.extract(name, base=base, positive=plus, negative=minus, to=scratch, details=details) as direction:
        print(f"{direction.label}: norm {direction.manifest.norm:.3f}, {direction.digest}")
    for file in scratch.iterdir():
        shutil.move(file, folder / file.name)


def _datasets(folder: Path) -> tuple[DatasetRecord, ...]:
    """The training pairs, as the manifest names them: plus answers for one pole, minus answers for the other."""
    file = folder / load_train_config(folder / "train.yaml").train
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    count = len(load_pairs(file))
    source = f"directions/{folder.name}/{file.name}"
    return tuple(DatasetRecord(source=source, split="train", pole=pole, count=count, sha256=digest) for pole in POLES)


def _show(step: Step) -> None:
    if step.step == step.steps or step.step % 8 == 0:
        left = f"{step.seconds_left:.0f} s left"
        print(f"{step.pole}: step {step.step} of {step.steps}, loss {step.loss:.3f}, {left}", flush=True)


if __name__ == "__main__":
    main()
