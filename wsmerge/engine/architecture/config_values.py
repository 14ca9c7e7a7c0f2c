"""Values of `config.json`, and the defaults that it leaves out."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterator
from typing import Any, Final

from wsmerge.engine.architecture.weights import Config
from wsmerge.engine.tying import TEXT_SECTIONS
from wsmerge.errors import CheckpointError

__all__ = ["config_value", "count_at", "counts_beyond", "full_config"]

_COUNT: Final = re.compile(r"(layers?|blocks?|depths?|stages?|experts?)$")


def config_value(config: Config, key: str) -> Any:  # noqa: ANN401 - as JSON has it
    """The value at a dotted key, None where it is absent or null."""
    found: Any = config
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def count_at(config: Config, key: str) -> int:
    """The count at a dotted key; transformers' default where `config` leaves it out or spells it otherwise.

    A language model's count stands at the top or in the section of the language model, whichever `key` says: files of
    the Hub and those that transformers 5 saves differ in that.

    Raises:
        CheckpointError: there is no default either, or the value is not a whole number.
    """
    section, _, name = key.rpartition(".")
    sections = ["", *TEXT_SECTIONS] if section in {"", *TEXT_SECTIONS} else []
    keys = [key, *(f"{other}.{name}".lstrip(".") for other in sections if other != section)]
    found = next((value for one in keys if (value := config_value(config, one)) is not None), None)
    if found is None:
        full = full_config(config, needed=key)
        values = (functools.reduce(lambda held, part: getattr(held, part, None), one.split("."), full) for one in keys)
        found = next((value for value in values if value is not None), None)
    if not isinstance(found, int) or isinstance(found, bool) or found < 0:
        told = "does not say" if found is None else f"gives {found!r} for"
        raise CheckpointError(
            f"config.json {told} how many layers the model has",
            where=key,
            hint=f"add {key} to the checkpoint's config.json",
        )
    return found


def counts_beyond(config: Config, most: int) -> Iterator[str]:
    """The keys, dotted, that claim more than `most` layers, blocks or experts, wherever in the configuration they stand."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from (f"{key}.{inner}" for inner in counts_beyond(value, most))
        elif _COUNT.search(key):
            counts = value if isinstance(value, list) else [value]
            yield from [key] if any(isinstance(count, int) and count > most for count in counts) else ()


def full_config(config: Config, *, needed: str, kind: Any = None) -> Any:  # noqa: ANN401 - one of transformers' many classes
    """`config` as transformers' own object, with every default filled in.

    Args:
        config: `config.json`.
        needed: the key that it is wanted for, named in the error.
        kind: the class that the object must be of; None for the one of its `model_type`.

    Raises:
        CheckpointError: transformers does not know the `model_type`, or refuses the configuration.
    """
    from transformers import CONFIG_MAPPING, PreTrainedConfig  # noqa: PLC0415 - slow to load, and rarely needed

    name = config.get("model_type")
    mapped = CONFIG_MAPPING[name] if isinstance(name, str) and name in CONFIG_MAPPING else None
    if mapped is None or (kind is not None and not issubclass(mapped, kind)):
        mapped = kind
    if mapped is None:
        raise CheckpointError(
            f"config.json has no {needed}, and transformers knows no defaults for model_type {name!r}",
            where=needed,
            hint=f"add {needed} to the checkpoint's config.json",
        )
    try:
        # transformers stores infinity as {"__float__": "Infinity"}, and undoes that when it reads a file, not in `from_dict`.
        return mapped.from_dict(PreTrainedConfig._decode_special_floats(copy.deepcopy(dict(config))))  # noqa: SLF001 - see above
    except Exception as error:
        raise CheckpointError(
            f"transformers refuses this config.json: {error}", where=needed, hint="correct the checkpoint's config.json"
        ) from error
