"""What merge steps need before their blocks can be computed, worked out a little ahead of them.

A method in blocks may need statistics of the whole tensor; a step without one needs the whole result of mergekit's own
method. Both are tasks of their own, queued before the first block that waits for them, so that no block waits for a task
that nobody has taken. What is prepared is dropped with the last block that uses it.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

from wsmerge.core.tensors import TensorInput
from wsmerge.engine.layout import Block
from wsmerge.engine.methods.choice import block_method
from wsmerge.engine.methods.step import BlockMethod, MergeStep
from wsmerge.engine.methods.tensorwise import merge_whole
from wsmerge.engine.plan import MergePlan
from wsmerge.engine.reader import BitsReader, ChunkReader, StepChunks
from wsmerge.engine.turnstile import Stopped, Turnstile
from wsmerge.errors import CheckpointError

__all__ = ["Preparations", "Prepare", "Prepared", "Task"]

_COMPARED_BYTES = 1 << 20


class Prepare(NamedTuple):
    """The task of preparing an output tensor; the `number`-th of its kind."""

    number: int
    tensor: int


Task = Prepare | Block


class Prepared(NamedTuple):
    """What a tensor's blocks are computed with: a method and its statistics, or the whole result."""

    method: BlockMethod | None
    statistics: Any
    whole: memoryview | None


class Preparations:
    """The preparations of one run over `blocks`; threads share it."""

    def __init__(self, plan: MergePlan, blocks: Sequence[Block]) -> None:
        self._plan = plan
        self._methods = {
            number: block_method(tensor.step)
            for number, tensor in enumerate(plan.tensors)
            if tensor.step.method == "buffer" or not tensor.is_unchanged
        }
        self._uses = Counter(piece.tensor for block in blocks for piece in plan.shards[block.shard].pieces(block))
        self._ready: dict[int, Prepared] = {}
        self._condition = threading.Condition()
        self._stopped = False
        self._whole_lock = threading.Lock()
        # In one thread: each thread's allocator keeps what mergekit's kernels let go of.
        self._whole = ThreadPoolExecutor(1, thread_name_prefix="wsmerge-whole")
        self._draws = Turnstile(0)

    def tasks(self, blocks: Sequence[Block]) -> Iterator[Task]:
        """`blocks` in order, each tensor's preparation a little ahead of its first block."""
        order = [number for number in self._order() if number in self._methods]
        place = {tensor: index for index, tensor in enumerate(order)}
        queued = 0
        for block in blocks:
            pieces = self._plan.shards[block.shard].pieces(block)
            wanted = max((place[piece.tensor] + 1 for piece in pieces if piece.tensor in place), default=0)
            while queued < min(len(order), wanted + self._ahead if wanted else 0):
                yield Prepare(queued, order[queued])
                queued += 1
            yield block

    def run(self, task: Prepare, reader: Callable[[], ChunkReader], bits: BitsReader) -> None:
        """Carry out a task, with `reader()` or `bits` if it reads inputs; the result is kept for the blocks that use it."""
        step, method = self._plan.tensors[task.tensor].step, self._methods[task.tensor]
        with self._turn(task):
            if step.method == "buffer":
                _check_equal(step)
                prepared = Prepared(None, None, None)
            elif method is not None:
                prepared = Prepared(method, method.prepare(step, StepChunks(reader, bits, step)), None)
            else:
                prepared = Prepared(None, None, self._whole.submit(merge_whole, step).result())
        with self._condition:
            if self._uses[task.tensor]:
                self._ready[task.tensor] = prepared
            self._condition.notify_all()

    def of(self, tensor: int) -> Prepared:
        """What was prepared for output tensor number `tensor`; waits for it."""
        with self._condition:
            self._condition.wait_for(lambda: self._stopped or tensor in self._ready)
            if self._stopped:
                raise Stopped
            return self._ready[tensor]

    def used(self, tensor: int) -> None:
        """A piece of the tensor is computed: with its last one, what was prepared is dropped."""
        with self._condition:
            self._uses[tensor] -= 1
            if not self._uses[tensor]:
                self._ready.pop(tensor, None)

    def is_needed(self, tensor: int) -> bool:
        """Whether the tensor's blocks wait for a preparation."""
        return tensor in self._methods

    def stop(self) -> None:
        """Let nobody wait any longer."""
        self._draws.stop()
        with self._condition:
            self._stopped = True
            self._condition.notify_all()

    def close(self) -> None:
        """End the thread of whole tensors; after the run."""
        self._whole.shutdown()

    @contextmanager
    def _turn(self, task: Prepare) -> Iterator[None]:
        """Whole tensors one at a time; all tasks in their order where mergekit's random numbers are drawn."""
        if self._plan.draws:
            with self._draws.turn(task.number):
                yield
        elif self._methods[task.tensor] is None:
            with self._whole_lock:
                if self._stopped:
                    raise Stopped
                yield
        else:
            yield

    @property
    def _ahead(self) -> int:
        """Tensors prepared ahead: whole results are large, statistics are not."""
        whole = any(method is None for method in self._methods.values())
        return 0 if whole else self._plan.options.worker_count

    def _order(self) -> Sequence[int]:
        """In the order of mergekit's random numbers, finished tensors included; else those that are still to be written."""
        if self._plan.draws:
            return self._plan.draws
        return [number for number in range(len(self._plan.tensors)) if self._uses[number]]


def _check_equal(step: MergeStep) -> None:
    """Raise unless all inputs hold the same bytes: nothing says how other values would be merged."""
    first, *others = (item.tensor for item in step.inputs)
    different = [other.label for other in others if not _same_bytes(first, other)]
    if different:
        raise CheckpointError(
            f"no floating point ({first.spec.dtype}), and not the same in all inputs",
            where=step.spec.name,
            hint="take this tensor from one model: make the inputs agree before merging",
            details=(first.label, *different),
        )


def _same_bytes(first: TensorInput, other: TensorInput) -> bool:
    if (first.spec.dtype, first.spec.shape) != (other.spec.dtype, other.spec.shape):
        return False
    total, itemsize = first.spec.nbytes, first.spec.dtype.itemsize
    step = _COMPARED_BYTES // itemsize * itemsize
    for start in range(0, total, step):
        one, two = bytearray(min(step, total - start)), bytearray(min(step, total - start))
        first.read_into(start, memoryview(one))
        other.read_into(start, memoryview(two))
        if one != two:
            return False
    return True
