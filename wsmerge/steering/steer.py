"""Steering a loaded model in place: theta + sum_i k_i * w_i, and back bit for bit.

    new = round_to_parameter_dtype(float32(original) + sum_i k_i * w_i in float32)

rounded to nearest even, in float64 for a float64 parameter.

**The invariant.** A parameter that open blocks change has one record: a copy of its original bits, on its own device, and
the terms of every such block. The parameter holds the original plus the sum of these terms, rounded once. Without terms it
has its original bits, and no record. So blocks may begin and end in any order, nested or crosswise, and while several are
open the model carries the sum of all. Subtracting what was added would not bring the bits back.

**Changes by others.** Before a record writes, it compares the parameter with what it wrote last, by sums of the bits (version
counters miss what is written through `.data`). A parameter that was converted or moved (`model.to(...)`), or replaced by one
of equal values (`load_state_dict(assign=True)`), is followed: its original is converted likewise. Anything else, such as an
optimiser's step, is told as a SteeringError and left as it is.

**Threads.** A model is steered by one thread, or asyncio task, at a time: another one is refused at once, since its answers
would be those of both. A block may end in any thread.

In-place changes raise the parameters' version counters. So a graph recorded before the block and run backward inside it
is an error of torch, not a wrong gradient; forward and backward within the block are fine.
"""

from __future__ import annotations

import asyncio
import math
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from wsmerge.errors import SteeringError
from wsmerge.steering.parameters import Slot, named_slots, obstacle, slot_of
from wsmerge.steering.placing import Addend, SteeringTerm, targets_of

__all__ = ["Block", "SteeringTerm", "steered"]

_BLOCK_ELEMENTS: Final = 1 << 22
_IN_PLACE: Final = "was changed in place"
_INTEGERS: Final = {2: torch.int16, 4: torch.int32, 8: torch.int64}

_lock: Final = threading.RLock()
"""Held while blocks begin, change and end; not while a body runs."""
_open: Final[weakref.WeakSet[Block]] = weakref.WeakSet()


@contextmanager
def steered(model: torch.nn.Module, terms: Sequence[SteeringTerm]) -> Iterator[None]:
    """Add `terms` to the parameters of `model` within a `with` block; afterwards every parameter has its old bits.

    A tied parameter is changed once. Where the direction's base ties two parameters and the model does not, both change.
    Gradient flags and devices stay as they are; k = 0 changes nothing and copies nothing.

    Args:
        model: a transformers model, or any module with the base's parameter names, also wrapped by PEFT, torch.compile or
            DistributedDataParallel, on any device.
        terms: directions with their coefficients by tensor, in the order in which they are summed.

    Raises:
        NonFiniteError: a coefficient that is NaN or infinite.
        BaseMismatchError: deltas that have no parameter of their name and shape, or one that cannot be changed; all of
            them, and nothing was changed.
        SteeringError: another thread steers the model; or, when the block ends, parameters that others changed meanwhile.
    """
    block = Block(model)
    try:
        block.set(terms)
        yield
    finally:
        block.end()


class Block:
    """What one caller adds to a model's parameters, from `set` until `end`.

    Args:
        model: as for `steered`.

    Raises:
        SteeringError: another thread, or asyncio task, steers the model.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.modules = weakref.WeakSet(
            module for module in model.modules() if next(module.parameters(recurse=False), None) is not None
        )
        self.callers: list[_Caller] = []
        self.records: list[_Record] = []
        with _lock:
            self._refuse_others(among=())
            self.callers.append(_Caller.now())
            _open.add(self)

    @property
    def is_empty(self) -> bool:
        """Whether it adds nothing."""
        return not self.records

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Refuse other threads and tasks within a `with` block, as the block itself does for its whole time.

        Raises:
            SteeringError: another thread, or asyncio task, steers the model.
        """
        caller = _Caller.now()
        with _lock:
            self._refuse_others(among=self.callers[1:])  # the block itself may have been made elsewhere
            self.callers.append(caller)
        try:
            yield
        finally:
            self.callers.remove(caller)

    def set(self, terms: Sequence[SteeringTerm], *, overwrite: bool = False) -> None:
        """Add `terms`, and nothing else that this block added before; if it fails, it adds nothing any more.

        Parameters whose terms stay as they are, are not touched.

        Args:
            terms: directions with their coefficients by tensor, in the order in which they are summed.
            overwrite: where others changed a parameter of this block in place, warn and write it anew.

        Raises:
            NonFiniteError: a coefficient that is NaN or infinite; nothing was changed.
            BaseMismatchError: as for `steered`; nothing was changed.
            SteeringError: others changed parameters that are steered; nothing was changed.
        """
        with _lock, torch.inference_mode(mode=False), torch.no_grad():
            related = self._related()
            foreign = _settle(related)
            lost = [record for record, told in foreign.items() if told == _IN_PLACE and self in record.addends]
            if not overwrite:
                lost = []
            _refuse({record: told for record, told in foreign.items() if record not in lost}, self.model)
            wanted = {slot_of(target.parameter): target for target in targets_of(self.model, terms)}
            if lost:
                told = f"{lost[0].names[0]}{f' and {len(lost) - 1} more' if len(lost) > 1 else ''}"
                warnings.warn(f"changes that others made to steered parameters end here: {told}", stacklevel=3)
            names: dict[Slot, list[str]] = {}
            for name, parameter in named_slots(self.model):
                if obstacle(parameter) is None:
                    names.setdefault(slot_of(parameter), []).append(name)
            records = {record.slot: record for block in related for record in block.records}
            try:
                for record in [record for record in self.records if record.slot not in wanted]:
                    self._withdraw(record)
                for slot, target in wanted.items():
                    record = records.get(slot) or _Record.of(self.model, tuple(names[slot]), target.parameter)
                    if record not in lost and _same(record.addends.get(self), target.addends):
                        continue
                    if self not in record.addends:
                        self.records.append(record)
                    record.addends[self] = target.addends
                    record.write()
            except BaseException:
                self._withdraw_all()
                raise

    def end(self) -> None:
        """Take away what this block added; it cannot be used afterwards.

        Raises:
            SteeringError: others changed parameters of this block; they are left as they are, all others are restored.
        """
        with _lock, torch.inference_mode(mode=False), torch.no_grad():
            _open.discard(self)
            foreign = _settle([self, *self._related()])
            mine = {record: told for record, told in foreign.items() if self in record.addends}
            for record in mine:
                self.records.remove(record)
                del record.addends[self]
            try:
                self._withdraw_all()
            except BaseException:  # Ctrl-C: no parameter may stay as it is
                self._withdraw_all()
                raise
            _refuse(mine, self.model)

    def _withdraw_all(self) -> None:
        for record in list(self.records):
            self._withdraw(record)

    def _withdraw(self, record: _Record) -> None:
        record.addends.pop(self, None)
        record.write()
        self.records.remove(record)

    def _related(self) -> list[Block]:
        """The open blocks of models that share modules with this block's, itself among them."""
        return [block for block in _open if any(module in block.modules for module in self.modules)]

    def _refuse_others(self, among: Iterable[_Caller]) -> None:
        callers = [caller for block in self._related() if block is not self for caller in block.callers]
        if any(caller.is_another() for caller in (*callers, *among)):
            raise SteeringError(
                "another thread or task steers this model",
                where=type(self.model).__name__,
                hint="wait until its block has ended (a lock around both), or give each a model of its own",
            )


class _Caller(NamedTuple):
    """Who opened a block."""

    thread: threading.Thread
    task: asyncio.Task[Any] | None

    @classmethod
    def now(cls) -> _Caller:
        try:
            task = asyncio.current_task()
        except RuntimeError:  # no event loop runs in this thread
            task = None
        return cls(threading.current_thread(), task)

    def is_another(self) -> bool:
        """Whether this is somebody else than the present caller, and still at work."""
        now = _Caller.now()
        if self.thread is not now.thread:
            return self.thread.is_alive()
        return self.task is not None and self.task is not now.task and not self.task.done()


@dataclass(eq=False, slots=True)
class _Record:
    """A parameter that open blocks change; see the invariant at the top of this file.

    Attributes:
        model: where it was found.
        names: its checkpoint names there.
        parameter: the parameter.
        values: its values. Held so that no other tensor can come to lie at their address.
        original: a copy of them from before.
        addends: what each block adds, in the order of the blocks.
        sums: of the bits that were written last; None where a write was interrupted.
    """

    model: torch.nn.Module
    names: tuple[str, ...]
    parameter: torch.nn.Parameter
    values: torch.Tensor
    original: torch.Tensor
    addends: dict[Block, list[Addend]] = field(default_factory=dict)
    sums: tuple[torch.Tensor, torch.Tensor] | None = None

    @classmethod
    def of(cls, model: torch.nn.Module, names: tuple[str, ...], parameter: torch.nn.Parameter) -> _Record:
        values = parameter.detach()
        return cls(model, names, parameter, values, values.clone())

    @property
    def slot(self) -> Slot:
        """Where the values lie that it wrote."""
        return Slot(self.values.device, self.values.data_ptr(), self.values.shape, self.values.stride())

    def write(self) -> None:
        """Give the parameter the original bits plus all that is added."""
        self.sums = None
        self._write(self.values)
        self.sums = _bit_sums(self.values)

    def _write(self, out: torch.Tensor) -> None:
        addends = [addend for added in self.addends.values() for addend in added]
        with torch.inference_mode(mode=out.is_inference()):
            if addends:
                _add_sum(self.original, addends, out)
            else:
                out.copy_(self.original)

    def is_as_written(self) -> bool:
        """Whether the values are what was written last, as far as that is known."""
        return self.sums is None or all(map(torch.equal, _bit_sums(self.values), self.sums))

    def heirs(self, present: Mapping[str, torch.nn.Parameter]) -> list[_Record] | str:
        """Records of the parameters that have taken this one's place, or what they hold instead of its values."""
        written = torch.empty_like(self.original)
        self._write(written)
        names: dict[torch.nn.Parameter, list[str]] = {}
        for name, parameter in present.items():
            names.setdefault(parameter, []).append(name)
        found = []
        for parameter, its in names.items():
            reason = obstacle(parameter)
            if reason is not None:
                return reason
            values = parameter.detach()
            if values.shape != self.original.shape:
                return f"was replaced by one of shape {list(values.shape)}"
            if not torch.equal(_bits(values), _bits(written.to(values))):
                return "was replaced by one of other values"
            original = self.original.to(values, copy=True)
            found.append(
                _Record(self.model, tuple(its), parameter, values, original, dict(self.addends), _bit_sums(values))
            )
        return found


def _settle(blocks: Iterable[Block]) -> dict[_Record, str]:
    """Follow parameters that were converted, moved or replaced by equals; return what others did to the rest."""
    foreign: dict[_Record, str] = {}
    present: dict[torch.nn.Module, dict[str, torch.nn.Parameter]] = {}
    for record in dict.fromkeys(record for block in blocks for record in block.records):
        here = present.setdefault(record.model, dict(named_slots(record.model)))
        # A name that is gone, since a wrapper changed it, stands for the parameter itself.
        now = {name: here.get(name, record.parameter) for name in record.names}
        if all(obstacle(parameter) is None and slot_of(parameter) == record.slot for parameter in now.values()):
            if not record.is_as_written():
                foreign[record] = _IN_PLACE
            continue
        heirs = record.heirs(now)
        if isinstance(heirs, str):
            foreign[record] = heirs
            continue
        for block in record.addends:
            block.records.remove(record)
            block.records += heirs
    return foreign


def _refuse(foreign: dict[_Record, str], model: torch.nn.Module) -> None:
    if foreign:
        raise SteeringError(
            "parameters were changed by others while they were steered; these are left as they are",
            where=type(model).__name__,
            details=tuple(sorted(f"{record.names[0]} {told}" for record, told in foreign.items())),
            hint="train, load or resize the model outside the block; load it anew now, as they may hold what was added",
        )


def _same(one: Sequence[Addend] | None, other: Sequence[Addend]) -> bool:
    if one is None or len(one) != len(other):
        return False
    return all(a.source is b.source and (a.delta, a.k) == (b.delta, b.k) for a, b in zip(one, other, strict=True))


def _bits(values: torch.Tensor) -> torch.Tensor:
    return values.view(_INTEGERS[values.element_size()])


def _bit_sums(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of the bits by row and by column: whoever changes values moves at least one of them."""
    rows = values.detach().reshape(values.shape[0] if values.ndim else 1, math.prod(values.shape[1:]))
    wide = rows.is_contiguous() and rows.shape[1] * rows.element_size() % 8 == rows.storage_offset() == 0
    bits = rows.view(torch.int64) if wide else _bits(rows)  # eight bytes at once are far faster
    return bits.sum(1, dtype=torch.int64), bits.sum(0, dtype=torch.int64)


def _add_sum(original: torch.Tensor, addends: Sequence[Addend], out: torch.Tensor) -> None:
    """Set `out` to `original` plus the sum, some rows at a time: float32 copies of a whole embedding take twice its room."""
    values, old = (tensor if tensor.ndim else tensor.unsqueeze(0) for tensor in (out, original))
    rows = max(1, _BLOCK_ELEMENTS // max(1, math.prod(values.shape[1:])))
    readers = [_reader(addend, values) for addend in addends]
    for first in range(0, values.shape[0], rows):
        block, before = values[first : first + rows], old[first : first + rows]
        change = sum(read(first, block) for read in readers)
        block.copy_(before.to(torch.promote_types(block.dtype, torch.float32)) + change)


def _reader(addend: Addend, values: torch.Tensor) -> Callable[[int, torch.Tensor], torch.Tensor]:
    """A function that gives k * delta in float32 for the rows `first` and on that a block of `values` holds."""
    source, delta, k = addend
    if source.rank(delta) is not None:
        scaled = source.low_rank(delta).scaled(k)
        b, a = (torch.from_numpy(np.ascontiguousarray(f, np.float32)).to(values.device) for f in (scaled.b, scaled.a))
        return lambda first, block: b[first : first + block.shape[0]] @ a
    columns = math.prod(values.shape[1:])

    def read(first: int, block: torch.Tensor) -> torch.Tensor:
        elements = np.empty(block.numel(), np.float32)
        source.read_dense(delta, first * columns, elements)
        return k * torch.from_numpy(elements).to(block.device).reshape(block.shape)

    return read
