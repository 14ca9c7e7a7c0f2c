"""Tasks of lm-eval as a scorer; the package is imported only when one is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsmerge.errors import MissingDependencyError, UsageError
from wsmerge.steering.baselines.method import Subject
from wsmerge.steering.chat import takes_system
from wsmerge.steering.sweep.items import Split, spread
from wsmerge.steering.sweep.measuring import Role, Task
from wsmerge.steering.sweep.samples import Samples

__all__ = ["TaskScorer"]


@dataclass(frozen=True, slots=True)
class TaskScorer:
    """One task; its documents of even number are for validation, those of odd number for test."""

    role: Role
    settings: Task
    folder: Path

    def score(self, subject: Subject, split: Split, batch_size: int) -> Mapping[str, Samples]:
        """The metric of each document.

        Raises:
            MissingDependencyError: lm-eval is not installed.
            UsageError: no such task, no such metric, or a system message that the chat template does not take.
        """
        try:
            import lm_eval  # noqa: PLC0415 - an extra
            from lm_eval.models.huggingface import HFLM  # noqa: PLC0415 - an extra
            from lm_eval.tasks import TaskManager  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise MissingDependencyError("a task needs lm-eval", hint="pip install 'wsmerge[eval]'") from error
        include = str(self.folder / self.settings.include) if self.settings.include else None
        manager = TaskManager(include_path=include)
        name = self.settings.name
        if name not in manager.all_tasks:
            raise UsageError("lm-eval has no such task", where=name, hint="lm-eval ls tasks")
        if self.settings.chat_template and subject.system is not None and not takes_system(subject.tokenizer):
            # lm-eval would leave the message out, and say so in its log alone.
            raise UsageError(
                "the chat template takes no system message",
                where=name,
                hint="measure the task with chat_template: false",
            )
        result = lm_eval.simple_evaluate(
            model=HFLM(pretrained=subject.model, tokenizer=subject.tokenizer, batch_size=batch_size),
            tasks=[name],
            samples={name: self._documents(manager, split)},
            system_instruction=subject.system,
            apply_chat_template=self.settings.chat_template,
            bootstrap_iters=0,
            log_samples=True,
            task_manager=manager,
        )
        return {"": Samples.of(self.role, self._values(result["samples"][name]))}

    def _documents(self, manager: Any, split: Split) -> list[int]:  # noqa: ANN401 - lm-eval ships no types
        task = manager.load(self.settings.name)["tasks"][self.settings.name]
        numbers = range(0 if split == "validation" else 1, len(task.eval_docs), 2)
        return list(numbers) if self.settings.items is None else spread(numbers, self.settings.items)

    def _values(self, samples: Sequence[Mapping[str, Any]]) -> list[float]:
        metric = self.settings.metric
        if not samples or metric not in samples[0]:
            known = ", ".join(samples[0].get("metrics", ())) if samples else "nothing"
            raise UsageError(f"the task has no metric {metric!r} of a document", hint=f"it has {known}")
        return [float(sample[metric]) for sample in sorted(samples, key=lambda sample: int(sample["doc_id"]))]
