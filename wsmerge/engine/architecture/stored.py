"""An architecture read off the stored tensors, for checkpoints that no definition covers.

mergekit infers an architecture from transformers' model in memory. Where transformers stores a model in another layout
(experts one by one, towers under other prefixes), what it infers leaves stored tensors out, or mixes the two layouts.
Sources that store the same names need no model in memory:

    model.layers.0.mlp.up_proj.weight                template model.layers.${layer_index}.mlp.up_proj.weight
    model.layers.1.mlp.experts.0.up_proj.weight      the same, optional: not in every layer
    model.norm.weight                                outside the layers

Layers past those of the model in memory (multi-token prediction) are no part of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from wsmerge.core.layers import layer_counts, layer_position
from wsmerge.engine.architecture.config_values import config_value
from wsmerge.engine.architecture.definitions import DefinedModule
from wsmerge.engine.architecture.undefined import is_derived
from wsmerge.engine.architecture.weights import Architecture, Weight, all_weights, resolve_name
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.engine.inputs.converted import ConversionCache, Convertible, find_conversion
from wsmerge.engine.names import ModelNames, empty_model
from wsmerge.engine.tying import TEXT_SECTIONS, embeddings_among
from wsmerge.errors import CheckpointError

__all__ = ["is_covered", "loaded_otherwise", "stored_architecture", "stored_otherwise"]


def is_covered(architecture: Architecture, checkpoint: Checkpoint, cache: ConversionCache) -> bool:
    """Whether every weight can be read from `checkpoint`, and every stored tensor is read.

    An optional weight that is not stored and only could be converted is left out of a merge, and what it is made of with it.
    """
    read: set[str] = set()
    for weight in all_weights(architecture, checkpoint.config):
        name = resolve_name(weight, checkpoint.specs)
        if name is None and not is_derived(weight.name):
            converted = find_conversion(checkpoint, weight, cache)
            if weight.optional != (converted is None):
                return False
            read.update(converted.sources if converted is not None else ())
        elif name is not None:
            read.add(name)
    return all(name in read or is_derived(name) for name in checkpoint.specs)


def stored_otherwise(
    checkpoint: Convertible, in_memory: Iterable[tuple[str, ...]], cache: ConversionCache
) -> tuple[list[str], list[str]]:
    """What a model in memory lacks of a checkpoint, and what is stored there that it does not read.

    Args:
        checkpoint: its configuration and its tensors, be they written yet or not.
        in_memory: the tensors of the model, each by all its names.
        cache: of conversions.
    """
    lacking: list[str] = []
    read: set[str] = set()
    for names in in_memory:
        found = [{name} if name in checkpoint.specs else cache.sources(checkpoint, name) for name in names]
        read.update(*found)
        if not any(found) and not any(map(is_derived, names)):
            lacking.append(names[0])
    return lacking, [name for name in checkpoint.specs if name not in read and not is_derived(name)]


def loaded_otherwise(
    checkpoint: Convertible, in_memory: Iterable[tuple[str, ...]]
) -> tuple[list[str], list[str]] | None:
    """As `stored_otherwise`, by the names that transformers' loading gives; None where it makes no model of the checkpoint."""
    try:
        model = empty_model(checkpoint.config, "")
    except CheckpointError:
        model = None
    if model is None:
        return None
    sources = ModelNames(model, checkpoint.specs).sources
    read = {name for names in sources.values() for name in names}
    lacking = [names[0] for names in in_memory if not any(name in sources or is_derived(name) for name in names)]
    return lacking, [name for name in checkpoint.specs if name not in read and not is_derived(name)]


def stored_architecture(
    known: Architecture, checkpoints: Sequence[Checkpoint], cache: ConversionCache
) -> Architecture | None:
    """The architecture by stored names; None where the checkpoints do not store the same.

    Outputs that are tied to an input may be stored in some only, as may buffers that transformers computes.

    Args:
        known: what is known of the architecture otherwise; it tells how many layers the model has, and its vocabulary.
        checkpoints: every input.
        cache: of conversions.
    """
    tied = {out: into for checkpoint in checkpoints for out, into in checkpoint.tied.items()}
    names = dict.fromkeys(name for checkpoint in checkpoints for name in (*checkpoint.specs, *checkpoint.tied))
    needed = {name for name in names if name not in tied and not is_derived(name)}
    if any(not needed <= checkpoint.specs.keys() for checkpoint in checkpoints):
        return None
    axes = dict.fromkeys(_along_vocabulary(known, checkpoints[0], cache), 0)
    axes |= {out: 0 for out, into in tied.items() if into in axes}
    weights = [
        Weight(
            name,
            vocabulary_axis=axes.get(name),
            optional=name not in needed,
            tied_names=(tied[name],) if name in tied else (),
        )
        for name in sorted(names)
    ]
    return Architecture(
        name=known.name,
        modules=_modules(weights, _layer_counts(known, checkpoints[0], names)),
        tagalong_files=known.tagalong_files,
        vocab_size_key=known.vocab_size_key,
        is_inferred=True,
    )


def _along_vocabulary(known: Architecture, checkpoint: Checkpoint, cache: ConversionCache) -> Iterable[str]:
    """The stored tensors whose rows are tokens: those that `known` says, and embeddings of the vocabulary's size."""
    for weight in all_weights(known, checkpoint.config):
        if weight.vocabulary_axis is None:
            continue
        name = resolve_name(weight, checkpoint.specs)
        converted = find_conversion(checkpoint, weight, cache) if name is None else None
        yield from [name] if name else converted.sources if converted else ()
    sizes = {config_value(checkpoint.config, key) for key in (known.vocab_size_key, "vocab_size")}
    sizes |= {config_value(checkpoint.config, f"{section}.vocab_size") for section in TEXT_SECTIONS}
    for name in embeddings_among(checkpoint.specs):
        if checkpoint.specs[name].shape[:1] and checkpoint.specs[name].shape[0] in sizes:
            yield name


def _layer_counts(known: Architecture, checkpoint: Checkpoint, names: Collection[str]) -> dict[str, int]:
    """Layers of each stack: those that are stored, and no more than the model in memory has."""
    stored = layer_counts(names)
    counts = {key: module.num_layers(checkpoint.config) for key, module in known.modules.items()}
    if len(counts) == 1 and len(stored) == 1:
        counts = dict(zip(stored, counts.values(), strict=True))
    return {stack: min(count, counts.get(stack) or count) for stack, count in stored.items()}


def _modules(weights: Sequence[Weight], counts: Mapping[str, int]) -> dict[str, DefinedModule]:
    """One module for each stack of layers, `default` where there is one only, and for what lies outside them."""
    loose: list[Weight] = []
    templates: dict[str, dict[str, list[Weight]]] = {stack: {} for stack in counts}
    for weight in weights:
        place = layer_position(weight.name)
        if place is None:
            loose.append(weight)
        elif place.layer < counts[place.stack]:
            before, after = f"{place.stack}.{place.layer}.", f"{place.stack}.${{layer_index}}."
            templates[place.stack].setdefault(after + weight.name.removeprefix(before), []).append(weight)
    layers = {
        stack: tuple(
            Weight(name, optional=len(found) < counts[stack] or any(weight.optional for weight in found))
            for name, found in sorted(of_stack.items())
        )
        for stack, of_stack in templates.items()
    }
    if len(layers) == 1:
        ((stack, in_layer),) = layers.items()
        return {"default": DefinedModule(None, tuple(loose), in_layer, (), counts[stack])}
    outside = {"default": DefinedModule(None, tuple(loose), (), (), 0)} if loose else {}
    return outside | {stack: DefinedModule(None, (), layers[stack], (), counts[stack]) for stack in sorted(layers)}
