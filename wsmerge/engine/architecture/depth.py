"""The configuration of a model that a recipe stacks of layers, and whether transformers makes that model of it.

Layer i of the output is layer s(i) of a source, and `config.json` has to say so: by the number of layers, by lists of one entry
a layer, by indices of layers, by how many of the first are dense. Which keys those are, and whether they are enough, is found
by building models without storage from the donor's configuration and from the output's:

    lists of layers    those that the recipe stacks are as long as it says, and no others changed
    each layer         has the modules, shapes and settings of the layer that it comes from
    everything else    has the names and shapes that it had

A setting counts if it differs between the donor's layers and does not merely follow their position. One that all layers share
and transformers takes from their number (the scale of residuals in MiniCPM) cannot be kept, and is told. Models that transformers
does not know, or cannot build, are taken at their definition's word.
"""

from __future__ import annotations

import copy
import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

from wsmerge.engine.architecture.config_values import full_config
from wsmerge.engine.architecture.weights import Config
from wsmerge.engine.output_config import holders, output_config, per_layer_keys
from wsmerge.engine.tying import TEXT_SECTIONS
from wsmerge.errors import CheckpointError

__all__ = ["Stack", "is_uniform", "stacked_config", "tensors_in_memory"]

# Of these, all layers are alike: their definitions are enough, and transformers need not be loaded, which takes seconds.
_UNIFORM: Final = frozenset(
    {
        "llama",
        "mistral",
        "mixtral",
        "gpt2",
        "gpt_neox",
        "phi",
        "phi3",
        "stablelm",
        "starcoder2",
        "internlm2",
        "baichuan",
    }
)
_COUNTS: Final = re.compile(r"layers?|depth|blocks?")
_IRRELEVANT: Final = frozenset({"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache"})

Setting = bool | int | float | str | None
Source = tuple[Config, int]
StoredNames = Callable[[str], Collection[str]]


@dataclass(frozen=True, slots=True)
class Stack:
    """Layers of a module, put together anew.

    Attributes:
        module: what the names of the layers' tensors begin with, before the layer's number.
        key: where `config.json` counts its layers, dotted; None where that is to be found out.
        before: the donor's number of layers.
        layers: for each layer of the output its sources, each a configuration and the layer's number there.
    """

    module: str
    key: str | None
    before: int
    layers: Sequence[Sequence[Source]]

    @property
    def sources(self) -> list[int]:
        """For each layer of the output, the number of the first source's layer."""
        return [sources[0][1] for sources in self.layers]

    @property
    def is_unmoved(self) -> bool:
        """Whether each layer of the output is where it was in every source."""
        places = [[layer for _, layer in sources] for sources in self.layers]
        return len(self.layers) == self.before and all(set(layers) == {n} for n, layers in enumerate(places))


def stacked_config(
    donor: Config, stacks: Sequence[Stack], *, name: str, stored: StoredNames, where: str
) -> tuple[dict[str, Any], list[str]]:
    """The donor's configuration with the layers of `stacks`, and what the user should know of it.

    Args:
        donor: `config.json` of the model that the output's configuration comes from.
        stacks: modules whose layers are not simply the donor's.
        name: the donor's class, as `architectures` names it.
        stored: the names under which the donor stores what a tensor in memory is made of.
        where: the donor, named in errors.

    Raises:
        CheckpointError: transformers would make another model of the configuration than the recipe does.
    """
    known = all(stack.key for stack in stacks)
    if known and is_uniform(donor):
        return _written(donor, {str(stack.key): stack for stack in stacks}), []
    built = _Skeletons(name)
    try:
        original = built.of(donor)
    except _CannotBuildError as error:
        if known:
            return _written(donor, {str(stack.key): stack for stack in stacks}), []
        raise CheckpointError(
            f"what its config.json has to say of other layers can only be found out with transformers, and {error}",
            where=where,
            hint="merge whole models, or install what transformers asks for",
        ) from error
    config: dict[str, Any] = copy.deepcopy(dict(donor))
    moved: dict[str, Stack] = {}
    for stack in stacks:
        if _held_as(stack.module, original, stored) not in moved:
            alike = {other.module for other in stacks if other.layers == stack.layers}
            config, names = _followed(config, stack, alike, built, stored, where)
            moved |= dict.fromkeys(names, stack)
    try:
        result = built.of(config)
    except _CannotBuildError as error:
        raise _refusal(where, [str(error)]) from error
    problems = list(_differences(original, result, moved, built))
    if problems:
        raise _refusal(where, problems)
    return config, list(_rescaled(original, result, moved))


def is_uniform(config: Config) -> bool:
    """Whether all layers are alike by the architecture's definition, so that only their number is to be told."""
    return config.get("model_type") in _UNIFORM


def tensors_in_memory(config: Config) -> dict[tuple[str, ...], tuple[int, ...]]:
    """The shape of each tensor that transformers' model of `config` has, by all its names in memory; none where none is made."""
    named = config.get("architectures")
    try:
        model = _Skeletons(str(named[0]) if isinstance(named, list) and named else "").of(config).model
    except _CannotBuildError:
        return {}
    model.tie_weights()
    found: dict[int, list[str]] = {}
    state = model.state_dict(keep_vars=True)
    for name, tensor in state.items():
        found.setdefault(id(tensor), []).append(name)
    return {tuple(names): tuple(state[names[0]].shape) for names in found.values()}


def _written(config: Config, stacks: Mapping[str, Stack]) -> dict[str, Any]:
    layers = {key: len(stack.layers) for key, stack in stacks.items()}
    return output_config(config, layers=layers, source_layers={key: stack.sources for key, stack in stacks.items()})


def _refusal(where: str, problems: Sequence[str]) -> CheckpointError:
    return CheckpointError(
        "config.json cannot say which layers the recipe puts where, so the output would not load as it is meant",
        where=where,
        hint="take layers from places where the model has the same kind of layer, or merge whole models",
        details=tuple(dict.fromkeys(problems)),
    )


class _CannotBuildError(Exception):
    """transformers does not build a model of this configuration; the message says why."""


@dataclass(frozen=True, eq=False)
class _Skeleton:
    """A model without storage, and the configuration that it was made of with all defaults filled in."""

    model: Any
    config: Mapping[str, Any]

    @cached_property
    def lists(self) -> dict[str, Any]:
        """Its lists of modules by name, without those that lie in another one."""
        from torch import nn  # noqa: PLC0415 - heavy

        found: dict[str, Any] = {}
        for name, module in self.model.named_modules():
            if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{outer}.") for outer in found):
                found[name] = module
        return found

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor."""
        return {name: tuple(tensor.shape) for name, tensor in self.model.state_dict().items()}


class _Skeletons:
    """Builds models of one class, each configuration once."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._built: dict[str, _Skeleton | _CannotBuildError] = {}

    def of(self, config: Config) -> _Skeleton:
        """The model that `config` describes.

        Raises:
            _CannotBuildError: transformers cannot build it.
        """
        key = json.dumps({name: value for name, value in config.items() if name not in _IRRELEVANT}, sort_keys=True)
        if key not in self._built:
            try:
                self._built[key] = self._build(config)
            except Exception as error:  # noqa: BLE001 - each configuration class refuses in its own way
                told = " ".join(str(error).split())
                self._built[key] = _CannotBuildError(f"transformers does not build {self._name} of it: {told}")
        found = self._built[key]
        if isinstance(found, _CannotBuildError):
            raise found
        return found

    def _build(self, config: Config) -> _Skeleton:
        import torch  # noqa: PLC0415 - heavy
        import transformers  # noqa: PLC0415 - heavy
        from transformers.initialization import no_init_weights  # noqa: PLC0415 - heavy

        kind = getattr(transformers, self._name, None)
        if kind is None:
            raise _CannotBuildError(f"it has no class {self._name}")
        with _quiet():
            full = full_config(config, needed="number of layers", kind=kind.config_class)
            with torch.device("meta"), no_init_weights():
                model = kind(full)
        return _Skeleton(model, full.to_dict())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what transformers logs and warns of while a configuration is tried."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _followed(
    config: dict[str, Any], stack: Stack, alike: set[str], built: _Skeletons, stored: StoredNames, where: str
) -> tuple[dict[str, Any], list[str]]:
    """The configuration with the layers of one stack, and the names of the lists of layers that it made another length.

    Some architectures keep the parts of a layer in lists of their own, which one key counts; `alike` names the modules that
    the recipe stacks as this one.
    """
    before = built.of(config)
    keys = [stack.key] if stack.key else _candidates(before.config, stack)
    # A recipe that only puts layers in another order changes no length, by which the lists are found.
    longer = stack.layers if len(stack.layers) != stack.before else (*stack.layers, stack.layers[-1])
    expected = {name: _held_as(name, before, stored) for name in alike}
    problems: list[str] = []
    for key in keys:
        try:
            lists = _changed(built.of(_with_layers(config, key, replace(stack, layers=longer), built)), before)
        except _CannotBuildError as error:
            problems.append(str(error))
            continue
        own = expected[stack.module] in lists and set(expected.values()).issuperset(lists)
        if lists and (stack.key or own):
            return _with_layers(config, key, stack, built), lists
    raise _refusal(where, problems or [f"no key of config.json counts the layers of {stack.module} alone"])


def _changed(one: _Skeleton, other: _Skeleton) -> list[str]:
    return [name for name, layers in other.lists.items() if name in one.lists and len(one.lists[name]) != len(layers)]


def _held_as(module: str, skeleton: _Skeleton, stored: StoredNames) -> str:
    """The list of layers in memory that a module is, which may be stored under another prefix."""
    renamed: list[str] = []
    for name in skeleton.lists:
        tensors = [tensor for tensor in skeleton.shapes if tensor.startswith(f"{name}.")]
        if any(source.startswith(f"{module}.") for tensor in tensors for source in stored(tensor)):
            return name
        if not any(tensor in stored(tensor) for tensor in tensors):
            renamed.append(name)
    words = set(module.split(".")) - {"model"}  # transformers renames it elsewhere: the one of the most similar name

    def likeness(name: str) -> tuple[float, bool]:
        parts = set(name.split(".")) - {"model"}
        return len(words & parts) / len(words | parts), name == module

    return max(renamed, key=likeness, default=module)


def _candidates(config: Mapping[str, Any], stack: Stack) -> list[str]:
    """Dotted keys that hold the number of layers, those that sound like the module first."""
    words = set(re.split(r"[._]", stack.module))

    def walk(section: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if "num_hidden_layers" not in section and per_layer_keys(section, stack.before):
            yield (*path, "num_hidden_layers")  # some classes count a list
        for key, value in section.items():
            if isinstance(value, Mapping):
                yield from walk(value, (*path, key))
            elif value == stack.before and isinstance(value, int) and _COUNTS.search(key):
                yield (*path, key)

    def order(path: tuple[str, ...]) -> tuple[int, int, int]:
        parts = {part for key in path for part in re.split(r"[._]", key)}
        return -len(words & parts), -len(parts & {"text", "hidden", "num"}), len(path)

    return [".".join(path) for path in sorted(walk(config, ()), key=order)]


def _with_layers(config: Config, key: str, stack: Stack, built: _Skeletons) -> dict[str, Any]:
    """`config` with the number of layers at `key`, and with what it says of each of them.

    A list that transformers derives from the number of layers is stored where it would come out otherwise.
    """
    written = _written(config, {key: stack})
    wanted = {
        name: [
            _section(built.of(source).config, key).get(name, [None] * (layer + 1))[layer]
            for (source, layer), *_ in stack.layers
        ]
        for name in per_layer_keys(_section(built.of(config).config, key), stack.before)
    }
    try:
        derived = _section(built.of(written).config, key)
    except _CannotBuildError:
        derived = {}
    for section, _ in holders(written, key):
        section.update({name: value for name, value in wanted.items() if derived.get(name) != value})
    return written


def _section(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The section that a dotted key lies in; that of the language model where files of the Hub have it at the top."""
    *path, name = key.split(".")
    for part in path:
        config = config.get(part) or {}
    inner = [config[item] for item in TEXT_SECTIONS if name in (config.get(item) or {})]
    return inner[0] if inner and name not in config else config


def _differences(
    original: _Skeleton, result: _Skeleton, moved: Mapping[str, Stack], built: _Skeletons
) -> Iterator[str]:
    """What is wrong with `result` as the model of the stacked layers, in words."""
    inside = tuple(f"{name}." for name in moved)
    had, has = (
        {name: shape for name, shape in one.shapes.items() if not name.startswith(inside)} for one in (original, result)
    )
    for name in sorted(had.keys() | has.keys()):
        if had.get(name) != has.get(name):
            yield f"{name} would be {_told(has.get(name))} in place of {_told(had.get(name))}"
    for name, stack in moved.items():
        layers = result.lists.get(name, ())
        if len(layers) != len(stack.layers):
            yield f"{name} would have {len(layers)} layers in place of {len(stack.layers)}"
            continue
        varying = _varying(original.lists[name])
        for number, sources in enumerate(stack.layers):
            for config, layer in sources:
                try:
                    source = built.of(config).lists[name][layer]
                except (_CannotBuildError, KeyError, IndexError):
                    continue  # another architecture, which the user allowed to be mixed in
                difference = _unlike(layers[number], source, varying)
                if difference:
                    yield f"{name}.{number} would be another kind of layer than {layer}, which comes there: {difference}"


def _rescaled(original: _Skeleton, result: _Skeleton, moved: Mapping[str, Stack]) -> Iterator[str]:
    """Numbers that all layers share, and that are others in the output since transformers takes them from its depth."""
    for name in moved:
        donors, after = original.lists[name], _settings(result.lists[name][0])
        for key, before in _settings(donors[0]).items():
            shared = isinstance(before, float) and all(_settings(layer).get(key) == before for layer in donors)
            if shared and after.get(key) != before:
                yield (
                    f"{name}: transformers takes {key} of every layer from the number of layers, so it is "
                    f"{after.get(key):.4g} in the output and was {before:.4g}"
                )


def _told(shape: object) -> str:
    return "absent" if shape is None else str(list(shape) if isinstance(shape, tuple) else shape)


def _settings(layer: Any) -> dict[str, Setting]:  # noqa: ANN401 - a torch module
    return {
        f"{name}.{key}".lstrip("."): value
        for name, module in layer.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, bool | int | float | str | None) and not key.startswith("_")
    }


def _varying(layers: Sequence[Any]) -> frozenset[str]:
    """Settings that differ between layers, and not as their numbers or as a function of them would."""
    held: dict[str, dict[int, Setting]] = {}
    for number, layer in enumerate(layers):
        for name, value in _settings(layer).items():
            held.setdefault(name, {})[number] = value
    return frozenset(name for name, values in held.items() if not _follows_position(values))


def _follows_position(values: Mapping[int, Setting]) -> bool:
    """Whether all are the same, or grow evenly with the layers' numbers, or are fractions of which no two layers share one."""
    distinct = set(values.values())
    if len(values) > 1 and len(distinct) == 1:
        return True
    numbers = [(layer, value) for layer, value in values.items() if isinstance(value, int | float)]
    if len(numbers) < len(values) or any(isinstance(value, bool) for value in distinct):
        return len(values) == 1
    if len({value - layer for layer, value in numbers}) == 1:
        return True
    slopes = {(value - numbers[0][1]) / (layer - numbers[0][0]) for layer, value in numbers[1:]}
    evenly = len(numbers) > 2 and len(slopes) == 1
    return evenly or (len(distinct) == len(values) and all(isinstance(value, float) for value in distinct))


def _unlike(layer: Any, source: Any, varying: frozenset[str]) -> str:  # noqa: ANN401 - torch modules
    """How a layer differs from the one whose tensors it gets; empty where it does not."""
    has, gets = (_described(one, varying) for one in (layer, source))
    for name in sorted(has.keys() | gets.keys()):
        if has.get(name) != gets.get(name):
            return f"{name or 'it'} is {_told(has.get(name))} and not {_told(gets.get(name))}"
    return ""


def _described(layer: Any, varying: frozenset[str]) -> dict[str, object]:  # noqa: ANN401 - a torch module
    """Shapes of its tensors, classes of its modules, and the settings by which layers differ."""
    shapes: dict[str, object] = {name: tuple(tensor.shape) for name, tensor in layer.state_dict().items()}
    kinds = {name: type(module).__name__ for name, module in layer.named_modules()}
    return shapes | kinds | {name: value for name, value in _settings(layer).items() if name in varying}
