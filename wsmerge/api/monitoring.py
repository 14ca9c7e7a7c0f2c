"""Directions and training runs compared: cosines, projections and norms, over whole models and by parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsmerge.api.references import opened
from wsmerge.core.opening import expanded
from wsmerge.core.tensors import DeltaSource
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.engine.locate import locate_model
from wsmerge.errors import CheckpointError, UsageError
from wsmerge.registry import Direction, Registry, open_registry
from wsmerge.registry.resolve import reference_text
from wsmerge.steering.similarity.factors import shared_factors
from wsmerge.steering.similarity.matrix import SimilarityMatrix, similarity_matrix
from wsmerge.steering.similarity.monitoring import Measure, Question, compare
from wsmerge.steering.similarity.report import Checked, MonitorReport, RunLabel, step_of
from wsmerge.steering.similarity.rows import Sample
from wsmerge.steering.similarity.update import BaseBlocks, Update

if TYPE_CHECKING:
    from wsmerge.steering.similarity.callback import SimilarityCallback

__all__ = [
    "MonitorOptions",
    "MonitorReport",
    "SimilarityCallback",
    "SimilarityMatrix",
    "checkpoints_of",
    "monitor",
    "similarity",
]

ReferenceLike = str | Path | Direction
"""A direction: its reference, the folder of one, or one that is open."""

Progress = Callable[[int, int], None]
"""Called with elements done and elements in all."""


@dataclass(frozen=True, slots=True)
class MonitorOptions:
    """How training runs are monitored.

    Attributes:
        controls: directions that stand for comparison only.
        labels: checkpoints, as they are given to `monitor`, of runs that are known to be contaminated or clean.
        null_draws: random directions of the same spectrum to draw for each direction. Each costs as much as a direction;
            without any the band is computed exactly but for its shape, which is taken to be normal.
        seed: of the draws, and of the sample.
        measure: what the threshold and the AUROC are taken of.
        threshold: a reading of a watched direction at or above it counts as passed.
        threads: tensors in work at once; None for the number of cores.
        sample: the share of the rows of every tensor that is read, above 0 and at most 1: results are then estimates with
            standard errors. The same rows are read at every checkpoint. Of factors of rank r > 16 components are drawn in
            the same way, r times the square root of the share and 16 at least. None for exact results.
    """

    controls: Sequence[ReferenceLike] = ()
    labels: Mapping[str, RunLabel] = field(default_factory=dict)
    null_draws: int = 0
    seed: int = 0
    measure: Measure = "cosine"
    threshold: float | None = None
    threads: int | None = None
    sample: float | None = None


def monitor(
    base: str | Path,
    directions: Sequence[ReferenceLike],
    checkpoints: Sequence[str | Path],
    *,
    options: MonitorOptions | None = None,
    store: Registry | None = None,
    progress: Progress | None = None,
) -> MonitorReport:
    """Compare what training runs changed with directions, in one pass over each checkpoint.

    An update is checkpoint minus base, or a PEFT LoRA adapter in its factors. All of it is read by blocks; memory does
    not grow with the model. With `options.sample` only a share of the rows is read, results are estimates, and factors and
    rows that are left out are not seen to be whole and finite.

    Args:
        base: the checkpoint that training began with: a folder, or a Hub id.
        directions: those that are watched for.
        checkpoints: checkpoints or adapters; `checkpoint-100` is of step 100, and a run's folder stands for all such
            folders in it.
        options: controls, labels, null band, threshold.
        store: where references are looked up.
        progress: called with elements done and elements in all.

    Raises:
        BaseMismatchError: checkpoints or directions that do not fit the base; every tensor.
        NonFiniteError: weights or deltas that are NaN or infinite.
        UsageError: nothing to compare, a direction given twice, or a sample of adapters and low-rank directions alone,
            which are compared in their factors.
    """
    options = options or MonitorOptions()
    names = [name for given in checkpoints for name in checkpoints_of(given)]
    _check_question(directions, names, options)
    with ExitStack() as stack:
        watched = stack.enter_context(_open_all(directions, store))
        controls = stack.enter_context(_open_all(options.controls, store))
        _refuse_repeated([*watched, *controls])
        checkpoint = stack.enter_context(Checkpoint(locate_model(str(base))))
        blocks = BaseBlocks(checkpoint)
        places = [locate_model(name) for name in names]
        updates = [
            stack.enter_context(Update(place, blocks, label=name)) for name, place in zip(names, places, strict=True)
        ]
        question = Question(watched, controls, options.null_draws, options.seed, options.threads, options.sample)
        shapes = {name: spec.shape for name, spec in checkpoint.specs.items() if name not in checkpoint.tied}
        found = compare(updates, question, shapes, checkpoint.tied, progress)
        shared = shared_factors([*watched, *controls])
        base_label = checkpoint.label
    checked = tuple(
        Checked(name, step_of(Path(name)), _label(name, options), readings)
        for name, readings in zip(names, found, strict=True)
    )
    sample = None if options.sample is None else Sample(options.sample, options.seed)
    return MonitorReport(base_label, checked, options.measure, options.threshold, (*watched, *controls), sample, shared)


def similarity(
    references: Sequence[ReferenceLike],
    *,
    base: str | Path | None = None,
    updates: Sequence[str | Path] = (),
    store: Registry | None = None,
    progress: Progress | None = None,
) -> SimilarityMatrix:
    """The cosines among directions, and the updates of training runs.

    Args:
        references: directions.
        base: the base of `updates`.
        updates: checkpoints or adapters; each stands for what it changes in `base`.
        store: where references are looked up.
        progress: called with elements done and elements in all.

    Raises:
        BaseMismatchError: directions and updates that do not fit each other.
        UsageError: nothing to compare, or updates without a base.
    """
    if updates and base is None:
        raise UsageError("an update is a change of a base, and none is given", hint="name the base of the updates")
    names = [name for given in updates for name in checkpoints_of(given)]
    if not references and not names:
        raise UsageError("nothing to compare", hint="give two directions or more, or updates and their base")
    with ExitStack() as stack:
        sources: list[DeltaSource] = list(stack.enter_context(_open_all(references, store)))
        if names:
            blocks = BaseBlocks(stack.enter_context(Checkpoint(locate_model(str(base)))))
            sources += [stack.enter_context(Update(locate_model(name), blocks, label=name)) for name in names]
        return similarity_matrix(sources, progress=progress)


def checkpoints_of(given: str | Path) -> list[str]:
    """The checkpoints that a path stands for: itself, or in a run's folder its `checkpoint-N` in the order of N.

    Raises:
        CheckpointError: a folder that holds neither weights nor such folders.
    """
    folder = expanded(given)
    if not folder.is_dir() or any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")):
        return [str(given)]
    inside = [(step, path) for path in folder.glob("checkpoint-*") if (step := step_of(path)) is not None]
    if not inside:
        raise CheckpointError(
            "holds no weights, and no folder checkpoint-N of a training run", where=str(given), hint="check the path"
        )
    return [str(path) for _, path in sorted(inside)]


def _check_question(directions: Sequence[ReferenceLike], names: Sequence[str], options: MonitorOptions) -> None:
    if not directions:
        raise UsageError("no direction to compare with", hint="name at least one direction")
    if not names:
        raise UsageError("no checkpoint to compare", hint="name at least one checkpoint or adapter")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError("a checkpoint is given twice", where=twice, hint="give each once")
    if options.sample is not None:
        Sample(options.sample, options.seed).check()
    if options.null_draws < 0 or options.seed < 0:
        raise UsageError("the number of random directions and their seed are 0 or more")
    unknown = sorted(set(options.labels) - set(names) - {str(Path(name)) for name in names})
    if unknown:
        raise UsageError(
            "labels of checkpoints that are not given",
            hint="give every labelled checkpoint",
            details=tuple(unknown),
        )


def _label(name: str, options: MonitorOptions) -> RunLabel | None:
    return options.labels.get(name) or options.labels.get(str(Path(name)))


@contextmanager
def _open_all(given: Iterable[ReferenceLike], store: Registry | None) -> Iterator[list[Direction]]:
    """The directions in the order in which they are given; those opened here are closed when the block ends."""
    wanted = list(given)
    named = [reference_text(item) for item in wanted if not isinstance(item, Direction)]
    with opened(dict.fromkeys(named), store or open_registry()) as found:
        yield [item if isinstance(item, Direction) else found[reference_text(item)] for item in wanted]


def _refuse_repeated(sources: Sequence[DeltaSource]) -> None:
    labels = [source.label for source in sources]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise UsageError("directions of one name cannot be told apart", hint="give each once", details=tuple(twice))


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a class that needs transformers, loaded when it is asked for
    if name == "SimilarityCallback":
        return import_module("wsmerge.steering.similarity.callback").SimilarityCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
