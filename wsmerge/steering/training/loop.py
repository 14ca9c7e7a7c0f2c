"""The steps of one training: AdamW on a schedule, validation, early stop, checkpoints.

Between two steps all that decides the rest is one state: the trained values, those of the optimiser and the schedule,
torch's generators, the order of the rows, and the best values so far. A training that goes on from such a state ends in the
bits of one that was never stopped, on one machine with one number of threads (on a GPU up to its own nondeterminism).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import torch

from wsmerge.core.interrupts import Interrupts
from wsmerge.errors import NonFiniteError
from wsmerge.steering.training.checkpoints import Checkpoints
from wsmerge.steering.training.config import Run, TrainConfig
from wsmerge.steering.training.data import Order
from wsmerge.steering.training.models import Trainee
from wsmerge.steering.training.objective import Objective

__all__ = ["Outcome", "Progress", "Step", "Training"]

_LOWER: Final = "lower the learning rate"


@dataclass(frozen=True, slots=True)
class Step:
    """What a progress callback is told after an optimiser step.

    Attributes:
        pole: the pole in training, or `signed`.
        step: steps done, from 1.
        steps: steps in all.
        loss: of this step's rows, before the step; for a pole the mean negative log-probability per answer token, in nats.
        seconds_left: estimate for this pole.
        validation_loss: of the rows that are held out, after the step, where it was measured.
    """

    pole: Run
    step: int
    steps: int
    loss: float
    seconds_left: float
    validation_loss: float | None = None


Progress = Callable[[Step], None]


@dataclass(slots=True)
class Outcome:
    """How a training went.

    Attributes:
        steps: steps done.
        best_step: the step whose values were taken, where validation chose it; None for the last.
        validation_loss: at that step, or the last one measured.
        losses: loss of each step.
        validation_losses: step and loss of each validation.
    """

    steps: int = 0
    best_step: int | None = None
    validation_loss: float | None = None
    losses: list[float] = field(default_factory=list)
    validation_losses: list[tuple[int, float]] = field(default_factory=list)


@dataclass(slots=True)
class _Best:
    """The lowest validation loss so far, where it was, and how many validations came since."""

    loss: float = math.inf
    waited: int = 0
    values: dict[str, torch.Tensor] | None = None


class Training:
    """One training, from its first step or from a state.

    Args:
        run: what is trained, for reports.
        trainee: what is trained; changed in place.
        objective: what a step lowers.
        config: settings.
        rows: number of rows to train on.
    """

    def __init__(self, run: Run, trainee: Trainee, objective: Objective, config: TrainConfig, rows: int) -> None:
        self.outcome = Outcome()
        self._run = run
        self._trainee = trainee
        self._objective = objective
        self._config = config
        self._steps = config.step_count(rows)
        self._parameters = list(trainee.trained.values())
        self._optimiser = torch.optim.AdamW(self._parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
        factor = _linear(config.warmup_steps, self._steps)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimiser, factor)
        self._order = Order(rows, config.seed)
        self._best = _Best()

    def run(self, checkpoints: Checkpoints | None = None, progress: Progress | None = None) -> Outcome:
        """Go through the steps that are left; the trainee then has the values that are to be saved.

        Where there are checkpoints, Ctrl-C and SIGTERM save one after the step in work.

        Raises:
            KeyboardInterrupt: interrupted; with checkpoints, one is saved.
            NonFiniteError: a loss, or a value that was trained, is not finite.
        """
        if checkpoints is None:
            self._go_on(None, progress, Interrupts())
        else:
            with Interrupts() as interrupts:
                self._go_on(checkpoints, progress, interrupts)
        if self._best.values is not None:
            self._trainee.set_values(self._best.values)
        # The last step may have spoilt what no later loss has seen.
        if not all(value.isfinite().all() for value in self._parameters):
            raise NonFiniteError(f"values of the {self._run} pole are not finite", hint=_LOWER)
        return self.outcome

    def state(self) -> dict[str, Any]:
        """Return all that decides the steps to come."""
        return {
            "values": self._trainee.values(),
            "optimiser": self._optimiser.state_dict(),
            "schedule": self._schedule.state_dict(),
            "order": self._order.state(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "best": {"loss": self._best.loss, "waited": self._best.waited, "values": self._best.values},
            "outcome": asdict(self.outcome),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go back to a state."""
        self._trainee.set_values(state["values"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._schedule.load_state_dict(state["schedule"])
        self._order.load(state["order"])
        torch.set_rng_state(state["random"])
        if state["random_cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["random_cuda"])
        self._best = _Best(**state["best"])
        self.outcome = Outcome(**state["outcome"])

    def _go_on(self, checkpoints: Checkpoints | None, progress: Progress | None, interrupts: Interrupts) -> None:
        start, first = time.monotonic(), self.outcome.steps
        self._trainee.model.train()
        while not self._is_done():
            loss = self._step()
            measured = self._validate()
            step = self.outcome.steps
            if progress is not None:
                left = (time.monotonic() - start) / (step - first) * (self._steps - step)
                progress(Step(self._run, step, self._steps, loss, left, measured))
            if checkpoints is not None and (interrupts.seen or checkpoints.is_due(step)):
                checkpoints.save(step, self.state())
            interrupts.check()

    def _is_done(self) -> bool:
        patience = self._config.patience
        return self.outcome.steps >= self._steps or (patience is not None and self._best.waited >= patience)

    def _step(self) -> float:
        numbers = self._order.take(self._config.batch_size)
        loss = self._objective.add_gradients(numbers, self._config.accumulate)
        self._check(loss, "loss")
        torch.nn.utils.clip_grad_norm_(self._parameters, self._config.max_grad_norm)
        self._optimiser.step()
        self._schedule.step()
        self._optimiser.zero_grad(set_to_none=True)
        self.outcome.steps += 1
        self.outcome.losses.append(loss)
        return loss

    def _validate(self) -> float | None:
        """Measure the rows that are held out where it is time to, and keep the values if they are the best."""
        every, step = self._config.validate_every, self.outcome.steps
        if every is None or not self._objective.has_validation or (step % every and step != self._steps):
            return None
        loss = self._objective.validate()
        self._check(loss, "validation loss")
        self.outcome.validation_losses.append((step, loss))
        if self._config.patience is None:
            self.outcome.validation_loss = loss
        elif loss < self._best.loss:
            self._best = _Best(loss, 0, self._trainee.values())
            self.outcome.best_step, self.outcome.validation_loss = step, loss
        else:
            self._best.waited += 1
        return loss

    def _check(self, loss: float, name: str) -> None:
        if not math.isfinite(loss):
            step = self.outcome.steps
            raise NonFiniteError(f"the {name} of the {self._run} pole is {loss} after {step} steps", hint=_LOWER)


def _linear(warmup: int, steps: int) -> Callable[[int], float]:
    """Return the factor on the learning rate before step `done`: linear up over the warm-up, then linear down."""

    def factor(done: int) -> float:
        if done < warmup:
            return (done + 1) / (warmup + 1)
        return max(0.0, (steps - done) / max(1, steps - warmup))

    return factor
