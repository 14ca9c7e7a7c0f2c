"""The README of an export: what lies there, how to run it, and how near the result comes to wsmerge's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from wsmerge.api.exporting.parts import Exported, Factored, common_dtype
from wsmerge.api.recipes import RecipePlan
from wsmerge.core.dtypes import F32
from wsmerge.core.text import fenced, inline_code, plain_text
from wsmerge.recipe import coefficient_table

__all__ = ["mergekit_readme", "peft_readme"]

_CACHE: Final = (
    "CACHE is a folder for the base with each adapter merged into it, as large as the base each; mergekit takes what lies "
    "there again without looking, so empty it when the base has changed."
)
_WIDE: Final = (
    "`--lora-merge-dtype float32` matters: without it the adapters are rounded to the base's dtype first, and small changes "
    "are lost."
)
_FOLDED: Final = "They are folded into the adapters and checkpoints, not in `recipe.yml`."
_INSIDE: Final = "They stand in `recipe.yml`, where they can be changed."
_EXACT: Final = "No element differs where torch's matrix product adds ranks as it does with MKL on x86. Elsewhere few elements differ"
_PEFT_TOLERANCE: Final = (
    "`merge_and_unload()` gives the weights of `wsmerge merge`: the same where one direction changes a module and torch adds "
    "ranks in ascending order (x86). Where several do, they differ by few units of the last float32 place of the largest term, since "
    "one product adds all ranks in one chain."
)


def mergekit_readme(planned: RecipePlan, exported: Exported, command: str, written: Mapping[str, str]) -> str:
    """The text for a folder that mergekit reads."""
    lines = [
        "# A recipe for mergekit",
        "",
        "`recipe.yml` is a plain recipe of mergekit, made from the wsmerge recipe below. Run it in the folder that it names:",
        "",
        f"    {command}",
        "",
        *_options(exported),
        *_listed("What lies here", [f"{inline_code(path)}: {what}" for path, what in written.items()]),
        *_listed("How near it comes to `wsmerge merge`", _tolerance(planned, exported)),
        *_coefficients(planned, _INSIDE if exported.coefficients_inside else _FOLDED),
        *_source(planned),
    ]
    return "\n".join(lines) + "\n"


def peft_readme(planned: RecipePlan, factored: Factored, call: str) -> str:
    """The text for a folder that PEFT loads."""
    lines = [
        "---",
        "library_name: peft",
        "---",
        "",
        "# A PEFT adapter",
        "",
        "The directions of the wsmerge recipe below as one LoRA adapter over its base:",
        "",
        f"    from peft import {call.partition('.')[0]}",
        f"    adapted = {call}",
        "",
        f"It changes {len(factored.modules)} modules. {_PEFT_TOLERANCE}",
        "",
        *_coefficients(planned, "They are folded into the factors."),
        *_source(planned),
    ]
    return "\n".join(lines) + "\n"


def _options(exported: Exported) -> list[str]:
    if not exported.adapters:
        return []
    return [_CACHE, *([_WIDE] if exported.wide_adapters else []), ""]


def _tolerance(planned: RecipePlan, exported: Exported) -> list[str]:
    written = common_dtype(tensor.spec for tensor in planned.merge.tensors) or F32
    if exported.exact and exported.adapters:
        return [f"{_EXACT}, by one unit of the last {written} place."]
    if exported.exact:
        return ["No element differs."]
    unit = f"by a unit or two of the last {written} place of the largest number that they are summed of"
    return [*exported.notes, f"Elements that differ do so {unit}."]


def _coefficients(planned: RecipePlan, where: str) -> list[str]:
    if not planned.coefficients:
        return []
    lines = ["## Coefficients", "", where, "", "| direction | layers | modules | k |", "|---|---|---|---|"]
    for direction, found in zip(planned.directions, planned.coefficients, strict=True):
        for row in coefficient_table(found):
            modules = plain_text(", ".join(row.modules))
            lines.append(f"| {plain_text(direction.label)} | {row.layers or 'no layer'} | {modules} | {row.k:.9g} |")
    return [*lines, ""]


def _listed(title: str, items: Sequence[str]) -> list[str]:
    return [f"## {title}", "", *(f"- {item}" for item in items), ""] if items else []


def _source(planned: RecipePlan) -> list[str]:
    text = planned.recipe.text.rstrip("\n")
    return ["## The wsmerge recipe", "", fenced("yaml", text)]
