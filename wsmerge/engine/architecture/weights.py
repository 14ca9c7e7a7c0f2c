"""What a model of one architecture is made of: weights before, in and after its layers, module by module.

    Architecture                      LlamaForCausalLM
    `-- modules["default"]            most have this one; a vision-language model has three
        |-- pre(config)               model.embed_tokens.weight
        |-- layer(config, 0) ...      model.layers.0.self_attn.q_proj.weight, ...
        `-- post(config)              model.norm.weight, lm_head.weight

A checkpoint may store a weight under its name or an alias, or not at all where it is tied to another one:

    stored name = first of (name, *aliases, *tied names) that is there
    present     = name or an alias is there
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["Architecture", "Config", "ModuleArchitecture", "Weight", "all_weights", "is_present", "resolve_name"]

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor that a model has.

    Attributes:
        name: what a merged checkpoint calls it.
        vocabulary_axis: the axis that token ids count along, None where there is none.
        optional: whether a model may lack it.
        aliases: other names under which a checkpoint may store it.
        tied_names: tensors that hold its values where it is not stored.
        force_dtype: the dtype that it must have, by torch's name, whatever the recipe says.
    """

    name: str
    vocabulary_axis: int | None = None
    optional: bool = False
    aliases: tuple[str, ...] = ()
    tied_names: tuple[str, ...] = ()
    force_dtype: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Every name under which its values may be stored, the first choice first."""
        return (self.name, *self.aliases, *self.tied_names)


class ModuleArchitecture(Protocol):
    """The weights of one module, given the `config.json` of a checkpoint; names are those of the whole checkpoint."""

    @property
    def num_layers_key(self) -> str | None:
        """The key of `config.json` that counts the layers, dotted where it is nested; None where there is none."""

    def num_layers(self, config: Config) -> int:
        """How many layers a checkpoint has.

        Raises:
            CheckpointError: `config` does not say, and transformers knows no default for it.
        """

    def pre(self, config: Config) -> tuple[Weight, ...]:
        """The weights before the first layer."""

    def layer(self, config: Config, index: int) -> tuple[Weight, ...]:
        """The weights of layer `index`, in the same order for every layer and every checkpoint."""

    def post(self, config: Config) -> tuple[Weight, ...]:
        """The weights after the last layer."""


@dataclass(frozen=True)
class Architecture:
    """What the checkpoints of one architecture are made of.

    Attributes:
        name: as `architectures` of `config.json` has it.
        modules: by name; `default` where there is only one.
        tagalong_files: files beside the weights that a merged checkpoint needs as well.
        vocab_size_key: the key of `config.json` that holds the size of the vocabulary, dotted where it is nested.
        post_fill: whether parameters that no module names are to be filled in from the base afterwards; no architecture of
            mergekit 0.1.5 asks for it.
        is_inferred: whether no definition exists, so that the inputs' tensors and transformers tell.
    """

    name: str
    modules: Mapping[str, ModuleArchitecture]
    tagalong_files: tuple[str, ...] = ()
    vocab_size_key: str = "vocab_size"
    post_fill: bool = False
    is_inferred: bool = False


def all_weights(architecture: Architecture, config: Config) -> Iterator[Weight]:
    """Every weight of a checkpoint with this `config`, module by module, from first to last."""
    for module in architecture.modules.values():
        yield from module.pre(config)
        for index in range(module.num_layers(config)):
            yield from module.layer(config, index)
        yield from module.post(config)


def resolve_name(weight: Weight, names: Container[str]) -> str | None:
    """The first of a weight's names that is in `names`, None where none is."""
    return next((name for name in weight.names if name in names), None)


def is_present(weight: Weight, names: Container[str]) -> bool:
    """Whether `names` holds the weight itself; values that it only shares with a tied tensor do not count."""
    return weight.name in names or any(alias in names for alias in weight.aliases)
