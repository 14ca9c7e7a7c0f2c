"""Live mergekit's architectures, as this package's weights."""

from __future__ import annotations

import warnings
from functools import cache
from importlib import import_module
from types import SimpleNamespace
from typing import Any

from wsmerge.engine.architecture import Weight

__all__ = ["as_object", "as_weight", "mergekit"]


@cache
def mergekit(module: str) -> Any:
    """A module of mergekit; the first takes seconds, so only tests that need it ask."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what mergekit's own imports warn of is not ours
        return import_module(f"mergekit.{module}")


def as_weight(info: Any) -> Weight:
    """mergekit's `WeightInfo` as a `Weight`."""
    return Weight(
        name=info.name,
        vocabulary_axis=info.vocabulary_axis,
        optional=info.optional,
        aliases=tuple(info.aliases or ()),
        tied_names=tuple(info.tied_names or ()),
        force_dtype=info.force_dtype,
    )


def as_object(config: Any) -> Any:
    """A parsed config.json with attributes in place of keys, as mergekit reads configurations."""
    if not isinstance(config, dict):
        return config
    return SimpleNamespace(**{key: as_object(value) for key, value in config.items()})
