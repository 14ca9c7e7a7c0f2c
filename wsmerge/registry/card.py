"""What people and the Hub read of an artifact: `README.md` (the card) and `meta.yaml`.

Both are functions of the manifest; the card is also one of the repository that it is for, the kind of payload, and
evaluations, which come later than a version. Its front matter has the Hub's own keys, and one of ours:

    direction: {name: formality, version: 1.0.0, about: what the behaviour is}
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any, Final

import yaml

from wsmerge.core.layers import layer_position
from wsmerge.core.text import fenced, inline_code, plain_text, printable
from wsmerge.registry.card_usage import render_usage
from wsmerge.registry.evaluations import Evaluation
from wsmerge.registry.manifest import Manifest
from wsmerge.registry.records import DatasetRecord, PoleRecord, TensorRecord

__all__ = ["CARD_FILE", "META_FILE", "norms_by_layer", "render_card", "render_meta"]

CARD_FILE: Final = "README.md"
META_FILE: Final = "meta.yaml"
_BAR_CHARACTERS: Final = 30
_HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_FILE_SUFFIXES: Final = {".csv", ".json", ".jsonl", ".parquet", ".txt", ".yaml", ".yml"}
_OTHER: Final = "other tensors"
_UNESCAPED_BAR: Final = re.compile(r"(?<!\\)\|")


def render_meta(manifest: Manifest) -> str:
    """`meta.yaml`: name, version and base in short. The Hub counts downloads by this file."""
    short = {
        "schema": manifest.schema_,
        "name": manifest.name,
        "version": manifest.version,
        "kind": manifest.kind,
        "base_model": manifest.base.model,
        "version_digest": manifest.version_digest,
        "content_digest": manifest.content_digest,
    }
    return _yaml(short)


def render_card(
    manifest: Manifest,
    *,
    repo: str | None = None,
    adapter: bool | None = None,
    evaluations: Iterable[Evaluation] = (),
) -> str:
    """`README.md`: front matter for the Hub, how to use the direction, and what it is made of.

    Args:
        manifest: of the direction.
        repo: `owner/name` of the repository that the card is for; None where that is not known.
        adapter: whether the payload is a PEFT adapter; whether it can be one if None.
        evaluations: results to be shown; those of other versions are left out.
    """
    plain = manifest.plain_adapter if adapter is None else adapter
    results = [result for result in evaluations if result.version_digest == manifest.version_digest]
    parts = [
        f"---\n{_yaml(_front_matter(manifest, adapter=plain))}---",
        f"# {manifest.name} {manifest.version}",
        plain_text(manifest.description),
        (
            f"A {manifest.kind.replace('_', ' ')} direction in weight space over {inline_code(manifest.base.model)}. Add "
            "`k` times it to the base: a positive `k` strengthens the behaviour, a negative one removes it."
        ),
        "## Use",
        render_usage(manifest, repo=repo, adapter=plain),
        *_section("Evaluations", ("evaluation", "measure", "value"), _result_rows(results)),
        "## Base",
        _table(("field", "value"), _base_rows(manifest)),
        *_section("Poles", ("pole", "source", "revision", "training"), map(_pole_row, manifest.poles)),
        *_section("Data", ("source", "pole", "split", "rows", "sha256"), map(_dataset_row, manifest.datasets)),
        *_section("Parents", ("direction", "version digest", "coefficient"), _parent_rows(manifest)),
        "## Norms",
        _summary(manifest),
        fenced("text", _norm_chart(manifest.tensors)),
        "## Identity",
        _table(("field", "value"), _identity_rows(manifest)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def norms_by_layer(tensors: Iterable[TensorRecord]) -> dict[str, float]:
    """Frobenius norm of the direction within each layer (`model.layers.3`), and of what is in no layer, in order."""
    sums: dict[tuple[str, int], float] = {}
    for row in tensors:
        stack, layer = layer_position(row.name) or (_OTHER, -1)
        sums[stack, layer] = sums.get((stack, layer), 0.0) + row.norm**2
    return {
        f"{stack}.{layer}" if layer >= 0 else stack: math.sqrt(total) for (stack, layer), total in sorted(sums.items())
    }


def _front_matter(manifest: Manifest, *, adapter: bool) -> dict[str, Any]:
    matter: dict[str, Any] = {"library_name": "peft" if adapter else "wsmerge"}
    if _HUB_ID.fullmatch(manifest.base.model):
        matter |= {"base_model": manifest.base.model, "base_model_relation": "adapter"}
    if manifest.licence:
        matter["license"] = manifest.licence.lower()  # the Hub knows SPDX ids in lower case
    datasets = sorted({data.source for data in manifest.datasets if _on_hub(data.source)})
    if datasets:
        matter["datasets"] = datasets
    matter["tags"] = ["wsmerge", "direction", manifest.kind, manifest.name]
    # The Hub keeps keys that it does not know, and its list of models gives them without another request.
    return matter | {"direction": {"name": manifest.name, "version": manifest.version, "about": manifest.description}}


def _on_hub(source: str) -> bool:
    return _HUB_ID.fullmatch(source) is not None and PurePosixPath(source).suffix not in _FILE_SUFFIXES


def _result_rows(results: Iterable[Evaluation]) -> Iterable[tuple[str, ...]]:
    for result in results:
        for measure, value in result.results.items():
            yield plain_text(result.name), plain_text(measure), f"{value:.4g}"


def _base_rows(manifest: Manifest) -> list[tuple[str, str]]:
    base = manifest.base
    rows = [
        ("model", inline_code(base.model)),
        ("structure", inline_code(base.structure)),
        ("weights", inline_code(base.weights)),
    ]
    if base.revision:
        rows.insert(1, ("revision", inline_code(base.revision)))
    if base.origin:
        rows.append(("origin", plain_text(base.origin)))
    return rows + [
        ("tied", f"{inline_code(name)} to {inline_code(other)}") for name, other in sorted(base.tied.items())
    ]


def _pole_row(pole: PoleRecord) -> tuple[str, ...]:
    training = ", ".join(f"{key} {value}" for key, value in sorted(pole.training.items()))
    return pole.pole, inline_code(pole.source), inline_code(pole.revision or ""), plain_text(training)


def _dataset_row(data: DatasetRecord) -> tuple[str, ...]:
    count = "" if data.count is None else str(data.count)
    return (
        inline_code(data.source),
        data.pole or "both",
        plain_text(data.split or ""),
        count,
        inline_code((data.sha256 or "")[:12]),
    )


def _parent_rows(manifest: Manifest) -> Iterable[tuple[str, ...]]:
    for parent in manifest.parents:
        coefficient = "" if parent.coefficient is None else f"{parent.coefficient:g}"
        yield inline_code(parent.reference), inline_code(parent.version_digest[:12]), coefficient


def _summary(manifest: Manifest) -> str:
    low_rank = sum(row.low_rank for row in manifest.tensors)
    return (
        f"{len(manifest.tensors)} tensors, {low_rank} of them low-rank; Frobenius norm {manifest.norm:.6g}. "
        f"Modules: {', '.join(map(inline_code, manifest.modules))}."
    )


def _norm_chart(tensors: Sequence[TensorRecord]) -> str:
    norms = norms_by_layer(tensors)
    width, largest = max(map(len, norms)), max(norms.values())
    lines = []
    for label, norm in norms.items():
        bar = "█" * round(_BAR_CHARACTERS * norm / largest) if largest else ""
        lines.append(f"{label:<{width}}  {norm:<10.4g}  {bar}".rstrip())
    return "\n".join(lines)


def _identity_rows(manifest: Manifest) -> list[tuple[str, str]]:
    return [
        ("version digest", inline_code(manifest.version_digest)),
        ("content digest", inline_code(manifest.content_digest)),
        ("written by", plain_text(manifest.tool)),
        ("created", plain_text(manifest.created)),
    ]


def _section(title: str, header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """Title and table, or nothing where there are no rows."""
    held = list(rows)
    return (f"## {title}", _table(header, held)) if held else ()


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *([_UNESCAPED_BAR.sub(r"\|", cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(' '.join(cell.split()) for cell in line)} |" for line in lines)


def _yaml(value: dict[str, Any]) -> str:
    return yaml.safe_dump(_printable(value), sort_keys=False, allow_unicode=True)


def _printable(value: Any) -> Any:  # noqa: ANN401 - any YAML value
    if isinstance(value, dict):
        return {key: _printable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_printable(item) for item in value]
    return printable(value) if isinstance(value, str) else value
