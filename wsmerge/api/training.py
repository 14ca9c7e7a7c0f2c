"""Directions from data: pairs made by a model, and both poles trained on them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from wsmerge.api.directions import Details, extract
from wsmerge.api.placing import checked_version, target_of
from wsmerge.core.alone import alone_in
from wsmerge.core.reading import tensor_values
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.engine.locate import locate_model
from wsmerge.errors import UsageError
from wsmerge.registry import DatasetRecord, Direction, Registry

if TYPE_CHECKING:
    from wsmerge.steering.pairs.checking import CheckedPairs
    from wsmerge.steering.pairs.making import MadePairs, MakingProgress
    from wsmerge.steering.pairs.sampling import Sampler
    from wsmerge.steering.training.config import Pole, TrainConfig
    from wsmerge.steering.training.loop import Outcome, Progress
    from wsmerge.steering.training.run import Trained

__all__ = ["check_pairs", "make_pairs", "train"]

_TOLD_ELSEWHERE: Final = {
    *("name", "behaviour", "base", "base_revision", "licence", "train", "validation", "test"),
    *("rank", "alpha", "dropout", "target_modules", "modules_to_save"),
}
"""Settings that the manifest tells in places of their own, or that an adapter does: in its training settings it has the rest."""
_LOSS_MOVED: Final = 0.01
"""A loss that falls by less than this share is said to have hardly changed."""
_WEIGHTS_MOVED: Final = 1e-4
"""The same for the norm of the direction, as a share of that of its base's tensors.

The bundled directions have 3e-3 to 5e-3; at 1e-4 a coefficient of 1 is lost in the rounding of a bfloat16 checkpoint."""
_MORE: Final = "train for more steps, or at a higher learning rate"
_BLOCK: Final = 1 << 22
_OF_THE_MACHINE: Final = {"gradient_checkpointing", "checkpoint_every"}
"""Settings that change no result."""


def make_pairs(  # noqa: PLR0913 - all but the first two are keywords with defaults
    trait: Path | str,
    out: Path | str,
    *,
    model: Path | str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    allow_code: Iterable[str] = (),
    key_env: Iterable[str] = (),
    progress: MakingProgress | None = None,
) -> MadePairs:
    """Make training pairs from a trait file: the model's own answers under system prompts of both poles.

    Each answer is written down as it is made, each score as it is given, so that the same call goes on after a kill or a
    judge's failure. Filtering, splitting and balancing are done anew each time.

    Args:
        trait: a trait file.
        out: folder for the answers, the pair files and `report.json`.
        model: who is asked, if not whom the file names: a checkpoint folder, or a Hub id.
        device: where the model runs, as torch names it; `auto` is an accelerator if there is one.
        dtype: what it computes in; `auto` is bfloat16 on a GPU and float32 elsewhere.
        allow_code: modules whose functions the file may call as a judge.
        key_env: environment variables that the file may send to its judge, beside those known to be its keys.
        progress: called as answers and scores come.

    Raises:
        UsageError: a bad trait file, one that asks for what is not allowed, no model, or answers of another model in `out`.
        JudgeError: the judge failed; answers and scores so far are kept.
        PairsError: no pair is left; the report says why.
        OutputError: `out` cannot be written, or another process works there.
    """
    from wsmerge.steering.named import Allowed  # noqa: PLC0415 - only this needs it
    from wsmerge.steering.pairs.making import make_pairs as make  # noqa: PLC0415 - needs torch
    from wsmerge.steering.pairs.trait import load_trait  # noqa: PLC0415 - only this needs it

    file = Path(trait)
    settings = load_trait(file)
    name = model or settings.model
    if name is None:
        raise UsageError("names no model to ask", where=str(file), hint="add `model`, or give --model")
    folder = locate_model(str(name))

    def sampler() -> Sampler:
        from wsmerge.steering.loading import load_model, load_tokenizer  # noqa: PLC0415 - as above
        from wsmerge.steering.pairs.sampling import Sampler  # noqa: PLC0415 - as above

        loaded = load_model(folder, dtype=dtype, device=device)
        return Sampler(loaded, load_tokenizer(folder, settings.template_args), settings.generation, settings.seed)

    allowed = Allowed(frozenset(allow_code), frozenset(key_env))
    with alone_in(Path(out)):
        return make(settings, folder, Path(out), sampler, allowed=allowed, progress=progress)


def check_pairs(files: Sequence[Path | str]) -> CheckedPairs:
    """Check the user's own pair files: every bad line with its number, and what may not be meant."""
    from wsmerge.steering.pairs.checking import check_pairs as check  # noqa: PLC0415 - only this needs it

    return check([Path(file) for file in files])


def train(  # noqa: PLR0913 - all but the first are keywords with defaults
    config: Path | str,
    *,
    out: Path | str | None = None,
    base: Path | str | None = None,
    to: Path | str | Registry | None = None,
    version: str | None = None,
    device: str = "auto",
    resume: bool = False,
    progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
) -> Direction:
    """Train both poles of a direction on pairs, take their difference, and publish it with all of its lineage.

    Both poles have one seed, base and schedule, and differ in the answers that they learn. The seed of LoRA's first factors
    is drawn from the direction's name and version, so that no two directions share them, unless the file gives it. A signed adapter (`signed` in
    the file) becomes a direction at whose k = 1 and k = -1 it was trained.

    Args:
        config: a `train.yaml`; its pair files are relative to it.
        out: folder for the poles and for what is needed to go on. Default: `NAME-training` in the working folder.
        base: where the base lies, if not where the file says: a folder, or a Hub id.
        to: a store to publish to (default: the user's), or a folder to write the direction to.
        version: semantic version of the direction; None for the next one.
        device: where to train, as torch names it; `auto` is an accelerator if there is one.
        resume: go on with the training that is in `out`, to the same bits that it would have had; begin where there is none.
        progress: called after every optimiser step.
        warn: called with what says that the training hardly changed the loss or the weights; by default Python warns.

    Returns:
        The direction where it now lies, opened; close it after use.

    Raises:
        UsageError: a bad configuration, a base without such modules, or another training in `out`.
        PairsError: a bad pair file; every line.
        OutputError: a training is in `out` already, and `resume` is false.
        NonFiniteError: a loss is not finite.
        KeyboardInterrupt: interrupted; a checkpoint is in `out`.
    """
    from wsmerge.steering.training import load_train_config, train_pair  # noqa: PLC0415 - needs torch

    file = Path(config)
    settings = load_train_config(file)
    free = checked_version(settings.name, version, *target_of(to, None))  # before any work is done
    folder = locate_model(str(base or settings.base), revision=None if base else settings.base_revision)
    place = Path(out) if out is not None else Path(f"{settings.name}-training")
    trained = train_pair(file, folder, place, version=free, device=device, resume=resume, progress=progress)
    plus = trained.poles["signed" if settings.signed else "plus"]
    direction = extract(
        settings.name,
        base=trained.base,
        positive=plus,
        negative=None if settings.signed else trained.poles["minus"],
        to=to,
        details=_details(trained, version),
        # A base that lies elsewhere than its name says goes by two names.
        check_base_names=base is None and trained.base == folder,
    )
    for line in _weaknesses(trained, direction):
        if warn is not None:
            warn(line)
        else:
            warnings.warn(line, stacklevel=2)
    return direction


def _weaknesses(trained: Trained, direction: Direction) -> Iterator[str]:
    """What says that the training hardly changed anything."""
    epoch = math.ceil(len(trained.data.train) / trained.config.batch_size)
    for run, outcome in trained.outcomes.items():
        steps = min(epoch, -(-len(outcome.losses) // 2))  # both means are of the same rows, where there are two epochs
        first, last = (sum(some) / steps for some in (outcome.losses[:steps], outcome.losses[-steps:]))
        if last > (1 - _LOSS_MOVED) * first:
            yield f"{run}: the loss hardly changed: {first:.4g} over the first steps, {last:.4g} over the last; {_MORE}"
    with Checkpoint(trained.base) as base:
        total = math.sqrt(sum(_square_sum(base, row.name) for row in direction.manifest.tensors))
    if direction.manifest.norm < _WEIGHTS_MOVED * total:
        share = direction.manifest.norm / total
        yield f"the weights hardly changed: the direction's norm is {share:.1e} of theirs; {_MORE}"


def _square_sum(base: Checkpoint, name: str) -> float:
    count = math.prod(base.specs[name].shape)
    blocks = (tensor_values(base, name, at, min(_BLOCK, count - at)) for at in range(0, count, _BLOCK))
    return sum(float(np.vdot(block, block)) for block in blocks)


def _details(trained: Trained, version: str | None) -> Details:
    settings = trained.config
    training = settings.model_dump(mode="json", exclude=_TOLD_ELSEWHERE | _OF_THE_MACHINE, exclude_none=True)
    if settings.method == "bias":
        training["target_modules"] = list(settings.target_modules)
    outcomes: dict[str, Mapping[str, Any]] = {
        ("plus" if run == "signed" else run): _told(outcome) for run, outcome in trained.outcomes.items()
    }
    return Details(
        version=version,
        description=settings.behaviour,
        licence=settings.licence,
        datasets=_datasets(settings, trained),
        training=training,
        pole_training=outcomes,
    )


def _told(outcome: Outcome) -> Mapping[str, Any]:
    """What a manifest tells of how a training went."""
    fields = {
        "steps_done": outcome.steps,
        "steps_taken": outcome.best_step,
        "first_loss": outcome.losses[0],
        "last_loss": outcome.losses[-1],
        "validation_loss": outcome.validation_loss,
    }
    return {key: value for key, value in fields.items() if value is not None}


def _datasets(settings: TrainConfig, trained: Trained) -> tuple[DatasetRecord, ...]:
    """The pair files: plus answers for one pole, minus answers for the other, both for a signed adapter."""
    data = trained.data
    held_out = settings.train if settings.validation_share else settings.validation
    files = [("train", settings.train, len(data.train))]
    if data.validation:
        files.append(("validation", held_out, len(data.validation)))
    poles: tuple[Pole | None, ...] = (None,) if settings.signed else ("plus", "minus")
    return tuple(
        DatasetRecord(source=Path(name).name, split=split, pole=pole, count=count, sha256=data.files[name])
        for split, name, count in files
        for pole in poles
    )
