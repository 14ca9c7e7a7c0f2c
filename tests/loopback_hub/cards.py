"""What the Hub reads out of a repository's README.md: the data of the card, and the tags that follow from it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import yaml

__all__ = ["card_data", "card_problem", "card_tags", "counts_as_download"]

# A request for one of these is a download of a model, unless its library says otherwise.
COUNTED = frozenset({"config.json", "config.yaml", "hyperparams.yaml", "params.json", "meta.yaml"})
COUNTED_BY_LIBRARY = {"peft": frozenset({"adapter_config.json"})}

_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", re.DOTALL)


def card_problem(text: str) -> str | None:
    """What is wrong with the front matter of a README, if anything."""
    found = _FRONT_MATTER.match(text)
    if found is None:
        return None
    try:
        data = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        return f"The front matter is not YAML: {error}"
    return None if data is None or isinstance(data, dict) else "The front matter is not a mapping"


def card_data(text: str) -> dict[str, Any]:
    """The front matter of a README; empty where there is none, or none that can be read."""
    found = _FRONT_MATTER.match(text)
    if found is None or card_problem(text):
        return {}
    return yaml.safe_load(found[1]) or {}


def card_tags(data: dict[str, Any], files: Iterable[str]) -> list[str]:
    """The tags of a model, in the Hub's order: library, formats, its own, datasets, bases, licence, region."""
    names = set(files)
    tags = [str(data["library_name"])] if data.get("library_name") else []
    tags += ["safetensors"] if any(name.endswith(".safetensors") for name in names) else []
    tags += [str(data["pipeline_tag"])] if data.get("pipeline_tag") else []
    tags += _strings(data.get("tags")) + _strings(data.get("language"))
    tags += [f"dataset:{name}" for name in _strings(data.get("datasets"))]
    bases = _strings(data.get("base_model"))
    relation = data.get("base_model_relation") or _relation(data, bases, names)
    tags += [f"base_model:{name}" for name in bases] + [f"base_model:{relation}:{name}" for name in bases]
    tags += [f"license:{data['license']}"] if data.get("license") else []
    return list(dict.fromkeys([*tags, "region:us"]))


def counts_as_download(path: str, library: str | None) -> bool:
    """Whether a request for the file at `path` counts as a download of the model."""
    return path in COUNTED_BY_LIBRARY.get(library or "", COUNTED)


def _relation(data: dict[str, Any], bases: list[str], names: set[str]) -> str:
    if data.get("library_name") == "peft" or "adapter_config.json" in names:
        return "adapter"
    return "merge" if len(bases) > 1 else "finetune"


def _strings(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]
