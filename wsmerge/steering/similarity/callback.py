"""A callback of transformers' Trainer that watches how the model moves along directions while it is trained."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from wsmerge.core.tensors import DeltaSource
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.engine.locate import locate_model
from wsmerge.errors import UsageError
from wsmerge.registry import Registry, open_reference, open_registry
from wsmerge.registry.resolve import reference_text
from wsmerge.steering.similarity.factors import shared_factors
from wsmerge.steering.similarity.live import LiveUpdate
from wsmerge.steering.similarity.monitoring import Measure, Question, Reading, compare
from wsmerge.steering.similarity.rows import Sample

if TYPE_CHECKING:
    from transformers import Trainer

__all__ = ["SimilarityCallback"]


class SimilarityCallback(TrainerCallback):
    """Compares the change of the model in training with directions whenever it is saved or evaluated.

    Cosine, its z against random directions, projection and the cosine without embeddings are logged as `PREFIX/DIRECTION/...`, and the norm of the change
    as `PREFIX/norm`. LoRA factors are compared as they are, without merging. Every process of a distributed run computes
    the same values, so all of them stop at one step.

        callback = SimilarityCallback(["sycophancy@1.0.0"], threshold=0.05)
        callback.attach(trainer)     # or Trainer(callbacks=[callback]): then values go to `state.log_history` alone
        trainer.train()

    Args:
        directions: references, or open directions (or any `DeltaSource`), which stay open.
        base: the checkpoint that the change is taken from. Without it parameters in training are copied when training
            begins; adapters need none.
        threshold: training stops once `measure` of a direction is at or above it.
        measure: what is compared with the threshold.
        prefix: what the names of logged values begin with.
        store: where references are looked up.
        sample: the share of the rows of every parameter that is compared, above 0 and at most 1, the same rows, and
            of factors of a rank above 16 the same components, at every step: values are then estimates, the threshold is compared with them, and the standard error of each cosine is
            logged as `PREFIX/DIRECTION/cosine_standard_error`. None for all of them.

    Attributes:
        history: step and readings, in order.
        passed: name and value of the first reading at or above the threshold, None while there is none.
    """

    def __init__(
        self,
        directions: Sequence[str | Path | DeltaSource],
        *,
        base: str | Path | None = None,
        threshold: float | None = None,
        measure: Measure = "cosine",
        prefix: str = "similarity",
        store: Registry | None = None,
        sample: float | None = None,
    ) -> None:
        if not directions:
            raise UsageError("no direction to compare with", hint="name at least one direction")
        self.history: list[tuple[int, tuple[Reading, ...]]] = []
        self.passed: tuple[str, float] | None = None
        if sample is not None:
            Sample(sample).check()
        self._sample = sample
        self._given = tuple(directions)
        self._base = base
        self._threshold, self._measure, self._prefix = threshold, measure, prefix
        self._store = store
        self._trainer: Trainer | None = None
        self._update: LiveUpdate | None = None
        self._sources: list[DeltaSource] = []
        self._open = ExitStack()

    def attach(self, trainer: Trainer) -> None:
        """Add this callback to `trainer`, and log by it, so that everything it reports to gets the values."""
        self._trainer = trainer
        trainer.add_callback(self)

    def on_train_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002 - the interface's
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002 - the interface's
        **kwargs: Any,  # noqa: ANN401 - the interface's
    ) -> None:
        """Open the directions, and note where the model begins.

        Raises:
            BaseMismatchError: directions or a base that do not fit the model.
            UsageError: a resumed training whose first values are not known.
        """
        self._open.close()
        base = self._open.enter_context(Checkpoint(locate_model(str(self._base)))) if self._base else None
        self._update = LiveUpdate(kwargs["model"], base)
        if base is None and state.global_step and self._update.copied:
            raise UsageError(
                f"training resumes at step {state.global_step}, and where it began is not known",
                where="SimilarityCallback",
                hint="give base=, the checkpoint that the training began with",
            )
        self._sources = [self._opened(item) for item in self._given]
        for pair in shared_factors(self._sources):
            told = (
                f"{pair.one} and {pair.other} share {pair.overlap:.0%} of their factors A: their readings rise together"
            )
            warnings.warn(told, stacklevel=2)

    def on_save(
        self,
        args: TrainingArguments,  # noqa: ARG002 - the interface's
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401, ARG002 - the interface's
    ) -> None:
        """Compare, and stop at the threshold."""
        self._look(state, control)

    on_evaluate = on_save

    def on_train_end(
        self,
        args: TrainingArguments,  # noqa: ARG002 - the interface's
        state: TrainerState,  # noqa: ARG002 - the interface's
        control: TrainerControl,  # noqa: ARG002 - the interface's
        **kwargs: Any,  # noqa: ANN401, ARG002 - the interface's
    ) -> None:
        """Close what was opened, and forget where the model began."""
        self._open.close()
        self._update, self._sources = None, []

    def _opened(self, item: str | Path | DeltaSource) -> DeltaSource:
        if not isinstance(item, str | Path):
            return item
        return self._open.enter_context(open_reference(reference_text(item), self._store or open_registry()))

    def _look(self, state: TrainerState, control: TrainerControl) -> None:
        update = self._update
        if update is None:  # an evaluation outside training
            return
        if not (self.history and self.history[-1][0] == state.global_step):
            question = Question(self._sources, sample=self._sample)
            readings = compare([update], question, update.all_shapes, update.tied)[0]
            self.history.append((state.global_step, readings))
            self._log(state, readings)
            self._judge(readings)
        if self.passed is not None:
            control.should_training_stop = True

    def _judge(self, readings: Sequence[Reading]) -> None:
        values = [(reading.direction, reading.value(self._measure)) for reading in readings]
        for direction, value in values:
            if self.passed is None and self._threshold is not None and value is not None and value >= self._threshold:
                self.passed = (direction, value)

    def _log(self, state: TrainerState, readings: Sequence[Reading]) -> None:
        values: dict[str, float] = {f"{self._prefix}/norm": readings[0].scopes.whole.update_norm}
        for reading in readings:
            told = {
                "cosine": reading.scopes.whole.cosine,
                "z": reading.scopes.whole.z,
                "projection": reading.scopes.whole.projection,
                "cosine_standard_error": reading.standard_error("cosine"),
                "cosine_without_embeddings": reading.scopes.without_embeddings.cosine,
            }
            head = f"{self._prefix}/{reading.direction}"
            values |= {f"{head}/{name}": value for name, value in told.items() if value is not None}
        if self._trainer is not None:
            self._trainer.log(values)
        else:
            state.log_history.append({**values, "step": state.global_step})
