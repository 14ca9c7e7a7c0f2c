"""Architectures that the installed mergekit defines as data, read without importing its code.

Each is a JSON file of the package `mergekit._data.architectures`: one module, or several where `kind` is `modular`. Names
hold `${layer_index}` and `${num_layers}`, also with `+1` or `-1` inside the braces.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any, Final

from wsmerge.engine.architecture.config_values import count_at
from wsmerge.engine.architecture.weights import Architecture, Config, Weight
from wsmerge.errors import CheckpointError

__all__ = ["DefinedModule", "Definition", "defined_names", "definitions_of"]

_PACKAGE: Final = "mergekit._data.architectures"
_NAMES: Final = re.compile(r'"architectures"\s*:\s*\[([^\]]*)\]')
_NUMBER: Final = re.compile(r"\$\{(num_layers|layer_index)([+-]1)?\}")


@dataclass(frozen=True)
class DefinedModule:
    """A module whose weights are templates.

    Attributes:
        num_layers_key: the key of `config.json` that counts the layers.
        before: templates of the weights before the layers.
        in_layer: templates of one layer's weights.
        after: templates of the weights after the layers.
        layer_count: of a module whose definition fixes it.
    """

    num_layers_key: str | None
    before: tuple[Weight, ...]
    in_layer: tuple[Weight, ...]
    after: tuple[Weight, ...]
    layer_count: int | None = None

    def num_layers(self, config: Config) -> int:
        """How many layers a checkpoint with this `config` has."""
        if self.layer_count is not None:
            return self.layer_count
        if self.num_layers_key is None:
            raise CheckpointError("the architecture's definition does not say where config.json counts the layers")
        return count_at(config, self.num_layers_key)

    def pre(self, config: Config) -> tuple[Weight, ...]:
        """The weights before the first layer."""
        return tuple(self._filled(template, config, None) for template in self.before)

    def layer(self, config: Config, index: int) -> tuple[Weight, ...]:
        """The weights of layer `index`."""
        return tuple(self._filled(template, config, index) for template in self.in_layer)

    def post(self, config: Config) -> tuple[Weight, ...]:
        """The weights after the last layer."""
        return tuple(self._filled(template, config, None) for template in self.after)

    def _filled(self, template: Weight, config: Config, index: int | None) -> Weight:
        if not any("${" in name for name in template.names):
            return template

        def number(match: re.Match[str]) -> str:
            counted = index if match[1] == "layer_index" else self.num_layers(config)
            if counted is None:
                raise CheckpointError("the architecture's definition names a layer outside the layers", where=match[0])
            return str(counted + int(match[2] or 0))

        def fill(name: str) -> str:
            return _NUMBER.sub(number, name)

        return replace(
            template,
            name=fill(template.name),
            aliases=tuple(map(fill, template.aliases)),
            tied_names=tuple(map(fill, template.tied_names)),
        )


@dataclass(frozen=True)
class Definition:
    """One file of definitions.

    Attributes:
        file: its name; two checkpoints are of one architecture if they have the same.
        model_type: of the checkpoints that it is for, where several define one name.
        architecture: what it defines; named after the first of its names.
    """

    file: str
    model_type: str
    architecture: Architecture


def definitions_of(name: str) -> tuple[Definition, ...]:
    """Every definition of the architecture `name`, by file name."""
    return tuple(_definition(file) for file in _files_by_name().get(name, ()))


def defined_names() -> tuple[str, ...]:
    """The names of all architectures that are defined, sorted."""
    return tuple(sorted(_files_by_name()))


@cache
def _files_by_name() -> Mapping[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for file in sorted(resources.files(_PACKAGE).iterdir(), key=lambda file: file.name):
        if not file.name.lower().endswith(".json"):
            continue
        text = file.read_text(encoding="utf-8")
        # Parsing all files only to find one would take the time of everything else together. A file of several modules has
        # such a list in each of them: then only its own counts.
        lists = _NAMES.findall(text)
        names = json.loads(f"[{lists[0]}]") if len(lists) == 1 else json.loads(text)["architectures"]
        for name in names:
            found.setdefault(name, []).append(file.name)
    return {name: tuple(files) for name, files in found.items()}


@cache
def _definition(file: str) -> Definition:
    data = json.loads((resources.files(_PACKAGE) / file).read_text(encoding="utf-8"))
    kind = data.get("kind", "module")
    if kind == "modular":
        modules = {
            name: _module(module["architecture"], module.get("weight_prefix") or "")
            for name, module in data["modules"].items()
        }
    elif kind == "module":
        modules = {"default": _module(data, "")}
    else:
        raise CheckpointError(
            f"the installed mergekit defines an architecture of an unknown kind: {kind!r}",
            where=file,
            hint="install the version of mergekit that wsmerge asks for",
        )
    architecture = Architecture(
        name=data["architectures"][0],
        modules=modules,
        tagalong_files=tuple(data.get("tagalong_files") or ()) if kind == "modular" else (),
        vocab_size_key=(data.get("vocab_size_config_key") if kind == "modular" else None) or "vocab_size",
    )
    return Definition(file, data["model_type"], architecture)


def _module(data: Mapping[str, Any], prefix: str) -> DefinedModule:
    return DefinedModule(
        num_layers_key=data.get("num_layers_config_key"),
        before=tuple(_weight(entry, prefix) for entry in data["pre_weights"]),
        in_layer=tuple(_weight(entry, prefix) for entry in data["layer_templates"]["weights"]),
        after=tuple(_weight(entry, prefix) for entry in data["post_weights"]),
        layer_count=data.get("override_num_layers"),
    )


def _weight(entry: Mapping[str, Any], prefix: str) -> Weight:
    return Weight(
        name=prefix + entry["name"],
        vocabulary_axis=entry.get("vocabulary_axis"),
        optional=entry.get("optional", False),
        aliases=tuple(prefix + name for name in entry.get("aliases") or ()),
        tied_names=tuple(prefix + name for name in entry.get("tied_names") or ()),
        force_dtype=entry.get("force_dtype"),
    )
