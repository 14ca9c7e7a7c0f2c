"""Tensors that a checkpoint stores in another layout than the model has, made as transformers makes them on loading.

    stored    model.layers.0.block_sparse_moe.experts.{0..7}.w1.weight, ....w3.weight         2 x 8 of (inner, hidden)
    weight    model.layers.0.mlp.experts.gate_up_proj                                         (8, 2 inner, hidden)

Which tensors a weight is made of is asked of transformers; how it is made, of mergekit, on tensors without storage (shape and
dtype) and on small ones that hold row numbers instead of values. Nearly always whole rows are put in another order:

    out[i, :] = source(i)[row(i), :]         read by range, without ever holding the tensor
    else                                     made as a whole when it is first read, and held in a `ConversionCache`
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, Protocol

from wsmerge.core.closing import Closing
from wsmerge.core.dtypes import dtype_named
from wsmerge.core.tensors import TensorInput, TensorSpec
from wsmerge.engine.inputs.converted_rows import RowMap, row_map
from wsmerge.engine.inputs.stored import StoredTensor
from wsmerge.engine.names import may_convert, spread_targets
from wsmerge.errors import CheckpointError

if TYPE_CHECKING:
    from wsmerge.engine.architecture.weights import Weight
    from wsmerge.engine.checkpoint import Checkpoint

__all__ = ["ConversionCache", "ConvertedTensor", "Convertible", "find_conversion"]

_HELD_OF_EACH_CHECKPOINT: Final = 2


class Holder(Protocol):
    """What made tensors are held for: a checkpoint, or one with an adapter on it."""

    @property
    def label(self) -> str:
        """How messages name it."""


class Adapted(Holder, Protocol):
    """A checkpoint with an adapter on it, which gives its tensors by their stored names."""

    def tensor(self, name: str) -> TensorInput:
        """The tensor called `name`, with what the adapter adds to it."""


class Convertible(Protocol):
    """A configuration, and the tensors that are stored with it."""

    @property
    def config(self) -> Mapping[str, Any]:
        """`config.json`."""

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Every tensor by name."""


class ConversionCache(Closing):
    """What conversions share: which tensors make which, and the last few that had to be made as a whole.

    Threads may share it. It holds two tensors of each checkpoint, since reading block by block meets at most the end of one and
    the start of the next.

    Attributes:
        found: what `find_conversion` found, by checkpoint, adapted model, name and aliases of the weight.
    """

    def __init__(self) -> None:
        self.found: dict[Hashable, ConvertedTensor | None] = {}
        self._lock = threading.Lock()
        self._reachable: dict[Convertible, Mapping[str, frozenset[str]]] = {}
        self._held: dict[Holder, OrderedDict[str, memoryview]] = {}

    def sources(self, checkpoint: Convertible, target: str) -> frozenset[str]:
        """The stored tensors from which transformers' conversions can make `target`; empty where they cannot."""
        with self._lock:
            if checkpoint not in self._reachable:
                self._reachable[checkpoint] = _reachable(checkpoint)
            return self._reachable[checkpoint].get(target, frozenset())

    def held(self, holder: Holder, name: str) -> memoryview | None:
        """The bytes of a tensor that was made and is still held."""
        with self._lock:
            held = self._held.get(holder)
            if held is None or name not in held:
                return None
            held.move_to_end(name)
            return held[name]

    def hold(self, holder: Holder, name: str, made: memoryview) -> None:
        """Hold the bytes of a tensor, and let go of those that were not read for longest."""
        with self._lock:
            held = self._held.setdefault(holder, OrderedDict())
            held[name] = made
            while len(held) > _HELD_OF_EACH_CHECKPOINT:
                held.popitem(last=False)

    def close(self) -> None:
        """Let go of everything; what is read afterwards is made again."""
        with self._lock:
            self._held.clear()
            self._reachable.clear()
            self.found.clear()


class ConvertedTensor:
    """A weight that is made of stored tensors while it is read; a core `TensorInput`.

    Attributes:
        label: the checkpoint, the weight, and what it is made of.
        spec: the weight's name, with dtype and shape as made.
        sources: names of the stored tensors that it is made of, in the order in which they are taken.
        made_of: the same, of the checkpoint, and what an adapter adds to them.
        rows: which rows of them it consists of; None where it does not consist of whole rows.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        holder: Holder,
        spec: TensorSpec,
        target: str,
        tensors: Mapping[str, TensorInput],
        rows: RowMap | None,
        cache: ConversionCache,
    ) -> None:
        self.spec = spec
        self.sources = tuple(tensors)
        self.made_of = tuple(chain.from_iterable(tensor.made_of for tensor in tensors.values()))
        self.label = f"{holder.label}: {spec.name} (made of {_and_more(self.sources)})"
        self.rows = rows
        self._checkpoint = checkpoint
        self._holder = holder
        self._target = target
        self._tensors = tensors
        self._cache = cache
        self._making = threading.Lock()

    @property
    def is_read_by_range(self) -> bool:
        """Whether its rows are stored rows, so that it is never made as a whole."""
        return self.rows is not None

    def read_into(self, start: int, out: memoryview) -> None:
        """Fill `out` with the bytes from byte `start` on."""
        if self.rows is None:
            out[:] = self._made()[start : start + len(out)]
            return
        for name, first, place in self.rows.pieces(start, len(out)):
            self._tensors[name].read_into(first, out[place])

    def _made(self) -> memoryview:
        with self._making:
            made = self._cache.held(self._holder, self.spec.name)
            if made is None:
                made = _make(self._checkpoint, self._tensors, self._target)
                self._cache.hold(self._holder, self.spec.name, made)
            return made


def find_conversion(
    checkpoint: Checkpoint, weight: Weight, cache: ConversionCache, adapted: Adapted | None = None
) -> ConvertedTensor | None:
    """The weight as transformers would make it from what is stored, None where it would not.

    Ask only for a weight that is stored under none of its names. Where there may be a conversion, the answer loads
    transformers, and mergekit too if there is one.

    Args:
        checkpoint: where to look; its `model_type` decides which conversions there are.
        weight: its name is tried first, then its aliases.
        cache: shared by all conversions of one merge.
        adapted: the model of this checkpoint whose tensors are taken in place of the stored ones.

    Raises:
        CheckpointError: the conversion fails for these shapes.
    """
    key = checkpoint, adapted, weight.name, weight.aliases
    if key not in cache.found:
        made = (
            _converted(checkpoint, adapted, weight.name, target, names, cache)
            for target in (weight.name, *weight.aliases)
            if (names := cache.sources(checkpoint, target))
        )
        cache.found[key] = next((tensor for tensor in made if tensor is not None), None)
    return cache.found[key]


def _converted(
    checkpoint: Checkpoint,
    adapted: Adapted | None,
    name: str,
    target: str,
    names: frozenset[str],
    cache: ConversionCache,
) -> ConvertedTensor | None:
    import torch  # noqa: PLC0415 - slow to load; only a converted tensor needs it

    tensors: dict[str, TensorInput] = {
        source: adapted.tensor(source) if adapted is not None else StoredTensor(checkpoint, source)
        for source in sorted(names)
    }
    specs = {source: tensor.spec for source, tensor in tensors.items()}

    def empty(spec: TensorSpec) -> Any:  # noqa: ANN401 - a torch tensor
        return torch.empty(spec.shape, dtype=getattr(torch, spec.dtype.recipe_name), device="meta")

    used: list[str] = []

    def taken(source: str) -> Any:  # noqa: ANN401 - a torch tensor
        used.append(source)
        return empty(specs[source])

    shaped = _convert(checkpoint, {source: partial(taken, source) for source in specs}, target)
    if shaped is None:
        return None
    spec = TensorSpec(name, dtype_named(str(shaped.dtype).removeprefix("torch.")), tuple(shaped.shape))
    sources = tuple(dict.fromkeys(used))
    rows = row_map(
        {source: specs[source] for source in sources}, spec, lambda stand_ins: _convert(checkpoint, stand_ins, target)
    )
    used_tensors = {source: tensors[source] for source in sources}
    return ConvertedTensor(checkpoint, adapted or checkpoint, spec, target, used_tensors, rows, cache)


def _make(checkpoint: Checkpoint, tensors: Mapping[str, TensorInput], target: str) -> memoryview:
    import torch  # noqa: PLC0415 - slow to load; only a converted tensor needs it

    def read(tensor: TensorInput) -> Any:  # noqa: ANN401 - a torch tensor
        data = bytearray(tensor.spec.nbytes)
        tensor.read_into(0, memoryview(data))
        dtype = getattr(torch, tensor.spec.dtype.recipe_name)
        return torch.frombuffer(data, dtype=torch.uint8).view(dtype).reshape(tensor.spec.shape)

    made = _convert(checkpoint, {name: partial(read, tensor) for name, tensor in tensors.items()}, target)
    return memoryview(made.contiguous().reshape(-1).view(torch.uint8).numpy()).cast("B")


def _convert(checkpoint: Checkpoint, tensors: Mapping[str, Callable[[], Any]], target: str) -> Any:  # noqa: ANN401 - torch's
    from mergekit.architecture.conversion import convert_checkpoint_tensors  # noqa: PLC0415 - takes seconds

    try:
        return convert_checkpoint_tensors(checkpoint.config.get("model_type"), tensors, target)
    except Exception as error:
        raise CheckpointError(
            f"transformers cannot make it from what is stored ({_and_more(tuple(tensors))}): {error}",
            where=f"{checkpoint.path}: {target}",
            hint="load the model with transformers, save it again, and merge that copy",
        ) from error


def _reachable(checkpoint: Convertible) -> Mapping[str, frozenset[str]]:
    """Each name that the conversions of this `model_type` can make, and the stored tensors that it is made of."""
    if not may_convert(checkpoint.config):
        return {}
    from transformers import conversion_mapping  # noqa: PLC0415 - slow to load
    from transformers.core_model_loading import WeightRenaming  # noqa: PLC0415 - slow to load

    mapping_of: Callable[[object], list[Any] | None] = conversion_mapping.get_checkpoint_conversion_mapping
    known = {name: frozenset((name,)) for name in checkpoint.specs}
    found: dict[str, frozenset[str]] = {}
    for transform in mapping_of(checkpoint.config.get("model_type")) or ():
        made: dict[str, frozenset[str]] = {}
        for name, sources in known.items():
            renamed, pattern = transform.rename_source_key(name)
            if pattern is None:
                continue
            single = isinstance(transform, WeightRenaming)
            for target in (renamed,) if single else spread_targets(renamed, transform.target_patterns):
                made[target] = made.get(target, frozenset()) | sources
        found |= {target: found.get(target, frozenset()) | sources for target, sources in made.items()}
        if isinstance(transform, WeightRenaming):
            known |= made
    return found


def _and_more(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
