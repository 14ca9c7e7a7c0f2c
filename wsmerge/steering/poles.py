"""The two fine-tunes that a direction is taken between: adapters or full checkpoints, as changes of one base."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from wsmerge.core.deltas import LowRankDelta
from wsmerge.core.opening import expanded
from wsmerge.core.reading import has_equal_values
from wsmerge.engine.adapter import ADAPTER_CONFIG_FILE, ADAPTER_TENSOR_FILE, Adapter
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.engine.locate import hub_snapshot
from wsmerge.engine.names import CheckpointNames
from wsmerge.engine.shards import AnyTensorFile
from wsmerge.errors import AdapterError, BaseMismatchError, CheckpointError, Problems

__all__ = ["FullPole", "Pole", "note_base_contradictions", "open_pole", "stored_or_base"]

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_WEIGHT_FILES: Final = (".safetensors", ".index.json", ".bin", ".pt", ".pth", ".ckpt", ".gguf")
_POLE_FORMS: Final = f"a pole is a PEFT adapter ({ADAPTER_CONFIG_FILE} and {ADAPTER_TENSOR_FILE}) or a full checkpoint (model.safetensors)"


class FullPole:
    """A full checkpoint, its tensors found under the names of `base`; close it after use.

    Raises:
        BaseMismatchError: missing or extra tensors, other shapes, integer tensors that differ; all of them.
        CheckpointError: a checkpoint that cannot be read.
    """

    def __init__(self, path: Path, base: Checkpoint) -> None:
        self.path = path
        self._checkpoint = Checkpoint(path)
        try:
            self._checkpoint.refuse_quantised()
            problems = Problems()
            self._names = _match_names(self._checkpoint, base, problems)
            for name, own in self._names.items():
                _check_fit(self._checkpoint, own, base, name, problems)
            _check_tied(self._checkpoint, self._names, base, problems)
            problems.raise_if_any(
                BaseMismatchError,
                f"is no fine-tune of {base.label}",
                where=str(path),
                hint="give the base that it was fine-tuned from; added tokens must be in the base too",
            )
        except BaseException:
            self._checkpoint.close()
            raise

    @property
    def label(self) -> str:
        """The Hub id where the folder is of the Hub's cache, else the folder's name."""
        return self._checkpoint.label

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return self._checkpoint.nbytes

    @property
    def training(self) -> dict[str, Any]:
        """What is known of how it was trained."""
        return {"method": "full"}

    def rank(self, name: str) -> int | None:  # noqa: ARG002 - the same question is asked of adapters
        """None: a full checkpoint has no factors."""
        return None

    def low_rank(self, name: str) -> LowRankDelta:
        """Never asked for, since `rank` is None."""
        raise BaseMismatchError(f"has no factors for {name}", where=self.label)

    def stored_whole(self, name: str) -> tuple[Checkpoint, str] | None:
        """Checkpoint and name there of base tensor `name`."""
        own = self._names.get(name)
        return (self._checkpoint, own) if own is not None else None

    def content_digest(self, progress: Callable[[int, int], None] | None = None) -> str:
        """Content digest of all tensors."""
        return self._checkpoint.weights_digest(progress)

    def close(self) -> None:
        """Close the checkpoint."""
        self._checkpoint.close()


Pole = Adapter | FullPole


def open_pole(path: Path, base: Checkpoint) -> Pole:
    """Open the folder (or file) `path` as a change of `base`: an adapter where it holds `adapter_config.json`.

    Raises:
        AdapterError: no plain LoRA, one that does not fit or lacks its settings, or a folder that holds an adapter and a
            full model too.
        CheckpointError: a checkpoint that is not there or cannot be read; `BaseMismatchError` where it does not fit.
    """
    if not (path / ADAPTER_CONFIG_FILE).is_file():
        _refuse_no_weights(path)
        _refuse_bare_factors(path)
        return FullPole(path, base)
    whole = sorted(file.name for file in path.glob("model*.safetensors"))
    if whole:
        raise AdapterError(
            f"holds an adapter and a full model ({whole[0]}), and only one of them can be meant",
            where=str(path),
            hint=f"name {whole[0]} itself for the full model, or move the adapter's two files to a folder of their own",
        )
    return Adapter(path, base)


def _refuse_no_weights(path: Path) -> None:
    if not path.exists():
        raise CheckpointError(f"no such folder or file, and {_POLE_FORMS}", where=str(path), hint="check the path")
    if path.is_dir() and not any(file.name.endswith(_WEIGHT_FILES) for file in path.iterdir()):
        raise CheckpointError(f"holds no weights: {_POLE_FORMS}", where=str(path), hint="check the path")


def _refuse_bare_factors(path: Path) -> None:
    """Refuse an adapter's tensors without its settings, or named apart from them."""
    folder = path if path.is_dir() else path.parent
    full = path.is_dir() and any(path.glob("model*.safetensors"))
    named = (path / ADAPTER_TENSOR_FILE).is_file() if path.is_dir() else path.name == ADAPTER_TENSOR_FILE
    if full or not named:
        return
    if (folder / ADAPTER_CONFIG_FILE).is_file():
        raise AdapterError("holds an adapter's factors only", where=str(path), hint=f"give the folder: {folder}")
    raise AdapterError(
        f"{ADAPTER_CONFIG_FILE} is missing, which holds r and lora_alpha, without which the factors say nothing",
        where=str(folder),
        hint=f"copy it from where the adapter comes from: PEFT's save_pretrained writes it beside {ADAPTER_TENSOR_FILE}",
    )


def note_base_contradictions(base: Checkpoint, adapters: Sequence[Adapter], problems: Problems) -> None:
    """Note where the bases that `adapters` were trained over, as PEFT recorded them, are not `base` or not one base.

    A recorded folder that is on this machine is compared by structure and values; a Hub id with the base's own, where the
    base comes out of the Hub's cache; recorded names that cannot be compared so must at least agree with each other.
    """
    unverified: list[Adapter] = []
    for adapter in adapters:
        verified = _is_recorded_base(adapter, base, problems)
        if verified is None:
            unverified.append(adapter)
    names = {_comparable(adapter.settings.base_name or "") for adapter in unverified}
    revisions = {adapter.settings.revision for adapter in unverified if adapter.settings.revision}
    if len(names) > 1:
        told = ", ".join(f"{adapter.label} over {adapter.settings.base_name}" for adapter in unverified)
        problems.add(f"the poles were trained over different bases: {told}")
    elif len(revisions) > 1:
        problems.add(f"the poles were trained over different revisions of their base: {', '.join(sorted(revisions))}")


def _is_recorded_base(adapter: Adapter, base: Checkpoint, problems: Problems) -> bool | None:
    """Whether the recorded base is `base`; None where this machine cannot tell. A False is noted."""
    name = adapter.settings.base_name
    if name is None:
        return True
    local = expanded(name)
    if local.exists():
        return _is_same_checkpoint(adapter, local, base, problems)
    here = hub_snapshot(base.path)
    if here is None or local.is_absolute():
        return None
    revision = adapter.settings.revision
    if _comparable(name) != _comparable(here.repo):
        problems.add(f"{adapter.label}: was trained over {name}, not over {here.repo}")
        return False
    if revision and _COMMIT.fullmatch(revision) and revision != here.revision:
        problems.add(f"{adapter.label}: was trained over commit {revision} of {name}, not over {here.revision}")
        return False
    return True


def _is_same_checkpoint(adapter: Adapter, local: Path, base: Checkpoint, problems: Problems) -> bool | None:
    if local.samefile(base.path if base.path.is_dir() or local.is_file() else base.path.parent):
        return True
    try:
        other = Checkpoint(local)
    except CheckpointError:
        return None  # a folder without weights is no base, whatever its name
    with other:
        same = other.structure == base.structure and all(
            has_equal_values(base, name, other, name) for name in base.specs
        )
    if not same:
        problems.add(f"{adapter.label}: was trained over {local}, whose weights are not those of {base.path}")
    return same


def _comparable(name: str) -> str:
    return name.rstrip("/").casefold()


def _match_names(pole: Checkpoint, base: Checkpoint, problems: Problems) -> dict[str, str]:
    """The pole's name of each base tensor; a tied output that is stored in one of the two only is no difference."""
    names = CheckpointNames([*base.specs, *base.tied])
    matched: dict[str, str] = {}
    for own in pole.specs:
        found = names.find(own)
        if found is None or found in matched:
            problems.add(f"{own}: not in {base.label}{names.suggestion(own)}")
        else:
            matched[found] = own
    for name in base.specs:
        if name not in matched and name not in base.tied:
            problems.add(f"{name}: missing")
    return matched


def _check_fit(pole: Checkpoint, own: str, base: Checkpoint, name: str, problems: Problems) -> None:
    spec, stored = pole.specs[own], base.specs[name if name in base.specs else base.tied[name]]
    if spec.shape != stored.shape:
        problems.add(f"{own}: {list(spec.shape)}, and {list(stored.shape)} in {base.label}")
    elif spec.dtype.is_float != stored.dtype.is_float:
        problems.add(f"{own}: {spec.dtype}, and {stored.dtype} in {base.label}")
    elif not spec.dtype.is_float and not has_equal_values(pole, own, base, stored.name):
        problems.add(f"{own}: {spec.dtype} values differ from those of {base.label}, and have no delta")


def _check_tied(pole: Checkpoint, names: dict[str, str], base: Checkpoint, problems: Problems) -> None:
    """Leave only the inputs of tied pairs in `names`."""
    for out, into in base.tied.items():
        own_out, own_into = names.pop(out, None), names.get(into)
        if own_out and own_into and not has_equal_values(pole, own_out, pole, own_into):
            problems.add(f"{own_out}: one tensor with {into} in {base.label}, and trained apart from it here")


def stored_or_base(pole: Pole | None, base: Checkpoint, name: str) -> tuple[AnyTensorFile | Checkpoint, str]:
    """Where the whole tensor `name` of a pole is read: in the pole, or in the base where the pole leaves it alone."""
    return (pole.stored_whole(name) if pole is not None else None) or (base, name)
