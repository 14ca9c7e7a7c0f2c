"""Recipes merged: one, or several of one file that build on each other.

    name: blend                the result of a named recipe is a model of the others, by its name
    ---
    models: [{model: blend}]   the unnamed one, else the last, becomes the output

Each intermediate result lies in a folder named after its plan: a result whose recipe, models and settings are the same is
taken again, and any other is made anew. A folder appears when it is whole, so half-written ones are never taken. Results of
methods that a user registered are made anew each time: nothing tells whether their code is the same.
"""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from wsmerge.api.findings import refuse_findings
from wsmerge.api.recipes import RecipePlan, check_out, merge_planned, plan
from wsmerge.api.settings import RecipeLike, Settings, loaded_recipes
from wsmerge.core.digest import canonical_json, sha256_hex
from wsmerge.engine.merge import MergeReport
from wsmerge.engine.placing import REPORT_FILE, place_of
from wsmerge.engine.shards import file_stamp
from wsmerge.engine.sidecars import carried_files
from wsmerge.errors import UsageError
from wsmerge.recipe import LoadedRecipe
from wsmerge.recipe.chain import file_name, in_order, model_references
from wsmerge.recipe.methods import METHODS

if TYPE_CHECKING:
    from wsmerge.registry import Registry

__all__ = ["merge"]

Progress = Callable[[int, int], None]


def merge(
    recipe: RecipeLike | RecipePlan,
    out: Path | str,
    *,
    overwrite: bool = False,
    store: Registry | None = None,
    settings: Settings | None = None,
    intermediates: Path | str | None = None,
    progress: Progress | None = None,
) -> MergeReport:
    """Write the checkpoint that a recipe describes: models merged, and directions added.

        theta_out = round(merge(models) + sum_i k_i(layer, tensor) * w_i)

    What a recipe of mergekit says gives mergekit's bits; directions are summed in float32 and rounded once, to nearest
    even. The folder `out` appears when all of it is on the disk; a merge that fails or is interrupted leaves nothing,
    and one that was killed goes on where it stopped.

    Args:
        recipe: what to merge; a `RecipePlan` is carried out as it is. A file may hold several recipes that build on
            each other.
        out: folder to make.
        overwrite: replace `out` if wsmerge wrote it.
        store: where references of directions are looked up.
        settings: numerics, strictness, threads and shard size.
        intermediates: folder that keeps the results of named recipes for the next time; None removes them at the end.
        progress: called with bytes written and bytes in all.

    Raises:
        OutputError: `out` exists or cannot be written.
        WsmergeError: as `plan`.
    """
    if isinstance(recipe, RecipePlan):
        return merge_planned(recipe, out, overwrite=overwrite, progress=progress)
    recipes = loaded_recipes(recipe)
    settings = settings or Settings()
    if len(recipes) == 1:
        with plan(recipes[0], store=store, settings=settings) as planned:
            return merge_planned(planned, out, overwrite=overwrite, progress=progress)
    run = _Chain(store, settings, progress)
    for one in recipes:
        refuse_findings(one, strict=settings.strict)  # before the work of the first merge, not after it
    with _folder(intermediates, Path(out), [one.name for one in recipes if one.name]) as folder:
        return run.merge(recipes, folder, Path(out), overwrite=overwrite)


class _Chain:
    """The merges of one file in progress."""

    def __init__(self, store: Registry | None, settings: Settings, progress: Progress | None) -> None:
        self._store = store
        self._settings = settings
        self._progress = progress
        self._done: dict[str, Path] = {}
        self._warnings: list[str] = []
        self._hub_bytes = self._hub_requests = 0

    def merge(self, recipes: Sequence[LoadedRecipe], folder: Path, out: Path, *, overwrite: bool) -> MergeReport:
        needed, result = in_order(recipes)
        for recipe, name in needed:
            self._done[name] = self._intermediate(recipe, name, folder, out, overwrite=overwrite)
        with plan(result, store=self._store, settings=self._with_done()) as planned:
            report = merge_planned(planned, out, overwrite=overwrite, progress=self._progress)
        return replace(
            report,
            warnings=(*self._warnings, *report.warnings),
            hub_bytes=report.hub_bytes + self._hub_bytes,
            hub_requests=report.hub_requests + self._hub_requests,
        )

    def _intermediate(self, recipe: LoadedRecipe, name: str, folder: Path, out: Path, *, overwrite: bool) -> Path:
        with plan(recipe, store=self._store, settings=self._with_done()) as planned:
            check_out(planned, out, overwrite=overwrite)  # as in `merge`: before any work
            self._warnings += planned.warnings
            place = folder / f"{file_name(name)}-{self._key(planned)[:16]}"
            is_registered = recipe.recipe.merge_method not in (None, *METHODS)
            if is_registered or not (place / REPORT_FILE).is_file():
                report = merge_planned(planned, place, overwrite=is_registered, progress=self._progress)
                self._hub_bytes += report.hub_bytes
                self._hub_requests += report.hub_requests
        return place

    def _key(self, planned: RecipePlan) -> str:
        """Changes when anything does that the result depends on, the files beside the weights included."""
        folders = [model.path for model in planned.merge.models]
        for keys, reference in model_references(planned.recipe.recipe):
            if keys[0] in ("tokenizer", "tokenizer_source"):
                folders.append(self._with_done().locate(reference.model.path, reference.model.revision))
        files = planned.files
        beside: Mapping[str, object] = {
            "plan": planned.merge.digest,
            "config": dict(files.config or {}),
            "chat_template": files.chat_template,
            "files": [file_stamp(path) for folder in folders for path in carried_files(folder)],
            "wsmerge": importlib.metadata.version("wsmerge"),
        }
        return sha256_hex(canonical_json(beside))

    def _with_done(self) -> Settings:
        return replace(self._settings, intermediates=dict(self._done))


@contextmanager
def _folder(chosen: Path | str | None, out: Path, names: Sequence[str]) -> Iterator[Path]:
    """The folder of intermediate results; one beside `out`, removed at the end, where none was chosen."""
    place = place_of(out)
    if chosen is not None:
        if place in (place_of(Path(chosen)), *place_of(Path(chosen)).parents):
            message = "the intermediate results would lie in the output"
            raise UsageError(message, where=str(chosen), hint="choose another folder for them")
        yield Path(chosen)
        return
    folder = place.with_name(f"{place.name}.intermediates")
    try:
        yield folder
    finally:
        for made in (path for name in names for path in folder.glob(f"{file_name(name)}-*")):
            shutil.rmtree(made, ignore_errors=True)  # only room, if it cannot be removed
        with suppress(OSError):  # something else lies in it, or no result was made
            folder.rmdir()
