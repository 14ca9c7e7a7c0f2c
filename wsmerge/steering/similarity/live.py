"""What training has changed so far in a model that is loaded, as a source of deltas: parameters less where they began.

    parameters in training     dense, against a copy of their first values or against a base checkpoint
    LoRA factors               s * B @ A as they are, never merged
    modules_to_save            dense, against the module that they replace

Values are read from the model when they are asked for, a block at a time, on whatever device they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from wsmerge.core.deltas import LowRankDelta
from wsmerge.core.digest import structure_digest
from wsmerge.core.reading import tensor_values
from wsmerge.core.tensors import BaseIdentity
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.engine.names import CheckpointNames
from wsmerge.errors import AdapterError, BaseMismatchError, Problems
from wsmerge.steering.parameters import checkpoint_name, named_slots, obstacle, slot_of

__all__ = ["LiveUpdate"]


class _Begun(Protocol):
    """Where a parameter began."""

    def read(self, start: int, count: int) -> torch.Tensor:
        """Elements on the CPU."""


class _Copy(NamedTuple):
    """A tensor in memory."""

    values: torch.Tensor

    def read(self, start: int, count: int) -> torch.Tensor:
        return self.values.detach().reshape(-1)[start : start + count].cpu()


class _Stored(NamedTuple):
    """A tensor of the base checkpoint."""

    base: Checkpoint
    name: str

    def read(self, start: int, count: int) -> torch.Tensor:
        return torch.from_numpy(tensor_values(self.base, self.name, start, count))


class _Dense(NamedTuple):
    parameter: torch.nn.Parameter
    begun: _Begun


class _Factors(NamedTuple):
    b: torch.Tensor
    a: torch.Tensor
    scale: float
    transposed: bool


class LiveUpdate:
    """The change of a loaded model since this was made, or since `base`, as a `DeltaSource`.

    Args:
        model: a transformers model, also wrapped by PEFT, torch.compile or DistributedDataParallel. Without a base it has
            to be as training finds it: parameters in training are copied to the CPU's memory.
        base: the checkpoint that training began with, which stays open; all parameters are compared with it.

    Attributes:
        shapes: name and shape of every parameter that can have changed.
        all_shapes: of every parameter.

    Raises:
        AdapterError: an adapter whose change is not linear in its factors, or that is no LoRA.
        BaseMismatchError: parameters that cannot be read, or that `base` does not have.
    """

    def __init__(self, model: torch.nn.Module, base: Checkpoint | None = None) -> None:
        self.label = type(model).__name__
        self.digest = ""
        self.all_shapes, self.tied = _shapes(model)
        adapted = list(_adapter_modules(model))
        self._factors = _factors_of(adapted)
        problems = Problems()
        trained = dict(_trained(model, self.tied, base, problems))
        self._copied = base is None and bool(trained)
        self._dense = dict(_replaced(adapted)) | trained
        problems.raise_if_any(
            BaseMismatchError,
            "parameters whose change cannot be computed",
            where=self.label,
            hint="train on whole, unquantised parameters, and give the base that the training began with",
        )
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: shape for name, shape in self.all_shapes.items() if name in self._dense or name in self._factors
        }

    @cached_property
    def base(self) -> BaseIdentity:
        """The model as it is in memory."""
        return BaseIdentity(self.label, structure_digest(self.all_shapes.items()), "", self.tied)

    @property
    def copied(self) -> bool:
        """Whether it depends on when it was made: parameters were copied then."""
        return self._copied

    def rank(self, name: str) -> int | None:
        """Sum of the ranks of the adapters of `name`, None for a dense change."""
        if name in self._dense:
            return None
        return sum(int(factors.a.shape[0]) for factors in self._factors[name])

    def low_rank(self, name: str) -> LowRankDelta:
        """The adapters' factors for `name` as they are now, scaled, float32."""
        found = [_oriented(factors) for factors in self._factors[name]]
        return LowRankDelta(np.hstack([item.b for item in found]), np.vstack([item.a for item in found]))

    def read_dense(self, name: str, start: int, out: NDArray[np.float32]) -> None:
        """Fill `out` with elements of the change of `name` from element `start` on."""
        dense = self._dense[name]
        own = dense.parameter.detach().reshape(-1)[start : start + out.size].cpu()
        begun = dense.begun.read(start, out.size)
        wide = torch.float64 if torch.float64 in (own.dtype, begun.dtype) else torch.float32
        out[:] = (own.to(wide) - begun.to(wide)).numpy()
        for factors in self._factors.get(name, ()):
            out += _oriented(factors).elements(start, out.size)


def _shapes(model: torch.nn.Module) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Checkpoint name and shape of each parameter; and which names are one parameter with another."""
    first: dict[object, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    tied: dict[str, str] = {}
    for name, parameter in named_slots(model):
        plain = name.replace(".original_module.", ".")
        slot: object = name if parameter.is_meta else slot_of(parameter)
        if first.setdefault(slot, plain) != plain:
            tied[plain] = first[slot]
        else:
            shapes[plain] = tuple(parameter.shape)
    return shapes, tied


def _adapter_modules(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """The modules that PEFT put in, with the checkpoint name of what they stand for."""
    if not any(".lora_" in name or ".modules_to_save." in name for name, _ in model.named_parameters()):
        return
    from peft.tuners.tuners_utils import BaseTunerLayer  # noqa: PLC0415 - slow to load, and only for models that have it
    from peft.utils import ModulesToSaveWrapper  # noqa: PLC0415

    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer | ModulesToSaveWrapper):
            yield checkpoint_name(name), module


def _factors_of(adapted: Sequence[tuple[str, Any]]) -> dict[str, list[_Factors]]:
    found: dict[str, list[_Factors]] = {}
    problems = Problems()
    for name, module in adapted:
        if hasattr(module, "modules_to_save"):
            continue
        if not hasattr(module, "lora_A"):
            problems.add(f"{name}: {type(module).__name__} is no LoRA")
            continue
        reason = _not_linear(module)
        if reason:
            problems.add(f"{name}: {reason}")
        found[f"{name}.weight"] = list(_module_factors(module))
    problems.raise_if_any(
        AdapterError, "the adapter is no plain LoRA", hint="train with plain LoRA, or compare its merged checkpoints"
    )
    return found


def _not_linear(module: Any) -> str | None:  # noqa: ANN401 - PEFT ships no types
    if module.lora_variant:
        return "a variant such as DoRA, whose change is not linear in the factors"
    if any(module.lora_bias.values()):
        return "a bias of the factors (lora_bias), which is no part of B @ A"
    if module.merged:
        return "its factors are merged into the weight"
    if module.get_base_layer().weight.ndim != 2:
        return "factors of a convolution"
    return None


def _module_factors(module: Any) -> Iterator[_Factors]:  # noqa: ANN401 - PEFT ships no types
    for adapter in module.active_adapters:
        scale = float(module.scaling.get(adapter, 0.0))
        if adapter in module.lora_A:
            transposed = bool(getattr(module, "fan_in_fan_out", False))
            yield _Factors(module.lora_B[adapter].weight, module.lora_A[adapter].weight, scale, transposed)
        elif adapter in module.lora_embedding_A:
            yield _Factors(module.lora_embedding_B[adapter], module.lora_embedding_A[adapter], scale, transposed=True)


def _oriented(factors: _Factors) -> LowRankDelta:
    b, a = (item.detach().to("cpu", torch.float64).numpy() for item in (factors.b, factors.a))
    delta = LowRankDelta((factors.scale * b).astype(np.float32), a.astype(np.float32))
    return delta.transposed() if factors.transposed else delta


def _replaced(adapted: Sequence[tuple[str, Any]]) -> Iterator[tuple[str, _Dense]]:
    for name, module in adapted:
        for adapter in module.active_adapters if hasattr(module, "modules_to_save") else ():
            before = dict(module.original_module.named_parameters())
            for part, parameter in module.modules_to_save[adapter].named_parameters():
                yield f"{name}.{part}", _Dense(parameter, _Copy(before[part]))


def _trained(
    model: torch.nn.Module, tied: Mapping[str, str], base: Checkpoint | None, problems: Problems
) -> Iterator[tuple[str, _Dense]]:
    names = CheckpointNames(base.specs) if base is not None else None
    for name, parameter in named_slots(model):
        if name in tied or ".original_module." in name or (base is None and not parameter.requires_grad):
            continue
        reason = obstacle(parameter)
        if reason:
            problems.add(f"{name} {reason}")
        elif base is None or names is None:
            yield name, _Dense(parameter, _Copy(parameter.detach().cpu().clone()))
        else:
            stored = names.find(name)
            if stored is None or base.specs[stored].shape != tuple(parameter.shape):
                problems.add(f"{name}: {base.label} has none of its name and shape{names.suggestion(name)}")
            else:
                yield name, _Dense(parameter, _Stored(base, stored))
