"""Whether a checkpoint's output embedding is its input embedding, as transformers 5 decides it when it loads one.

    config says        output stored     tied
    ties               no                yes
    ties               yes               if both hold the same values (transformers unties them otherwise)
    does not tie       either            no
    nothing            no                yes: a configuration leaves its defaults out, and the output must come from somewhere
    nothing            yes               no

`tie_word_embeddings` stands at the top level, or in the configuration of the language model (`text_config`), which some
architectures forward; where the two contradict each other, a stored output decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

__all__ = ["TEXT_SECTIONS", "embeddings_among", "is_tied_by_config", "tied_pair"]

_OUTPUTS: Final = ("lm_head.weight", "embed_out.weight", "output_projection.weight", "proj_out.weight")
_INPUTS: Final = (
    "embed_tokens.weight",
    "wte.weight",
    "embed_in.weight",
    "word_embeddings.weight",
    "tok_embeddings.weight",
    "tokens_embed.weight",
    "embeddings.weight",
    "shared.weight",
)
TEXT_SECTIONS: Final = ("text_config", "llm_config", "language_config", "thinker_config")
"""Where the configuration of a composite model keeps that of its language model."""


def tied_pair(names: Iterable[str], config: Mapping[str, Any], are_equal: Callable[[str, str], bool]) -> dict[str, str]:
    """`{output: input}` where the two are one tensor, else empty.

    Args:
        names: of all stored tensors.
        config: `config.json`.
        are_equal: whether two stored tensors hold the same values; asked only where both are stored and configured as tied.
    """
    stored = list(names)
    inputs = [name for name in stored if _ends_with(name, _INPUTS)]
    outputs = [name for name in stored if _ends_with(name, _OUTPUTS)]
    if len(inputs) != 1 or len(outputs) > 1:
        # An encoder beside the language model, or several heads: nothing says which belong together.
        return {}
    wanted = is_tied_by_config(config)
    if not outputs:
        return {} if wanted is False else {_OUTPUTS[0]: inputs[0]}
    return {outputs[0]: inputs[0]} if wanted and are_equal(outputs[0], inputs[0]) else {}


def embeddings_among(names: Iterable[str]) -> list[str]:
    """Those that are called as input or output embeddings are."""
    return [name for name in names if _ends_with(name, (*_INPUTS, *_OUTPUTS))]


def is_tied_by_config(config: Mapping[str, Any]) -> bool | None:
    """What `config` says, None where it says nothing."""
    sections = [config, *(config[key] for key in TEXT_SECTIONS if isinstance(config.get(key), dict))]
    said = [section["tie_word_embeddings"] for section in sections if section.get("tie_word_embeddings") is not None]
    return any(said) if said else None


def _ends_with(name: str, endings: tuple[str, ...]) -> bool:
    return name in endings or name.endswith(tuple(f".{ending}" for ending in endings))
