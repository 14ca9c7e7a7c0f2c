"""The README.md of a merged checkpoint, from its report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from wsmerge.core.text import fenced, inline_code, plain_text
from wsmerge.engine.locate import is_hub_id

__all__ = ["model_card"]

Report = Mapping[str, Any]


def model_card(report: Report) -> bytes:
    """The card: what was merged, how, and what rounding left of the directions."""
    return "\n".join([*_front_matter(report), *_title(report), *_directions(report), *_recipe(report), ""]).encode()


def _front_matter(report: Report) -> list[str]:
    hub_ids = [model["model"] for model in report["models"] if is_hub_id(model["model"])]
    front = {
        **({"base_model": hub_ids} if hub_ids else {}),
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["wsmerge", "merge", "weight-steering" if report["directions"] else "mergekit"],
    }
    return ["---", yaml.safe_dump(front, sort_keys=False).rstrip(), "---", ""]


def _title(report: Report) -> list[str]:
    base, version = report["base"]["model"], report["versions"]["wsmerge"]
    method = report["recipe"].get("merge_method")
    if method is None:
        return [
            f"# {plain_text(base)}, steered",
            "",
            f"Made with wsmerge {version}: weights of {inline_code(base)}, plus directions in weight space",
            "([Steering Language Models with Weight Arithmetic](https://arxiv.org/abs/2511.05408)).",
            "",
        ]
    return [
        f"# Merge of {len(report['models'])} models",
        "",
        f"Made with wsmerge {version} by the merge method {inline_code(method)}; configuration from {inline_code(base)}.",
        "",
        *(f"- {inline_code(model['model'])}" for model in report["models"]),
        "",
    ]


def _directions(report: Report) -> list[str]:
    if not report["directions"]:
        return []
    return [
        "| direction | version digest | tensors changed | k |",
        "|---|---|---|---|",
        *(
            f"| {plain_text(item['label'])} | `{item['digest'][:16]}` | {item['tensors']} | {item['k_min']:g} to {item['k_max']:g} |"
            for item in report["directions"]
        ),
        "",
        "## Fidelity",
        "",
        "What is left of the directions after rounding to this checkpoint's dtype" + _fidelity(report),
        "",
    ]


def _fidelity(report: Report) -> str:
    overall = report["fidelity"]["overall"]
    if overall["cosine"] is None:
        return ": no change was asked for (every k is 0, or the directions cancel)."
    return f": cosine {overall['cosine']:.4f}, norm ratio {overall['norm_ratio']:.4f}."


def _recipe(report: Report) -> list[str]:
    return [
        "## Recipe",
        "",
        fenced("yaml", yaml.safe_dump(report["recipe"], sort_keys=False).rstrip()),
        "",
        "The digests of inputs and outputs are in `wsmerge.json`.",
    ]
