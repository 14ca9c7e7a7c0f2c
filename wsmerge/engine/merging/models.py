"""The models of a recipe: opened once each, whatever the number of places that name them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from wsmerge.core.closing import Closing
from wsmerge.core.hub.connection import Hub
from wsmerge.core.tensors import TensorInput
from wsmerge.engine.adapter import Adapter
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.engine.inputs.adapted import adapted_tensor, loaded_dtype
from wsmerge.engine.inputs.stored import StoredTensor
from wsmerge.engine.locate import Located, locate_model, locate_streamed
from wsmerge.errors import CheckpointError, WsmergeError
from wsmerge.recipe.merging import ModelPath, ModelReference

__all__ = ["Model", "Models"]


@dataclass(frozen=True, eq=False)
class Model:
    """A checkpoint, with an adapter on it or without.

    Attributes:
        reference: how the recipe names it.
        checkpoint: its weights.
        adapter: what is added to them.
        precise: whether the adapter's sum is kept in float32, unrounded.
        mergekit_bugs: whether what PEFT adds twice is added twice.
    """

    reference: ModelReference
    checkpoint: Checkpoint
    adapter: Adapter | None = None
    precise: bool = False
    mergekit_bugs: bool = False
    _made: dict[str, TensorInput] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """How messages and provenance name it."""
        if self.adapter is None:
            return self.checkpoint.label
        return f"{self.checkpoint.label}+{self.adapter.label}"

    @property
    def config(self) -> Mapping[str, Any]:
        """Its `config.json`."""
        return self.checkpoint.config

    @cached_property
    def names(self) -> Collection[str]:
        """Its tensors, in the checkpoint's order; with an adapter, those that transformers would save of the two.

        An output embedding that is one tensor with the input's is not saved by itself; one that the adapter trains apart is.
        """
        names = dict.fromkeys(self.checkpoint.specs)
        if self.adapter is not None:
            for out in self.adapter.tying.tied:
                names.pop(out, None)
            names |= dict.fromkeys(self.adapter.tying.untied)
        return names.keys()

    def stored_name(self, name: str) -> str:
        """Under which name the checkpoint stores the base of tensor `name`: an output that it ties is the input's."""
        return name if name in self.checkpoint.specs else self.checkpoint.tied.get(name, name)

    def notes(self, name: str) -> tuple[str, ...]:
        """What the user should know of the tensor `name`."""
        if self.adapter is None:
            return ()
        notes = self.adapter.tying.notes(name, doubled=self.mergekit_bugs)
        return tuple(f"{self.label}: {note}" for note in notes)

    def tensor(self, name: str) -> TensorInput:
        """The tensor called `name`, with what the adapter adds to it; made once."""
        if name not in self._made:
            tensor: TensorInput = StoredTensor(self.checkpoint, self.stored_name(name), as_name=name)
            if self.adapter is not None:
                loaded_as = loaded_dtype(self.checkpoint)
                for part in self.adapter.tying.parts(name, doubled=self.mergekit_bugs):
                    tensor = adapted_tensor(tensor, self.adapter, part, precise=self.precise, loaded_as=loaded_as)
            self._made[name] = tensor
        return self._made[name]


class Models(Closing):
    """Opens models; a context manager that closes them all.

    Args:
        precise: as in `Model`.
        mergekit_bugs: as in `Model`.
        rename: what to open for a path in place of it: an intermediate merge for its name.
        download: whether models that are not on this machine may be downloaded.
        hub: where tensor files that are not on this machine are read by range; None to download them.
    """

    def __init__(
        self,
        *,
        precise: bool = False,
        mergekit_bugs: bool = False,
        rename: Callable[[str], str] | None = None,
        download: bool = True,
        hub: Hub | None = None,
    ) -> None:
        self._precise = precise
        self._mergekit_bugs = mergekit_bugs
        self._download = download
        self._hub = hub if download else None
        self._located: dict[tuple[str, str | None], Located] = {}
        self._rename = rename or (lambda path: path)
        self._checkpoints: dict[Path, Checkpoint] = {}
        self._adapters: list[Adapter] = []
        self._models: dict[ModelReference, Model] = {}

    def open(self, reference: ModelReference) -> Model:
        """The model that `reference` names; the same one each time.

        Raises:
            CheckpointError, AdapterError: it is not there, or cannot be read.
        """
        if reference not in self._models:
            checkpoint = self._checkpoint(self._find(reference.model))
            adapter = None
            if reference.lora is not None:
                path, commit = self._find(reference.lora)
                adapter = Adapter(path, checkpoint, for_merging=True, commit=commit)
                self._adapters.append(adapter)
            self._models[reference] = Model(reference, checkpoint, adapter, self._precise, self._mergekit_bugs)
        return self._models[reference]

    def locate(self, path: ModelPath) -> Path:
        """The folder of a checkpoint or adapter on this machine; downloaded if need be, all or without its weights."""
        return self._find(path).path

    def open_all(self, references: Iterable[tuple[str, ModelReference]]) -> None:
        """Open what `references` (place in the recipe, reference) name, or raise with all that cannot be opened."""
        failures: dict[ModelReference, tuple[str, WsmergeError]] = {}
        for place, reference in references:
            if reference in failures:
                continue
            try:
                self.open(reference)
            except WsmergeError as error:
                failures[reference] = (place, error)
        _raise_failures(list(failures.values()))

    @property
    def opened(self) -> tuple[Model, ...]:
        """Every model, in the order of opening."""
        return tuple(self._models.values())

    @property
    def files(self) -> tuple[Checkpoint | Adapter, ...]:
        """Every checkpoint and adapter."""
        return (*self._checkpoints.values(), *self._adapters)

    def close(self) -> None:
        """Close all files."""
        for item in self.files:
            item.close()

    def _find(self, path: ModelPath) -> Located:
        """Where a model is; a branch of the Hub is looked up once, so that all places mean the same commit."""
        key = self._rename(path.path), path.revision
        if key not in self._located:
            if self._hub is None:
                self._located[key] = Located(locate_model(key[0], revision=key[1], download=self._download))
            else:
                self._located[key] = locate_streamed(key[0], self._hub, revision=key[1])
        return self._located[key]

    def _checkpoint(self, located: Located) -> Checkpoint:
        if located.path not in self._checkpoints:
            self._checkpoints[located.path] = Checkpoint(*located)
        return self._checkpoints[located.path]


def _raise_failures(failures: list[tuple[str, WsmergeError]]) -> None:
    if not failures:
        return
    place, first = failures[0]
    if len(failures) == 1:
        where = f"{place}: {first.where}" if first.where else place
        raise type(first)(first.message, where=where, hint=first.hint, details=first.details) from first
    lines = [f"{place}: {f'{error.where}: ' if error.where else ''}{error.message}" for place, error in failures]
    hints = dict.fromkeys(error.hint for _, error in failures if error.hint)
    raise CheckpointError("models of the recipe cannot be opened", hint="; ".join(hints) or None, details=tuple(lines))
