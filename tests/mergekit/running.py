"""One recipe through mergekit and through wsmerge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

import wsmerge
from tests.mergekit.oracle import assert_same, run_mergekit

__all__ = ["Both", "Source", "agree", "merge_ours", "models_recipe", "run_both", "slices_recipe"]

Reference = Path | str
Source = Reference | tuple[Reference, Mapping[str, Any]]
"""A model, or a model and its parameters."""


class Both(NamedTuple):
    """The two output folders, and what wsmerge reported."""

    ours: Path
    theirs: Path
    report: wsmerge.MergeReport


def models_recipe(method: str, sources: Sequence[Source], *, base: Reference | None = None, **top: Any) -> str:
    """The text of a recipe over whole models; `top` holds the other keys of the top level."""
    return _text(method, base, {"models": [_source(item) for item in sources]}, top)


def slices_recipe(
    method: str, slices: Sequence[Sequence[tuple[Source, Sequence[int]]]], *, base: Reference | None = None, **top: Any
) -> str:
    """The text of a recipe over slices, each a list of (source, layer range)."""
    entries = [
        {"sources": [_source(item) | {"layer_range": list(layers)} for item, layers in sources]} for sources in slices
    ]
    return _text(method, base, {"slices": entries}, top)


def _text(method: str, base: Reference | None, inputs: Mapping[str, Any], top: Mapping[str, Any]) -> str:
    head = {"merge_method": method, **({"base_model": str(base)} if base else {})}
    return yaml.safe_dump({**head, **inputs, **top}, sort_keys=False)


def _source(source: Source) -> dict[str, Any]:
    if isinstance(source, Path | str):
        return {"model": str(source)}
    return {"model": str(source[0]), "parameters": dict(source[1])}


def merge_ours(
    recipe: str | Path | Mapping[str, Any], out: Path, *, overwrite: bool = False, **settings: Any
) -> wsmerge.MergeReport:
    """`wsmerge.merge`, with the fields of its `Settings` as keywords."""
    return wsmerge.merge(recipe, out, overwrite=overwrite, settings=wsmerge.Settings(**settings))


def run_both(recipe: str, folder: Path, **ours: Any) -> Both:
    """Run `recipe` both ways into `folder`; `ours` are keywords of `merge_ours`."""
    theirs = run_mergekit(recipe, folder / "theirs")
    report = merge_ours(recipe, folder / "ours", **ours)
    return Both(folder / "ours", theirs, report)


def agree(recipe: str, folder: Path, **ours: Any) -> Both:
    """Run `recipe` both ways and hold that tensors, config and tokenizer are the same."""
    both = run_both(recipe, folder, **ours)
    assert_same(both.ours, both.theirs)
    return both
