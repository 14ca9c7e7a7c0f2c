"""Everything that a sweep works with, opened: directions, adapters, pairs, and the model once it is needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from wsmerge.core.closing import Closing
from wsmerge.core.files import file_sha256
from wsmerge.core.tensors import DeltaSource
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.engine.locate import locate_model
from wsmerge.errors import UsageError
from wsmerge.registry import Direction, Registry, open_reference
from wsmerge.steering.baselines import (
    ActivationSteering,
    FirstTokenBias,
    Method,
    Subject,
    SystemPrompt,
    WeightSteering,
    response_difference,
)
from wsmerge.steering.extraction import extract_deltas
from wsmerge.steering.held import Steering
from wsmerge.steering.loading import load_model, load_tokenizer
from wsmerge.steering.pairs import Pair, load_pairs
from wsmerge.steering.similarity.nulls import NullDirection
from wsmerge.steering.sweep.config import Activation, ControlKind, MethodConfig, SweepConfig
from wsmerge.steering.sweep.items import spread
from wsmerge.steering.sweep.results import FINE_TUNE
from wsmerge.steering.sweep.running import Contestant
from wsmerge.steering.training.data import hold_out

__all__ = ["Lab"]

_BASE = "base"


class Lab(Closing):
    """What a sweep file names, opened; a context manager.

    Attributes:
        sources: directions and adapters as directions, by what the file calls them.
        models: the folder of the base, and of a fine-tune that is a checkpoint.

    Raises:
        WsmergeError: something that is not there, or does not fit the base.
    """

    def __init__(self, config: SweepConfig, folder: Path, store: Registry) -> None:
        self._config = config
        self._folder = folder
        self._store = store
        self.sources: dict[str, DeltaSource] = {}
        self._random: dict[str, DeltaSource] = {}
        self.models: dict[str, Path] = {_BASE: self._located(config.base, config.revision)}
        files = {method.pairs for method in config.methods if method.pairs is not None}
        self._pairs = {file: load_pairs(folder / file) for file in sorted(files)}
        with ExitStack() as stack:
            self._open(stack)
            self._stack = stack.pop_all()
        self._differences: dict[tuple[str, int | None], torch.Tensor] = {}

    def close(self) -> None:
        """Give the model its own weights again, and close the directions."""
        self._stack.close()

    @cached_property
    def subject(self) -> Subject:
        """The model under study, with its fine-tune where that is an adapter."""
        if FINE_TUNE in self.sources:
            self._steering.set({FINE_TUNE: 1.0})
        return self._plain

    @contextmanager
    def original(self) -> Iterator[Subject]:
        """The base without the fine-tune."""
        if FINE_TUNE in self.sources:
            with self._steering.at({}):
                yield self._plain
        else:
            yield self._load(self.models[_BASE])

    def contestants(self) -> list[Contestant]:
        """The methods, each to be made once the model is needed."""
        found: list[Contestant] = []
        for method in self._config.methods:
            strengths, stops = self._config.strengths(method), self._config.stops(method)
            levels = self._config.levels(method)
            found.append(
                Contestant(
                    method.name,
                    strengths,
                    partial(self._make, method),
                    self._candidates(method.activation),
                    method.activation.choose_at if method.activation is not None else 1.0,
                    levels=levels,
                    stops=stops,
                )
            )
            for label in self._config.random_names(method):
                # The layer is that of activation steering, which has no random directions.
                make = partial(lambda method, label, _: self._weights(method, label), method, label)
                found.append(Contestant(label, strengths, make, levels=levels, stops=stops, control_of=method.name))
        return found

    def _open(self, stack: ExitStack) -> None:
        config = self._config
        if config.repair is not None:
            tuned = self._located(config.repair.model)
            if (tuned / "adapter_config.json").is_file():
                self.sources[FINE_TUNE] = self._tuned(tuned, stack)
            else:
                self.models[FINE_TUNE] = tuned
        for method in config.methods:
            if method.adapter is not None and method.adapter.path not in self.sources:
                self.sources[method.adapter.path] = self._tuned(self._located(method.adapter.path), stack)
            for name in method.weights or ():
                if name not in self.sources:
                    opened = open_reference(self._reference(name), self._store)
                    self.sources[name] = stack.enter_context(opened)
            for label, kind, draw in config.random_directions(method):
                for name in _directions(method):
                    seed = config.controls.seed if config.controls is not None else 0
                    self._random[_random_name(label, name)] = _random(self.sources[name], name, seed, draw, kind)

    def _located(self, text: str, revision: str | None = None) -> Path:
        """A model's folder: relative to the sweep file, else as anywhere."""
        beside = self._folder / text
        return beside if beside.exists() else locate_model(text, revision=revision)

    def _reference(self, text: str) -> str:
        return str((self._folder / text).absolute()) if text.startswith(("./", "../")) else text

    def _tuned(self, path: Path, stack: ExitStack) -> DeltaSource:
        base = stack.enter_context(Checkpoint(self.models[_BASE]))
        return stack.enter_context(extract_deltas(base, path, check_base_names=False))

    def _load(self, folder: Path) -> Subject:
        model = load_model(folder, dtype=self._config.dtype, device=self._config.device)
        return Subject(model, load_tokenizer(self.models[_BASE], self._config.template_args))

    @cached_property
    def _plain(self) -> Subject:
        return self._load(self.models.get(FINE_TUNE, self.models[_BASE]))

    @cached_property
    def _steering(self) -> Steering:
        return self._stack.enter_context(Steering(self._plain.model, {**self.sources, **self._random}))

    def _candidates(self, settings: Activation | None) -> tuple[int, ...]:
        if settings is None or settings.layer != "choose":
            return ()
        if settings.candidates is not None:
            return settings.candidates
        return tuple(range(self._plain.model.config.get_text_config().num_hidden_layers))

    def _make(self, method: MethodConfig, layer: int | None) -> Method:
        if method.system_prompt is not None:
            return SystemPrompt(method.system_prompt.plus, method.system_prompt.minus, method.name)
        if method.first_token is not None:
            rows = self._rows(method.first_token.pairs)
            return FirstTokenBias.from_pairs(method.name, self.subject.tokenizer, rows)
        if method.activation is not None:
            chosen = layer if layer is not None else method.activation.layer
            differences = self._difference(method.activation)
            if isinstance(chosen, int):
                return ActivationSteering.at_layer(method.name, differences, chosen)
            return ActivationSteering.at_all_layers(method.name, differences)
        return self._weights(method, None)

    def _weights(self, method: MethodConfig, random: str | None) -> Method:
        """A method by weights, with its own directions or with the random ones of a label in their places."""
        weights = _directions(method)
        if random is not None:
            weights = {_random_name(random, name): weight for name, weight in weights.items()}
        return WeightSteering(random or method.name, self._steering, weights)

    def notes(self) -> Iterator[str]:
        """Where a method that reads pairs reads other rows than a direction of the sweep was trained on."""
        for method in self._config.methods:
            if method.pairs is None:
                continue
            read = method.activation.items if method.activation is not None else None
            digest = self._digest(method.pairs)
            for name, direction in self._published():
                trained = _trained_on(direction)
                if trained and digest not in trained:
                    yield f"{method.name}: reads {method.pairs}, and {name} was trained on other rows"
                elif trained and read is not None and read < (rows := len(self._rows(method.pairs))):
                    yield f"{method.name}: reads {read} of the {rows} rows that {name} was trained on"

    def _published(self) -> Iterator[tuple[str, Direction]]:
        return ((name, source) for name, source in self.sources.items() if isinstance(source, Direction))

    def _digest(self, pairs: str) -> str:
        return file_sha256(self._folder / pairs)

    def _rows(self, pairs: str) -> Sequence[Pair]:
        """The rows of a pair file; without those that the training of a direction on that file held out."""
        rows = self._pairs[pairs]
        for _, direction in self._published():
            training = direction.manifest.poles[0].training if direction.manifest.poles else {}
            share = training.get("validation_share")
            if share and self._digest(pairs) in _trained_on(direction):
                return hold_out(rows, share, training.get("seed", 0))[0]
        return rows

    def _difference(self, settings: Activation) -> torch.Tensor:
        key = settings.pairs, settings.items
        if key not in self._differences:
            # As some in every pair file do, rows may have the same two answers.
            pairs = [pair for pair in self._rows(settings.pairs) if pair.plus != pair.minus]
            chosen = pairs if settings.items is None else spread(pairs, settings.items)
            self._differences[key] = response_difference(self.subject, chosen, batch_size=self._config.batch_size)
        return self._differences[key]


def _directions(method: MethodConfig) -> dict[str, Any]:
    """The directions that a method adds, by what the file calls them, and their weights."""
    if method.adapter is not None:
        return {method.adapter.path: -1.0 if method.adapter.negated else 1.0}
    return method.weights or {}


def _random(source: DeltaSource, name: str, seed: int, draw: int, kind: ControlKind) -> NullDirection:
    if kind == "subspaces" and all(source.rank(tensor) is None for tensor in source.shapes):
        raise UsageError(
            "has no low-rank delta, so that random directions have no subspaces to keep",
            where=name,
            hint="leave `subspaces` out of controls.kinds",
        )
    return NullDirection(source, seed=seed, draw=draw, keep_subspaces=kind == "subspaces")


def _random_name(label: str, name: str) -> str:
    return f"{label}: {name}"


def _trained_on(direction: Direction) -> set[str]:
    """The digests of the files that a direction was trained on, where its manifest has them."""
    records = direction.manifest.datasets
    return {one.sha256 for one in records if one.split in ("train", None) and one.sha256 is not None}
