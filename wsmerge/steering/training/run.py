"""Both poles in one folder, so that a killed training goes on where it stopped.

FOLDER/training.json      what decides the result: settings, digests of the data, files of the base
FOLDER/base/              the base with zero biases, where the settings ask for them
FOLDER/checkpoints/plus/  the newest state of a pole in work; gone once the pole is saved
FOLDER/plus.json          how the pole's training went: steps, losses
FOLDER/plus/              the pole: an adapter, or a checkpoint; there once it is whole
FOLDER/minus...           as for plus; a signed adapter has `signed` in place of the two

A training that goes on has to have the same settings, data and base as the one that began the folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from wsmerge.core.alone import alone_in
from wsmerge.core.files import file_sha256, make_folder, replace_synced, staged_folder
from wsmerge.core.opening import parse_json, read_whole
from wsmerge.errors import OutputError, UsageError
from wsmerge.steering.chat import pad_id
from wsmerge.steering.loading import chosen_device, chosen_dtype, load_tokenizer
from wsmerge.steering.pairs import Pair, load_pairs
from wsmerge.steering.stamps import file_sizes
from wsmerge.steering.training.biases import with_zero_biases
from wsmerge.steering.training.checkpoints import Checkpoints
from wsmerge.steering.training.config import Pole, Run, TrainConfig, load_train_config
from wsmerge.steering.training.data import encode, hold_out
from wsmerge.steering.training.loop import Outcome, Progress, Training
from wsmerge.steering.training.models import Trainee, prepare, save
from wsmerge.steering.training.objective import Objective, Side

__all__ = ["TRAINING_FILE", "Data", "Trained", "load_data", "train_pair", "train_pole"]

TRAINING_FILE: Final = "training.json"

# These change no bit of the result.
_FREE: Final = {"behaviour", "licence", "preset", "test", "checkpoint_every"}


@dataclass(frozen=True, slots=True)
class Data:
    """The rows of a training, and the files that they are of.

    Attributes:
        train: rows to train on.
        validation: rows that are held out.
        files: SHA-256 by file, as the configuration names it.
    """

    train: Sequence[Pair]
    validation: Sequence[Pair] = ()
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training left.

    Attributes:
        config: its settings, with the seeds that were drawn and the dtype that `auto` stood for.
        base: the checkpoint that the poles are changes of.
        poles: the folder of each.
        outcomes: how the training of each went.
        data: what it read.
    """

    config: TrainConfig
    base: Path
    poles: Mapping[Run, Path]
    outcomes: Mapping[Run, Outcome]
    data: Data


def load_data(config: TrainConfig, folder: Path) -> Data:
    """Read the pair files that `config` names, relative to `folder`.

    Raises:
        PairsError: a bad pair file, or too few rows to hold any out.
    """
    rows = load_pairs(folder / config.train)
    files = {config.train: file_sha256(folder / config.train)}
    if config.validation_share:
        kept, held = hold_out(rows, config.validation_share, config.seed)
        return Data(tuple(kept), tuple(held), files)
    if config.validate_every is None:
        return Data(rows, (), files)
    held_out = load_pairs(folder / config.validation)
    files[config.validation] = file_sha256(folder / config.validation)
    return Data(rows, held_out, files)


def train_pair(
    config_file: Path,
    base: Path,
    out_dir: Path,
    *,
    version: str = "1.0.0",
    device: str = "auto",
    resume: bool = False,
    progress: Progress | None = None,
) -> Trained:
    """Train both poles of a direction, or one signed adapter, and save them as `out_dir/plus` and `out_dir/minus`.

    Args:
        config_file: a `train.yaml`, beside its pair files.
        base: checkpoint folder of the base, with its tokenizer and chat template.
        out_dir: folder for the poles and for what is needed to go on; made if missing.
        version: of the direction, which with its name decides the seed of LoRA's factors; a training that goes on keeps the
            seed that it began with.
        device: where to train, as torch names it; `auto` is an accelerator if there is one.
        resume: go on with what is in `out_dir`; begin where there is nothing.
        progress: called after every optimiser step.

    Raises:
        UsageError: the configuration is bad, or what is in `out_dir` came of other settings, data or base.
        PairsError: a pair file is bad.
        OutputError: a training is in `out_dir` already, and `resume` is false; another process works there; or it cannot
            be written.
        NonFiniteError: a loss is not finite.
        KeyboardInterrupt: interrupted, after a checkpoint.
    """
    config, device = load_train_config(config_file), chosen_device(device)
    # A training that goes on elsewhere must not train one pole in bfloat16 and the other in float32.
    config = config.model_copy(update={"dtype": chosen_dtype(config.dtype, device)})
    data = load_data(config, config_file.parent)
    with alone_in(out_dir):
        config = _begun_with(out_dir / TRAINING_FILE, config, resume=resume).with_factor_seed(version)
        _begin(out_dir, _identity(config, data, base), resume=resume)
        for unfinished in out_dir.glob(".*.partial"):  # of a training that was killed while it saved
            shutil.rmtree(unfinished)
        over = base
        if config.add_biases:
            over = out_dir / "base"
            if not over.exists():
                with_zero_biases(base, config.target_modules, over)
        outcomes = {run: _train_or_read(run, config, data, over, out_dir, device, progress) for run in config.runs}
        shutil.rmtree(out_dir / "checkpoints", ignore_errors=True)
    return Trained(config, over, {run: out_dir / run for run in config.runs}, outcomes, data)


def _train_or_read(
    run: Run, config: TrainConfig, data: Data, base: Path, out_dir: Path, device: str, progress: Progress | None
) -> Outcome:
    """Train what is not there yet, and tell how it went."""
    if not (out_dir / run).exists():
        train_pole(config, data, run, base, out_dir / run, keep=out_dir, device=device, progress=progress)
    outcome = _read_outcome(_notes(out_dir, run))
    shutil.rmtree(_checkpoints(out_dir, run, config).folder, ignore_errors=True)
    return outcome


def train_pole(  # noqa: PLR0913 - the last three are keywords with defaults
    config: TrainConfig,
    data: Data,
    run: Run,
    base: Path,
    folder: Path,
    *,
    keep: Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> Outcome:
    """Train one pole, or a signed adapter, and save it as a plain PEFT adapter or as a checkpoint.

    The result is a function of the arguments on one machine with one number of threads; torch's own generators are as
    before afterwards.

    Args:
        config: settings.
        data: rows to train on, and rows that are held out.
        run: which answers; `signed` for both.
        base: checkpoint folder of the base.
        folder: the pole's folder; it appears whole.
        keep: folder for states, of which the newest that is there is gone on from, and for the outcome, which is written
            before `folder` appears; None to keep neither.
        device: where to train; `auto` is an accelerator if there is one.
        progress: called after every optimiser step.

    Raises:
        OutputError: `folder` is there already, or cannot be written.
        PairsError: rows that are too long.
        UsageError: the base has no such modules.
        NonFiniteError: a loss is not finite.
    """
    if folder.exists() and any(folder.iterdir()):
        raise OutputError("a pole is there already", where=str(folder), hint="choose another folder or delete it")
    with torch.random.fork_rng():
        # The first factors, and then dropout, come from torch's global generators.
        factors = config.with_factor_seed("").factor_seed
        torch.manual_seed(config.seed if factors is None else factors)
        trainee, training = _begun(config, data, run, base, chosen_device(device))
        torch.manual_seed(config.seed)
        checkpoints = _checkpoints(keep, run, config) if keep is not None else None
        state = checkpoints.latest() if checkpoints else None
        if state is not None:
            training.load(state)
        outcome = training.run(checkpoints, progress)
    if keep is not None:
        _write(_notes(keep, run), asdict(outcome))
    with staged_folder(folder) as staged:
        save(trainee, config, staged)
    return outcome


def _begun(config: TrainConfig, data: Data, run: Run, base: Path, device: str) -> tuple[Trainee, Training]:
    """A training before its first step, and what it trains; torch's generator is drawn from."""
    tokenizer = load_tokenizer(base, config.template_args)
    longest = config.max_length
    sides = [
        Side(
            encode(data.train, pole, tokenizer, max_length=longest),
            encode(data.validation, pole, tokenizer, max_length=longest),
            sign,
        )
        for pole, sign in _sides(run)
    ]
    trainee = prepare(config, base, device)
    kl_weight = config.signed.kl_weight if run == "signed" and config.signed else 0.0
    objective = Objective(trainee, sides, pad_id(tokenizer), kl_weight=kl_weight)
    return trainee, Training(run, trainee, objective, config, len(data.train))


def _checkpoints(folder: Path, run: Run, config: TrainConfig) -> Checkpoints:
    return Checkpoints(folder / "checkpoints" / run, config.checkpoint_every)


def _notes(folder: Path, run: Run) -> Path:
    return folder / f"{run}.json"


def _sides(run: Run) -> list[tuple[Pole, int | None]]:
    return [("plus", 1), ("minus", -1)] if run == "signed" else [(run, None)]


def _identity(config: TrainConfig, data: Data, base: Path) -> dict[str, Any]:
    """What decides the result."""
    return {
        "settings": config.model_dump(mode="json", exclude=_FREE),
        "data": dict(data.files),
        "base": file_sizes(base),
    }


def _begun_with(file: Path, config: TrainConfig, *, resume: bool) -> TrainConfig:
    """The settings, with the seed of the factors that the training of `file` drew, where it is gone on with."""
    if not resume or not file.exists() or config.factor_seed is not None:
        return config
    return config.model_copy(update={"factor_seed": _read(file).get("settings", {}).get("factor_seed")})


def _begin(folder: Path, identity: Mapping[str, Any], *, resume: bool) -> None:
    """Write down what is trained in `folder`, or see that the same was begun there."""
    file = folder / TRAINING_FILE
    if file.exists() and resume:
        _check_same(_read(file), identity, file)
        return
    if any(folder.iterdir()):
        raise OutputError(
            "a training is there already" if file.exists() else "exists and is no empty folder",
            where=str(folder),
            hint="go on with it (--resume), choose another folder, or delete it",
        )
    _write(file, identity)


def _check_same(begun: Mapping[str, Any], identity: Mapping[str, Any], file: Path) -> None:
    different = [
        f"{part}: {key}: {old.get(key)!r} then, {new.get(key)!r} now"
        for part, new in identity.items()
        for old in [begun.get(part, {})]
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]
    if different:
        raise UsageError(
            "another training was begun here",
            where=str(file),
            details=tuple(different),
            hint="choose another folder, or delete this one",
        )


def _read_outcome(file: Path) -> Outcome:
    fields = _read(file)
    try:
        return Outcome(**fields | {"validation_losses": [tuple(item) for item in fields["validation_losses"]]})
    except (KeyError, TypeError) as error:
        raise OutputError(
            f"is no outcome of a training: {error!r}", where=str(file), hint="choose another folder, or delete this one"
        ) from error


def _read(file: Path) -> dict[str, Any]:
    try:
        fields: dict[str, Any] = parse_json(read_whole(file))
        if not isinstance(fields, dict):
            raise ValueError("no JSON object")  # noqa: TRY301, TRY004 - told as what follows
    except (OSError, ValueError) as error:
        raise OutputError(
            f"cannot be read: {error}", where=str(file), hint="choose another folder, or delete this one"
        ) from error
    return fields


def _write(file: Path, value: Mapping[str, Any]) -> None:
    try:
        make_folder(file.parent)
        replace_synced(file, (json.dumps(value, indent=1) + "\n").encode())
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror}", where=str(file.parent)) from error
