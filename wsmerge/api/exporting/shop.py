"""The folder of an export while it is made: adapters and checkpoints, and the paths by which a recipe names them.

Folders carry a digest in their names. mergekit keeps the merged model of each `base+adapter` by its path and takes it
again whatever the adapter holds, so another adapter needs another path.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from wsmerge.api.exporting.folding import FoldedTerms
from wsmerge.api.exporting.modules import Module
from wsmerge.api.published import published_recipe
from wsmerge.api.recipes import RecipePlan
from wsmerge.core.files import make_folder
from wsmerge.engine.locate import model_name
from wsmerge.engine.merge import MergeJob, run_merge
from wsmerge.engine.plan import MergePlan
from wsmerge.recipe import ModelPath, ModelReference
from wsmerge.registry import BaseRecord
from wsmerge.registry.payloads import ADAPTER_CONFIG_FILE, write_payload

__all__ = ["Shop", "path_text", "set_task", "write_adapter"]


@dataclass(slots=True)
class Shop:
    """Writes into `staged`, which becomes the folder that the user calls `out`.

    Attributes:
        staged: where files go for now.
        out: as paths name the folder in the end.
        compact: leave ranks as they are where filling them up would make float32 sums exact.
        written: what was made, by its path within the folder, with a word on each.
    """

    staged: Path
    out: Path
    compact: bool = False
    written: dict[str, str] = field(default_factory=dict)

    def adapter(self, name: str, folded: FoldedTerms, layouts: Mapping[str, Module], base: ModelPath) -> ModelPath:
        """Write an adapter; the path by which a recipe names it."""
        relative = f"adapters/{name}-{folded.digest[:10]}"
        if relative not in self.written:
            folder = self.staged / relative
            make_folder(folder)
            write_adapter(folder, folded, layouts, base)
            self.written[relative] = f"PEFT adapter over {base}, {len(folded.shapes)} tensors"
        return ModelPath(path=f"{path_text(self.out)}/{relative}")

    def checkpoint(self, name: str, planned: RecipePlan, plan: MergePlan) -> ModelReference:
        """Carry out `plan`, made of that of `planned`, and name the result."""
        relative = f"checkpoints/{name}-{plan.digest[:10]}"
        if relative not in self.written:
            make_folder(self.staged / "checkpoints")
            base = planned.recipe.recipe.base_model
            job = MergeJob(
                out=self.staged / relative,
                recipe=published_recipe(planned.recipe, plan, planned.directions),
                base_model=model_name(base.model.path, plan.base.path) if base else plan.base.label,
                files=planned.files,
                warnings=("a part of an exported recipe: not all of it is in these weights",),
            )
            run_merge(plan, job)
            self.written[relative] = f"checkpoint, {plan.write_bytes / 1e6:,.1f} MB"
        return ModelReference(model=ModelPath(path=f"{path_text(self.out)}/{relative}"))


def path_text(out: Path) -> str:
    """A folder as recipes name it: absolute, or from the folder that the user is in with `./` before it."""
    # mergekit asks the Hub about relative paths that could be a Hub id.
    relative = os.path.normpath(out)
    return relative if out.is_absolute() or relative.startswith("..") else f"./{relative}"


def write_adapter(folder: Path, folded: FoldedTerms, modules: Mapping[str, Module], base: ModelPath) -> None:
    """Write the two files of a PEFT adapter into `folder`.

    Args:
        folder: exists and is empty.
        folded: the deltas, by module.
        modules: of each tensor of the plan that `folded` is of.
        base: what `adapter_config.json` names as the base.
    """
    layouts = {f"{module.name}.weight": module.layout for module in modules.values()}
    record = BaseRecord(
        model=base.path, revision=base.revision, structure=folded.base.structure, weights=folded.base.weights
    )
    write_payload(folder, folded, record, {name: layouts[name] for name in folded.shapes})


def set_task(folder: Path, task: str) -> None:
    """Say in an adapter's settings what its base does, by which PEFT's Auto classes choose the base's class."""
    path = folder / ADAPTER_CONFIG_FILE
    settings = json.loads(path.read_bytes())
    path.write_text(json.dumps(settings | {"task_type": task}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
