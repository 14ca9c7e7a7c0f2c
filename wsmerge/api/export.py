"""Recipes written for mergekit and PEFT, with their directions materialised."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from wsmerge.api.exporting.folding import FoldedTerms
from wsmerge.api.exporting.merging import merge_export
from wsmerge.api.exporting.parts import Exported, factored_tensors
from wsmerge.api.exporting.places import with_plain_paths
from wsmerge.api.exporting.readme import mergekit_readme, peft_readme
from wsmerge.api.exporting.separate import separate_export
from wsmerge.api.exporting.shop import Shop, path_text, set_task, write_adapter
from wsmerge.api.exporting.steering import steering_export
from wsmerge.api.recipes import RecipePlan, plan
from wsmerge.api.settings import RecipeLike, loaded_recipes
from wsmerge.core.files import create_synced, staged_folder, sync_folder
from wsmerge.core.opening import expanded
from wsmerge.errors import DirectionError, RecipeError
from wsmerge.recipe import LoadedRecipe
from wsmerge.registry import Registry

__all__ = ["ExportReport", "export_mergekit", "export_peft"]

RECIPE_FILE = "recipe.yml"


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export wrote.

    Attributes:
        out: the folder.
        written: adapters and checkpoints by their path within it, with a word on each.
        command: what to run next.
        exact: whether the other tool gives wsmerge's bits, with its sums in the usual order.
        notes: what the user should know.
    """

    out: Path
    written: Mapping[str, str]
    command: str
    exact: bool
    notes: tuple[str, ...]


def export_mergekit(
    recipe: RecipeLike, out: Path | str, *, store: Registry | None = None, compact: bool = False, separate: bool = False
) -> ExportReport:
    """Write a recipe as one that mergekit runs, with its directions as LoRA adapters and checkpoints.

    `out` then holds `recipe.yml`, `README.md`, and the folders `adapters` and `checkpoints` where they are needed. Paths in
    it are seen from the folder that the process is in.

    Args:
        recipe: one recipe.
        out: folder to make; it appears whole, or not at all.
        store: where references of directions are looked up.
        compact: adapters of no more rank than the directions have, where float32 sums then differ in last bits.
        separate: of a recipe without a merge method, keep each direction apart and its coefficients in `recipe.yml`, where
            they can be changed; the result is then only close to wsmerge's.

    Raises:
        RecipeError: several recipes in one file, or what mergekit has no form for.
        WsmergeError: as `plan`.
    """
    target = expanded(out)
    loaded = _one(loaded_recipes(recipe))
    with plan(loaded, store=store) as planned, staged_folder(target) as staged:
        shop = Shop(staged, target, compact=compact)
        make = merge_export if loaded.recipe.is_merge else separate_export if separate else steering_export
        exported = make(planned, shop, store)
        command = _command(exported, path_text(target))
        report = ExportReport(target, dict(shop.written), command, exported.exact, tuple(exported.notes))
        create_synced(staged / RECIPE_FILE, _recipe_text(exported, command).encode())
        text = mergekit_readme(planned, exported, command, shop.written)
        create_synced(staged / "README.md", text.encode())
        _sync_below(staged)
    return report


def export_peft(recipe: RecipeLike, out: Path | str, *, store: Registry | None = None) -> ExportReport:
    """Write a base with low-rank directions as one PEFT adapter over the base, coefficients folded in.

    Its rank is the sum of the directions' ranks, tensor by tensor; modules that no direction changes are left out.

    Args:
        recipe: a recipe without a merge method.
        out: folder to make; it appears whole, or not at all.
        store: where references of directions are looked up.

    Raises:
        RecipeError: a merge, or a base that has an adapter already.
        DirectionError: parts that no adapter holds, all of them; or nothing is left to hold.
        WsmergeError: as `plan`.
    """
    target = expanded(out)
    loaded = _one(loaded_recipes(recipe))
    _refuse_other_than_steering(loaded)
    with plan(loaded, store=store) as planned:
        factored = factored_tensors(planned)
        _refuse_unheld(planned, factored.others, empty=not factored.modules)
        folded = FoldedTerms(planned.merge, factored.names)
        base = loaded.recipe.base_model
        with staged_folder(target) as staged:
            if base is not None:
                write_adapter(staged, folded, factored.modules, base.model)
            call = f"PeftModel.from_pretrained(model, {path_text(target)!r})"
            if _is_causal(planned):
                set_task(staged, "CAUSAL_LM")
                call = f"AutoPeftModelForCausalLM.from_pretrained({path_text(target)!r})"
            create_synced(staged / "README.md", peft_readme(planned, factored, call).encode())
    notes = _peft_notes(loaded, has_embeddings=factored.has_embeddings)
    return ExportReport(target, {".": f"PEFT adapter, {len(folded.shapes)} modules"}, call, folded.is_exact, notes)


def _one(recipes: tuple[LoadedRecipe, ...]) -> LoadedRecipe:
    if len(recipes) == 1:
        return recipes[0]
    raise RecipeError(
        f"holds {len(recipes)} recipes, and one is exported at a time",
        where=str(recipes[0].path) if recipes[0].path else None,
        hint="merge the named ones first, put the folders in the place of their names, and export the last",
    )


def _refuse_other_than_steering(loaded: LoadedRecipe) -> None:
    recipe = loaded.recipe
    if recipe.is_merge:
        raise RecipeError(
            "a merge of models is no adapter over one base",
            where=loaded.where("merge_method"),
            hint="merge without the directions first, and export them with the result as base_model; or use "
            "`wsmerge export mergekit`",
        )
    if recipe.base_model is not None and recipe.base_model.lora is not None:
        raise RecipeError(
            f"the base has an adapter already, {recipe.base_model.lora}",
            where=loaded.where("base_model"),
            hint="merge it into the base first, or make a direction of it with `wsmerge extract`",
        )


def _refuse_unheld(planned: RecipePlan, others: Mapping[str, str], *, empty: bool) -> None:
    if others:
        raise DirectionError(
            f"{len(others)} tensors are changed that a PEFT adapter cannot hold",
            where=planned.merge.base.label,
            hint="give them k = 0 with a rule (filter and value), or use `wsmerge export mergekit` or `wsmerge merge`",
            details=tuple(f"{name}: {reason}" for name, reason in others.items()),
        )
    if empty:
        raise DirectionError(
            "every coefficient is 0, so there is nothing to export",
            where=planned.merge.base.label,
            hint="give a k other than 0",
        )


def _peft_notes(loaded: LoadedRecipe, *, has_embeddings: bool) -> tuple[str, ...]:
    notes = []
    if loaded.recipe.out_dtype is not None:
        notes.append(f"out_dtype {loaded.recipe.out_dtype} is not in an adapter: load the base in that dtype")
    if has_embeddings:
        notes.append("PEFT rounds the delta of an embedding to the base's dtype before it adds it")
    return tuple(notes)


def _is_causal(planned: RecipePlan) -> bool:
    """Whether the base continues texts, by the name of its class."""
    names = planned.merge.base.config.get("architectures") or []
    return any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in names)


def _command(exported: Exported, home: str) -> str:
    several = len(exported.documents) > 1
    parts = ["mergekit-multi" if several else "mergekit-yaml", shlex.quote(f"{home}/{RECIPE_FILE}")]
    parts += ["--intermediate-dir", "./INTERMEDIATE", "--out-path", "OUT"] if several else ["OUT"]
    if exported.adapters:
        parts += ["--lora-merge-cache", "CACHE"]
    if exported.wide_adapters:
        parts += ["--lora-merge-dtype", "float32"]
    return " ".join(parts)


def _recipe_text(exported: Exported, command: str) -> str:
    head = f"# Written by wsmerge export mergekit; see README.md.\n# Run in {os.getcwd()}, where paths are seen from:\n"  # noqa: PTH109 - the same, as text
    documents = [yaml.safe_dump(with_plain_paths(document), sort_keys=False) for document in exported.documents]
    return f"{head}#   {command}\n" + "---\n".join(documents)


def _sync_below(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        sync_folder(path)
