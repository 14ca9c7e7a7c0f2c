"""Training of the two poles of a direction: fine-tunes towards a behaviour and towards its opposite.

The method is contrastive weight steering (arXiv 2511.05408, section 3): both poles start at the same base, with the
same seed, data order and schedule, and differ in nothing but the answers. What both learn alike (the manner of the
data, the length of its answers) then cancels in `w = theta_plus - theta_minus`. As there: AdamW with weight decay
0.01, a short warm-up, linear decay, no dropout, and a loss on the assistant's answer only.

    config       train.yaml
    presets      the paper's settings
    data         pairs as batches of token ids
    models       what is trained of a base: LoRA factors, biases, all of it; and how it is saved
    biases       a base with zero biases where it had none
    objective    the loss of one pole, and that of a signed adapter
    loop         the optimiser's steps, validation, early stop
    checkpoints  the state between two steps, on disk
    run          both poles in one folder

Each name is loaded when it is first used: a configuration can be read without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsmerge.steering.training.config import (
        LINEAR_MODULES,
        POLES,
        Pole,
        Run,
        TrainConfig,
        load_train_config,
        parse_train_config,
    )
    from wsmerge.steering.training.loop import Outcome, Step
    from wsmerge.steering.training.run import Data, train_pair, train_pole

__all__ = [
    "LINEAR_MODULES",
    "POLES",
    "Data",
    "Outcome",
    "Pole",
    "Run",
    "Step",
    "TrainConfig",
    "load_train_config",
    "parse_train_config",
    "train_pair",
    "train_pole",
]

_HOMES = {"Data": "run", "Outcome": "loop", "Step": "loop", "train_pair": "run", "train_pole": "run"}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public object
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"wsmerge.steering.training.{_HOMES.get(name, 'config')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
