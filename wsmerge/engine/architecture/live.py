"""Architectures for which mergekit's own code is needed: those that it defines in Python, and those that it infers.

Importing it takes seconds, so that happens here only, when such an architecture is met.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from wsmerge.engine.architecture.config_values import count_at, full_config
from wsmerge.engine.architecture.definitions import DefinedModule
from wsmerge.engine.architecture.weights import Architecture, Config, Weight
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.errors import CheckpointError

__all__ = ["PYTHON_DEFINED", "CannotInferError", "inferred", "python_defined"]

# Each architecture that mergekit defines in Python, and its class in mergekit.architecture.
PYTHON_DEFINED: Final = {
    "AfmoeForCausalLM": "AfmoeModuleArchitecture",
    "Glm4MoeForCausalLM": "Glm4MoeModuleArchitecture",
}


class CannotInferError(CheckpointError):
    """mergekit, or transformers for it, fails at making a model without weights."""


@dataclass
class LiveModule:
    """A module of mergekit's own.

    Attributes:
        made_of: gives mergekit's module for a transformers configuration; its weights depend on more than the layer.
        num_layers_key: the key of `config.json` that counts the layers.
    """

    made_of: Callable[[Any], Any]
    num_layers_key: str | None
    _last: tuple[Config, Any, Any] | None = field(default=None, repr=False)

    def num_layers(self, config: Config) -> int:
        """How many layers a checkpoint with this `config` has."""
        return count_at(config, self.num_layers_key or "num_hidden_layers")

    def pre(self, config: Config) -> tuple[Weight, ...]:
        """The weights before the first layer."""
        module, full = self._configured(config)
        return tuple(map(_weight, module.pre_weights(full)))

    def layer(self, config: Config, index: int) -> tuple[Weight, ...]:
        """The weights of layer `index`."""
        module, full = self._configured(config)
        return tuple(map(_weight, module.layer_weights(index, full)))

    def post(self, config: Config) -> tuple[Weight, ...]:
        """The weights after the last layer."""
        module, full = self._configured(config)
        return tuple(map(_weight, module.post_weights(full)))

    def _configured(self, config: Config) -> tuple[Any, Any]:
        last = self._last
        if last is None or last[0] is not config:
            full = full_config(config, needed="model_type")
            self._last = last = (config, self.made_of(full), full)
        return last[1], last[2]


def python_defined(name: str, config: Config) -> Architecture:
    """One of `PYTHON_DEFINED`, for checkpoints whose `config` is like this one."""
    import mergekit.architecture  # noqa: PLC0415 - takes seconds, and few architectures need it

    kind = getattr(mergekit.architecture, PYTHON_DEFINED[name])
    key = kind.from_config(full_config(config, needed="model_type")).num_layers_config_key()
    return Architecture(name=name, modules={"default": LiveModule(kind.from_config, key)})


def inferred(
    name: str, checkpoints: Sequence[Checkpoint], base: Checkpoint, *, trust_remote_code: bool = False
) -> Architecture:
    """What mergekit infers from the tensors of all checkpoints, and from transformers' model of the base.

    mergekit collects the weights in sets; here they are sorted, so that every run has the same order.

    Args:
        name: the base's architecture, by which transformers finds the model.
        checkpoints: every input.
        base: the one that transformers' model is made of, without weights.
        trust_remote_code: whether code that comes with a checkpoint may be run for that.

    Raises:
        CannotInferError: mergekit fails.
        CheckpointError: the checkpoints are no folders of this machine.
    """
    from mergekit.architecture.auto import infer_architecture_info  # noqa: PLC0415 - takes seconds
    from mergekit.common import ModelPath, ModelReference  # noqa: PLC0415 - see above
    from mergekit.options import MergeOptions  # noqa: PLC0415 - see above

    files = [str(checkpoint.path) for checkpoint in (base, *checkpoints) if not checkpoint.path.is_dir()]
    if files:
        raise CheckpointError(
            f"no definition of {name} exists, and from a single file none can be inferred",
            where=", ".join(dict.fromkeys(files)),
            hint="give the folder that holds the file and its config.json",
        )

    streamed = [checkpoint.label for checkpoint in (base, *checkpoints) if checkpoint.commit is not None]
    if streamed:
        raise CheckpointError(
            f"no definition of {name} exists, and mergekit infers one only from tensor files that are here",
            where=", ".join(dict.fromkeys(streamed)),
            hint="leave --stream out, so that they are downloaded",
        )

    def reference(checkpoint: Checkpoint) -> Any:  # noqa: ANN401 - mergekit's
        # In parts, since a path may hold `@` or `+`.
        return ModelReference(model=ModelPath(path=str(checkpoint.path)), override_architecture=name)

    # mergekit remembers what it inferred for a path; a folder may have been written again since.
    infer = getattr(infer_architecture_info, "__wrapped__", infer_architecture_info)
    options = MergeOptions(trust_remote_code=trust_remote_code)
    try:
        with _own_log():
            found = infer(tuple(map(reference, checkpoints)), reference(base), options)
    except Exception as error:
        raise CannotInferError(
            f"no definition of {name} exists, and mergekit cannot infer one: {error}",
            where=str(base.path),
            hint="check config.json, or name a known architecture with override_architecture",
        ) from error
    modules = {key: _inferred_module(key, found.modules[key].architecture) for key in sorted(found.modules)}
    return Architecture(name=name, modules=modules, is_inferred=True)


def _inferred_module(key: str, module: Any) -> DefinedModule:  # noqa: ANN401 - mergekit's
    definition = module.definition
    # In a module that is named after its prefix, mergekit cuts that prefix off the weights outside the layers.
    prefix = "" if key == "default" else key
    return DefinedModule(
        num_layers_key=None,
        before=_sorted(definition.pre_weights, prefix),
        in_layer=_sorted(definition.layer_templates.weights),
        after=_sorted(definition.post_weights, prefix),
        layer_count=definition.override_num_layers,
    )


def _sorted(weights: Iterable[Any], prefix: str = "") -> tuple[Weight, ...]:
    return tuple(sorted((_weight(weight, prefix) for weight in weights), key=lambda weight: weight.name))


def _weight(weight: Any, prefix: str = "") -> Weight:  # noqa: ANN401 - mergekit's
    return Weight(
        name=prefix + weight.name,
        vocabulary_axis=weight.vocabulary_axis,
        optional=weight.optional,
        aliases=tuple(weight.aliases or ()),
        tied_names=tuple(weight.tied_names or ()),
        force_dtype=weight.force_dtype,
    )


@contextmanager
def _own_log() -> Iterator[None]:
    """Keep mergekit's log out of the terminal, and from setting logging up for the whole process."""
    root, silent = logging.getLogger(), logging.NullHandler()
    root.addHandler(silent)
    try:
        yield
    finally:
        root.removeHandler(silent)
