"""One parameter, several spellings: a checkpoint's names, and those that PEFT and transformers use in memory.

    h.0.attn.c_attn.weight                           a checkpoint without the model's prefix (GPT-2 on the Hub)
    transformer.h.0.attn.c_attn.weight               the model in memory
    language_model.model.layers.0...                 a vision-language checkpoint
    model.language_model.layers.0...                 the same model in memory
    model.layers.0.mlp.experts.3.up_proj.weight      one of the tensors that a parameter of stacked experts is made of
    model.layers.0.mlp.experts.gate_up_proj          the parameter in memory

`ModelNames` is what transformers says, and needs a model, be it one without weights. `CheckpointNames` needs none: it tries
usual respellings, of which only a single hit counts.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from difflib import get_close_matches
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from wsmerge.errors import CheckpointError

__all__ = ["CheckpointNames", "ModelNames", "empty_model", "may_convert", "spread_targets"]

_IN_MEMORY_AND_STORED: Final = (
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.", "vision_tower."),
    ("model.visual.", "visual."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("lm_head.", "language_model.lm_head."),
)
_MAX_HEADS: Final = 64
_MAX_SUGGESTIONS: Final = 8
_MAX_COMPARED: Final = 50_000


class CheckpointNames:
    """The names of one checkpoint, to be found under other spellings.

    Args:
        names: of its tensors; one that is tied to another may be named although it is not stored.
        config: its `config.json`. With it, a name that no usual respelling makes one of these is looked up among those that
            transformers' model has in memory.
    """

    def __init__(self, names: Iterable[str], config: Mapping[str, Any] | None = None) -> None:
        self._names = frozenset(names)
        self._config = config
        heads = {name.partition(".")[0] for name in self._names}
        self._heads = sorted(heads) if len(heads) <= _MAX_HEADS else []  # no model has as many
        self._suggested = 0

    def find(self, name: str) -> str | None:
        """The checkpoint's name of the parameter spelled `name`; None where no spelling fits, or several do."""
        if name in self._names:
            return name
        found = {spelling for spelling in self._spellings(name) if spelling in self._names}
        if len(found) == 1:
            return found.pop()
        loaded = self._converted
        return (loaded.stored(name) or loaded.respelled(name)) if loaded is not None else None

    def made_of(self, name: str) -> tuple[str, ...]:
        """The checkpoint's tensors that the parameter called `name` in memory is made of; empty where none is known."""
        loaded = self._converted
        return loaded.sources.get(name, ()) if loaded is not None else ()

    @property
    def _converted(self) -> ModelNames | None:
        """The names in memory, where some may be others than the stored ones."""
        return self.loaded if self._config is not None and may_convert(self._config) else None

    @cached_property
    def loaded(self) -> ModelNames | None:
        """The names in memory; None without a `config.json`, and where transformers has no such model."""
        if self._config is None:
            return None
        with suppress(CheckpointError):  # a configuration that makes no model tells no names
            model = empty_model(self._config, "")
            return ModelNames(model, self._names) if model is not None else None
        return None

    def suggestion(self, name: str) -> str:
        """`; near: ...` for a message about a name that was not found, or nothing."""
        self._suggested += 1
        if (
            self._suggested > _MAX_SUGGESTIONS or len(self._names) > _MAX_COMPARED
        ):  # comparing is slow, and one wrong prefix repeats in every layer
            return ""
        near = get_close_matches(name, sorted(self._names), n=2)
        return f"; near: {', '.join(near)}" if near else ""

    def _spellings(self, name: str) -> Iterator[str]:
        yield name.partition(".")[2]
        for head in self._heads:
            yield f"{head}.{name}"
        for one, other in _IN_MEMORY_AND_STORED:
            for here, there in ((one, other), (other, one)):
                if name.startswith(here):
                    yield there + name.removeprefix(here)


class ModelNames:
    """Which stored tensors each parameter of a model in memory is made of, by transformers' rules for loading it.

    Attributes:
        sources: the stored tensors of each parameter, by its name in memory: one, for a parameter that is held as it is
            stored. Parameters that nothing stored gives are left out.
        model: as given.
        converted: the names in memory of the others: parameters that are stacked, joined, split or transposed on loading.

    Args:
        model: a transformers model, loaded or empty; what wraps it (PEFT, torch.compile, DistributedDataParallel) is looked
            through.
        stored: names of the checkpoint's tensors; one that is tied to another may be named although it is not stored.
        parameters: names in memory, without what wrappers put around them; those of `model` if None.
    """

    def __init__(self, model: Any, stored: Iterable[str], parameters: Iterable[str] | None = None) -> None:  # noqa: ANN401 - a torch module
        from transformers import PreTrainedModel, conversion_mapping, core_model_loading  # noqa: PLC0415 - takes seconds

        loading: Any = core_model_loading
        inner = next((part for part in model.modules() if isinstance(part, PreTrainedModel)), None)
        transforms = conversion_mapping.get_model_conversion_mapping(inner) if inner is not None else []
        renamings = [item for item in transforms if isinstance(item, loading.WeightRenaming)]
        converters = [item for item in transforms if isinstance(item, loading.WeightConverter)]
        targets_of = {source: item.target_patterns for item in converters for source in item.source_patterns}
        prefix = inner.base_model_prefix if inner is not None else None
        held = dict.fromkeys(parameters if parameters is not None else model.state_dict(), True)

        def loaded_as(name: str) -> tuple[list[str], bool]:
            found, pattern = loading.rename_source_key(name, renamings, converters, prefix, held)
            if found not in held and name in held:  # a name in memory already, which a renaming happens to match
                found, pattern = loading.rename_source_key(name, [], [], prefix, held)
            made = (found,) if pattern is None else spread_targets(found, targets_of[pattern])
            return [target for target in made if target in held], pattern is not None

        self._loaded_as = loaded_as
        sources: dict[str, list[str]] = {}
        self.converted: set[str] = set()
        # Some renamings depend on the names before them, so the order is the loader's.
        for name in sorted(stored, key=loading.dot_natural_key):
            targets, is_converted = loaded_as(name)
            for target in targets:
                sources.setdefault(target, []).append(name)
            self.converted.update(targets if is_converted else ())
        self.model = model
        self.sources: Mapping[str, tuple[str, ...]] = {target: tuple(names) for target, names in sources.items()}
        self._in_memory = {
            names[0]: target
            for target, names in self.sources.items()
            if len(names) == 1 and target not in self.converted
        }

    def stored(self, name: str) -> str | None:
        """The stored name of the parameter that is called `name` in memory; None where it is not held as it is stored."""
        sources = self.sources.get(name, ())
        return sources[0] if len(sources) == 1 and name not in self.converted else None

    def respelled(self, name: str) -> str | None:
        """The stored name of the tensor that another checkpoint of the model would store as `name`."""
        targets, is_converted = self._loaded_as(name)
        return self.stored(targets[0]) if len(targets) == 1 and not is_converted else None

    def in_memory(self, name: str) -> str | None:
        """The name in memory of the tensor that is stored as `name`; None where no parameter holds it as it is."""
        return self._in_memory.get(name)


def empty_model(config: Mapping[str, Any], label: str) -> Any:  # noqa: ANN401 - a transformers model, or None
    """The model that a `config.json` describes, without weights; None of a class that transformers does not have.

    Args:
        config: `config.json`; its first architecture is built.
        label: how messages name the checkpoint.

    Raises:
        CheckpointError: the configuration makes no model.
    """
    import torch  # noqa: PLC0415 - takes seconds, and most work needs no model
    import transformers  # noqa: PLC0415 - as above

    known = transformers.CONFIG_MAPPING
    model_class = getattr(transformers, next(iter(_classes(config)), ""), None)
    if model_class is None or config.get("model_type") not in known:
        return None
    log: Any = transformers.utils.logging
    verbosity = log.get_verbosity()
    log.set_verbosity_error()  # warnings are of settings that matter when a model runs
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return model_class(known[str(config["model_type"])].from_dict(dict(config)))
    except Exception as error:
        raise CheckpointError(
            f"its config.json makes no model: {error}", where=label, hint="check it with transformers"
        ) from error
    finally:
        log.set_verbosity(verbosity)


def spread_targets(renamed: str, patterns: list[str]) -> tuple[str, ...]:
    """Every target of a conversion to several: the first one's name, with each other pattern in its place."""
    before, first, after = renamed.partition(patterns[0])
    return tuple(before + pattern + after for pattern in patterns) if first else (renamed,)


def may_convert(config: Mapping[str, Any]) -> bool:
    """Whether transformers names a model of `config.json` among those that it renames or converts on loading.

    Told without loading it, which takes seconds.
    """
    if "transformers.conversion_mapping" in sys.modules:
        return True  # programs may have registered further ones
    package = find_spec("transformers")
    if package is None or package.origin is None:
        return True
    source = Path(package.origin).with_name("conversion_mapping.py")
    if not source.is_file():
        return True
    text = source.read_text(encoding="utf-8")
    return any(f'"{kind}"' in text for kind in _kinds(config))


def _classes(config: Mapping[str, Any]) -> list[str]:
    named = config.get("architectures")
    return [str(name) for name in named] if isinstance(named, list) else []


def _kinds(config: Mapping[str, Any]) -> Iterator[str]:
    """The model types and classes that a configuration and its sections name."""
    yield str(config.get("model_type"))
    yield from _classes(config)
    for section in config.values():
        if isinstance(section, Mapping):
            yield from _kinds(section)
