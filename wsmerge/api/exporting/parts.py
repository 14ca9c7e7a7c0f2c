"""What an export comes to, before it is written down: documents of a recipe, and what to tell the user."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from wsmerge.api.exporting.folding import is_factored
from wsmerge.api.exporting.modules import Module, adaptable_modules
from wsmerge.api.recipes import RecipePlan
from wsmerge.core.dtypes import F32, DType
from wsmerge.core.tensors import TensorSpec
from wsmerge.engine.plan import MergePlan

__all__ = ["Exported", "Factored", "common_dtype", "factored_tensors", "only"]


@dataclass(slots=True)
class Exported:
    """The documents of a mergekit recipe and how they are to be run.

    Attributes:
        documents: as JSON values, in order; several are for mergekit-multi.
        adapters: whether mergekit has to merge adapters, so that it needs a folder for that.
        wide_adapters: whether it has to do so in float32.
        exact: whether mergekit's result has wsmerge's bits, as far as its sums have the order that is known of them.
        coefficients_inside: whether the coefficients of `directions` stand in the documents.
        notes: what the user should know.
    """

    documents: list[dict[str, Any]] = field(default_factory=list)
    adapters: bool = False
    wide_adapters: bool = False
    exact: bool = True
    coefficients_inside: bool = False
    notes: list[str] = field(default_factory=list)

    def inexact(self, note: str) -> None:
        """Note why the result is only close."""
        self.exact = False
        self.notes.append(note)


@dataclass(frozen=True, slots=True)
class Factored:
    """The tensors of a plan that an adapter can change.

    Attributes:
        modules: of those tensors.
        others: the tensors that directions change and an adapter cannot, with the reason.
    """

    modules: dict[str, Module]
    others: dict[str, str]

    @property
    def names(self) -> dict[str, str]:
        """For each tensor, its module's weight in memory."""
        return {tensor: f"{module.name}.weight" for tensor, module in self.modules.items()}

    @property
    def has_embeddings(self) -> bool:
        """Whether embeddings are among them, which PEFT rounds twice."""
        return any(module.layout == "embedding" for module in self.modules.values())


def factored_tensors(planned: RecipePlan) -> Factored:
    """Sort the tensors that a plan's directions change; builds the model without weights if there are any."""
    plan = planned.merge
    changed = [tensor for tensor in plan.tensors if tensor.terms]
    if not changed:
        return Factored({}, {})
    names = [tensor.spec.name for tensor in plan.tensors]
    config = planned.files.config or plan.base.config
    modules = adaptable_modules(config, names, label=plan.base.label)
    tied = {one for out, into in plan.base.tied.items() if out not in names for one in (out, into)}
    found, others = {}, {}
    for tensor in changed:
        name = tensor.spec.name
        if not is_factored(plan, tensor):
            others[name] = "its delta is dense"
        elif name in tied:
            others[name] = "input and output embedding are one tensor, and an adapter changes only the one"
        elif name not in modules:
            others[name] = "it is no weight of a linear layer or an embedding that PEFT can adapt"
        else:
            found[name] = modules[name]
    return Factored(found, others)


def only(plan: MergePlan, names: Iterable[str]) -> MergePlan:
    """`plan` with the directions' terms left to the tensors in `names`."""
    kept = set(names)
    tensors = tuple(item if item.spec.name in kept else replace(item, terms=()) for item in plan.tensors)
    return replace(plan, tensors=tensors)


def common_dtype(specs: Iterable[TensorSpec]) -> DType | None:
    """The dtype of all float tensors; None where they have several. Without any, float32."""
    found = {spec.dtype for spec in specs if spec.dtype.is_float}
    return found.pop() if len(found) == 1 else None if found else F32
