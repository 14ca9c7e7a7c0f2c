"""Which architecture the inputs of a merge have, chosen as mergekit chooses.

one name in each config.json   -> its definition; where several define the name, the one for the config's model_type
some name has no definition    -> inferred from all inputs; read off what they store, where that leaves tensors out
different definitions          -> refused, unless mixing is allowed: then the base's, else the first input's
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from wsmerge.engine.architecture.config_values import config_value, counts_beyond
from wsmerge.engine.architecture.definitions import definitions_of
from wsmerge.engine.architecture.depth import tensors_in_memory
from wsmerge.engine.architecture.live import PYTHON_DEFINED, CannotInferError, inferred, python_defined
from wsmerge.engine.architecture.stored import is_covered, stored_architecture, stored_otherwise
from wsmerge.engine.architecture.undefined import is_derived
from wsmerge.engine.architecture.weights import Architecture, all_weights, resolve_name
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.engine.inputs.converted import ConversionCache, find_conversion
from wsmerge.errors import CheckpointError, Problems

__all__ = ["architecture_of", "refuse_unheld_layers"]

_CLAIMS: Final = "config.json claims more layers than the checkpoint has tensors"
_CORRECT: Final = "correct the number of layers in config.json, or download the checkpoint again"
_PLAUSIBLE: Final = 1000
"""Layers or experts of which a model in memory, without its weights, is quickly made."""


@dataclass(frozen=True)
class _Choice:
    """What one input is. Two inputs are of one architecture if their keys are equal."""

    checkpoint: Checkpoint
    name: str
    key: tuple[object, ...] | None
    architecture: Architecture | None


def architecture_of(
    checkpoints: Sequence[Checkpoint],
    *,
    base: Checkpoint | None = None,
    allow_mixed: bool = False,
    overrides: Mapping[Checkpoint, str] | None = None,
    trust_remote_code: bool = False,
    as_mergekit: bool = False,
    cache: ConversionCache | None = None,
) -> Architecture:
    """The architecture that all inputs of a merge share.

    Args:
        checkpoints: every input, in the order of the recipe.
        base: the base model, also where it is no input.
        allow_mixed: take inputs of different architectures, as mergekit's `--allow-crimes` does.
        overrides: the architecture that a model reference names in place of the one in `config.json`.
        trust_remote_code: whether code that comes with a checkpoint may be run to infer an architecture.
        as_mergekit: take what mergekit infers also where stored tensors are lost by it.
        cache: of conversions, where the caller has one.

    Raises:
        CheckpointError: a `config.json` does not name one architecture, or the inputs differ; every input at once.
    """
    members = list(dict.fromkeys([*([base] if base else []), *checkpoints]))
    if not members:
        raise CheckpointError("there is no input that could tell the architecture")
    _refuse_claims(members)
    names = _names(members, overrides or {})
    choices = [_choice(member, name) for member, name in zip(members, names, strict=True)]
    if any(choice.key is None for choice in choices):
        first = choices[0]
        if as_mergekit:
            return inferred(first.name, members, first.checkpoint, trust_remote_code=trust_remote_code)
        return _covering(first, members, cache or ConversionCache(), trust_remote_code=trust_remote_code)
    if not allow_mixed:
        _refuse_mixed(choices)
    chosen = choices[0]
    defined = chosen.architecture or python_defined(chosen.name, chosen.checkpoint.config)
    if as_mergekit or overrides or not _is_of_other_checkpoints(defined, members, cache or ConversionCache()):
        return defined
    return _covering(chosen, members, cache or ConversionCache(), trust_remote_code=trust_remote_code)


def _is_of_other_checkpoints(defined: Architecture, members: Sequence[Checkpoint], cache: ConversionCache) -> bool:
    """Whether the definition asks for tensors that no input has, and transformers' own model needs none that they lack.

    Some definitions are of one variant of an architecture (T5 with gated layers, BERT with a pooler), or of the names that
    an earlier transformers stored. Where a tensor was lost on the way, the definition's refusal stands.
    """
    try:
        refuse_unheld_layers(defined, members[:1])
    except CheckpointError:
        return False  # told later, with all that is wrong
    needed = [weight for weight in all_weights(defined, members[0].config) if not weight.optional]
    lacked = [weight for weight in needed if not any(resolve_name(weight, one.specs) for one in members)]
    lacked = [weight for weight in lacked if not is_derived(weight.name)]
    if not lacked or any(find_conversion(members[0], weight, cache) for weight in lacked):
        return False
    return all(_has_all(one, cache) for one in members)


def _has_all(checkpoint: Checkpoint, cache: ConversionCache) -> bool:
    """Whether a checkpoint stores what a model has in memory: under its names, or as many tensors of the same shapes."""
    in_memory = tensors_in_memory(checkpoint.config)
    if Counter(spec.shape for spec in checkpoint.specs.values()) == Counter(in_memory.values()):
        return True
    return bool(in_memory) and not any(stored_otherwise(checkpoint, in_memory, cache))


def _covering(
    first: _Choice, members: Sequence[Checkpoint], cache: ConversionCache, *, trust_remote_code: bool
) -> Architecture:
    """What is inferred where it covers what is stored, else the architecture by stored names, where all store the same."""
    try:
        found = inferred(first.name, members, first.checkpoint, trust_remote_code=trust_remote_code)
    except CannotInferError:
        stored = stored_architecture(Architecture(first.name, {}), members, cache)
        if stored is None:
            raise
        return stored
    if all(is_covered(found, member, cache) for member in members):
        return found
    return stored_architecture(found, members, cache) or found


def _refuse_claims(members: Sequence[Checkpoint]) -> None:
    """Refuse a configuration of which transformers could not make a model, since it claims layers without end."""
    problems = Problems()
    for member in members:
        for key in counts_beyond(member.config, max(_PLAUSIBLE, len(member.specs))):
            told = config_value(member.config, key)
            problems.add(f"{member.label}: {key} is {told}, and the checkpoint has {len(member.specs)} tensors")
    problems.raise_if_any(CheckpointError, _CLAIMS, hint=_CORRECT)


def _names(members: Sequence[Checkpoint], overrides: Mapping[Checkpoint, str]) -> list[str]:
    problems = Problems()
    names: list[str] = []
    for member in members:
        found = [overrides[member]] if member in overrides else member.config.get("architectures")
        if isinstance(found, list) and len(found) == 1 and isinstance(found[0], str):
            names.append(found[0])
        elif not member.config:
            problems.add(f"{member.label}: there is no config.json")
        elif isinstance(found, list) and found:
            problems.add(f"{member.label}: config.json names {len(found)}: {', '.join(map(str, found))}")
        else:
            problems.add(f"{member.label}: config.json names none")
    problems.raise_if_any(
        CheckpointError,
        "each input must name one architecture",
        hint='set "architectures" in config.json, for example ["LlamaForCausalLM"], '
        "or name it with override_architecture in the recipe",
    )
    return names


def _choice(checkpoint: Checkpoint, name: str) -> _Choice:
    if name in PYTHON_DEFINED:
        experts = checkpoint.config.get("num_experts"), checkpoint.config.get("n_routed_experts")
        return _Choice(checkpoint, name, (name, *experts), None)
    found = definitions_of(name)
    if len(found) > 1:
        kind = checkpoint.config.get("model_type")
        found = tuple(definition for definition in found if definition.model_type == kind)
    if not found:
        return _Choice(checkpoint, name, None, None)
    return _Choice(checkpoint, name, (found[0].file,), found[0].architecture)


def _refuse_mixed(choices: Sequence[_Choice]) -> None:
    if all(choice.key == choices[0].key for choice in choices):
        return
    raise CheckpointError(
        "the inputs are of different architectures",
        details=tuple(_described(choice) for choice in choices),
        hint="merge models of one architecture, or try it all the same with --allow-crimes (allow_mixed in Python)",
    )


def refuse_unheld_layers(architecture: Architecture, checkpoints: Sequence[Checkpoint]) -> None:
    """Refuse a configuration that claims more layers than there are tensors, before anything walks all of them.

    Raises:
        CheckpointError: every such checkpoint at once.
    """
    problems = Problems()
    for member in checkpoints:
        for name, module in architecture.modules.items():
            count, held = module.num_layers(member.config), len(member.specs)
            if count > held:
                problems.add(f"{member.label}: {count} layers of module {name}, and {held} tensors in all")
    problems.raise_if_any(
        CheckpointError,
        _CLAIMS,
        hint=_CORRECT,
    )


def _described(choice: _Choice) -> str:
    experts = [
        f"{key} {choice.checkpoint.config[key]}"
        for key in ("num_experts", "n_routed_experts")
        if choice.name in PYTHON_DEFINED and key in choice.checkpoint.config
    ]
    kind = choice.checkpoint.config.get("model_type")
    return f"{choice.checkpoint.label}: {choice.name} ({', '.join([f'model_type {kind}', *experts])})"
