"""Carries a plan out: blocks on threads, each read, computed, written and hashed once.

Workers take blocks in order and work on several at once. Reading, computing and writing go on side by side; hashing goes
through two turnstiles, in block order, so that the digests are those of whole tensors and whole files.
"""

from __future__ import annotations

import itertools
import mmap
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from queue import Empty, SimpleQueue
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.dtypes import BF16
from wsmerge.core.interrupts import Interrupts
from wsmerge.engine.arithmetic import Arithmetic, HeldValues, MergedValues, Moments, ScaledTerms
from wsmerge.engine.costs import BITS_WINDOW_ELEMENTS
from wsmerge.engine.hashing import BaseHasher
from wsmerge.engine.journal import Journal
from wsmerge.engine.kernels import Kernels, load_kernels
from wsmerge.engine.layout import Block, Piece, blocks_of
from wsmerge.engine.methods.step import BitsMethod, Float32, MergeStep
from wsmerge.engine.methods.tensorwise import seed_torch
from wsmerge.engine.non_finite import NonFinite, count_non_finite
from wsmerge.engine.plan import MergePlan, OutputTensor, widest_held
from wsmerge.engine.preparation import Preparations, Prepare, Prepared
from wsmerge.engine.reader import BitsReader, ChunkReader
from wsmerge.engine.sink import ShardFiles
from wsmerge.engine.turnstile import Turnstile

__all__ = ["Progress", "StreamResult", "run_stream"]

Progress = Callable[[int, int], None]
"""Called with bytes written so far and bytes in all, from one thread at a time."""


_AWAKE_S: Final = 0.2


@dataclass(slots=True)
class StreamResult:
    """What the stream learned on its way.

    Attributes:
        moments: by output tensor, where directions took part.
        non_finite: by output tensor, where NaN or infinity is written.
        base_weights: content digest of the base's tensors, where all of them are read to be steered.
        shard_digests: SHA-256 of each output file.
        resumed_bytes: bytes that an earlier run had written.
    """

    moments: dict[int, Moments] = field(default_factory=dict)
    non_finite: dict[int, NonFinite] = field(default_factory=dict)
    base_weights: str | None = None
    shard_digests: dict[str, str] = field(default_factory=dict)
    resumed_bytes: int = 0

    def add(self, moments: Mapping[int, Moments], non_finite: Mapping[int, NonFinite]) -> None:
        """Add what was learned of the pieces of one block, by output tensor."""
        for tensor, values in moments.items():
            known = self.moments.get(tensor)
            self.moments[tensor] = values if known is None else known + values
        for tensor, counts in non_finite.items():
            self.non_finite[tensor] = self.non_finite.get(tensor, NonFinite()) + counts


class _Filled(NamedTuple):
    """A computed block: its bytes, those of inputs that are hashed, and what was learned of its pieces."""

    view: memoryview
    inputs: list[_InputBytes]
    moments: dict[int, Moments]
    non_finite: dict[int, NonFinite]


class _InputBytes(NamedTuple):
    """Bytes of an input as they were read, to be hashed in order."""

    tensor: int
    data: memoryview


class _MethodValues:
    """Merged values that a method computes when they are asked for."""

    def __init__(self, step: MergeStep, prepared: Prepared, reader: ChunkReader) -> None:
        self.held = step.dtype
        self._step = step
        self._prepared = prepared
        self._reader = reader

    def read(self, first: int, out: Float32) -> None:
        """Write the values from element `first` on into `out`."""
        method = self._prepared.method
        if method is None:
            raise ValueError("no method")
        with np.errstate(all="ignore"):  # inputs may hold NaN or infinity, and methods may divide by zero, as in torch
            for start, values in self._reader.chunks(self._step, first, first + out.size):
                part = out[start - first : start - first + values.shape[1]]
                method.compute(self._step, self._prepared.statistics, start, values, part)

    def read64(self, first: int, out: NDArray[np.float64]) -> None:
        """Methods in blocks compute in float32."""
        raise NotImplementedError


class _Worker:
    """One thread's buffers; computes blocks into its own page-aligned memory."""

    def __init__(self, plan: MergePlan, terms: ScaledTerms, preparations: Preparations) -> None:
        self._plan = plan
        self._terms = terms
        self._preparations = preparations
        block_bytes = plan.options.block_bytes
        self._block = memoryview(mmap.mmap(-1, block_bytes))  # page-aligned, as direct writes need it
        self._stored = memoryview(bytearray(int(block_bytes * widest_held(plan))))
        self._bits = BitsReader()

    # What is made of the compiled loops is made when it is first used: not every merge needs them.

    @cached_property
    def _kernels(self) -> Kernels:
        return load_kernels()

    @cached_property
    def _arithmetic(self) -> Arithmetic:
        return Arithmetic(self._kernels, max((len(tensor.terms) for tensor in self._plan.tensors), default=0))

    @cached_property
    def _reader(self) -> ChunkReader:
        changing = (tensor for tensor in self._plan.tensors if not tensor.is_unchanged)
        return ChunkReader(self._kernels, max((len(tensor.step.inputs) for tensor in changing), default=1))

    def prepare(self, task: Prepare) -> None:
        """Work out what a tensor's blocks need."""
        self._preparations.run(task, lambda: self._reader, self._bits)

    def fill(self, block: Block) -> _Filled:
        """Compute `block`; the views are valid until the next call."""
        shard = self._plan.shards[block.shard]
        view = self._block[: block.nbytes]
        header = shard.header[block.offset : block.offset + block.nbytes]
        view[: len(header)] = header
        inputs: list[_InputBytes] = []
        moments: dict[int, Moments] = {}
        non_finite: dict[int, NonFinite] = {}
        used = 0
        for piece in shard.pieces(block):
            out = view[piece.at : piece.at + piece.nbytes]
            stored, piece_moments = self._fill_piece(piece, out, used)
            used += 0 if stored is out else len(stored)
            inputs.append(_InputBytes(piece.tensor, stored))
            if piece_moments is not None:
                moments[piece.tensor] = piece_moments
            counts = count_non_finite(self._plan.tensors[piece.tensor], piece.start, out)
            if counts:
                non_finite[piece.tensor] = counts
        return _Filled(view, inputs, moments, non_finite)

    def _fill_piece(self, piece: Piece, out: memoryview, used: int) -> tuple[memoryview, Moments | None]:
        """Fill `out`; returns the input's bytes too, where the step has one input and leaves it unchanged."""
        tensor = self._plan.tensors[piece.tensor]
        item = tensor.step.inputs[0].tensor
        prepared = self._preparations.of(piece.tensor) if self._preparations.is_needed(piece.tensor) else None
        try:
            if tensor.is_copy:
                item.read_into(piece.start, out)
                return out, None
            first, count = piece.start // tensor.spec.dtype.itemsize, piece.nbytes // tensor.spec.dtype.itemsize
            if tensor.is_unchanged:
                width = tensor.held.itemsize
                stored = self._stored[used : used + count * width]
                item.read_into(first * width, stored)
                merged: MergedValues = HeldValues(self._kernels, stored, tensor.held, first)
            elif self._fill_bits(tensor, prepared, first, out):
                return out, None
            else:
                stored = out
                merged = self._merged(tensor.step, prepared)
            return stored, self._arithmetic.compute(tensor, self._terms.of(piece.tensor), first, merged, out)
        finally:
            if prepared is not None:
                self._preparations.used(piece.tensor)

    def _fill_bits(self, tensor: OutputTensor, prepared: Prepared | None, first: int, out: memoryview) -> bool:
        """Fill `out` without a detour through float32 buffers, where all of the step is bfloat16; else return False."""
        step = tensor.step
        dtypes = {item.tensor.spec.dtype for item in step.inputs} | {step.dtype, tensor.spec.dtype}
        method: object = prepared.method if prepared is not None else None
        if tensor.terms or dtypes != {BF16} or not isinstance(method, BitsMethod) or prepared is None:
            return False
        loop = method.bits_loop(step, prepared.statistics)
        if loop is None:
            return False
        merged = np.frombuffer(out, np.uint16)
        for start in range(0, merged.size, BITS_WINDOW_ELEMENTS):
            part = merged[start : start + BITS_WINDOW_ELEMENTS]
            loop(first + start, self._bits.read(step, first + start, part.size), part)
        return True

    def _merged(self, step: MergeStep, prepared: Prepared | None) -> MergedValues:
        if prepared is None:
            raise ValueError("a method was not prepared")
        if prepared.whole is not None:
            return HeldValues(self._kernels, prepared.whole, step.result_dtype, 0)
        return _MethodValues(step, prepared, self._reader)


def run_stream(plan: MergePlan, files: ShardFiles, journal: Journal, progress: Progress | None = None) -> StreamResult:
    """Write every block of `plan` that `journal` does not hold yet.

    Returns when all of it is written, not yet synced. Ctrl-C and the first error stop all workers and are raised.
    """
    blocks = blocks_of(plan.shards, plan.options.block_bytes)
    result = StreamResult()
    base_hasher = BaseHasher(plan)
    for line in journal.replay(plan, files, blocks, base_hasher):
        result.add(line.moments, line.non_finite)
    first = journal.blocks_done
    result.resumed_bytes = sum(block.nbytes for block in blocks[:first])
    if plan.draws:
        seed_torch(plan.numerics.seed)
    run = _Run(plan, files, journal, result, base_hasher, Preparations(plan, blocks[first:]))
    run.execute(blocks[first:], progress)
    if plan.is_steering:
        result.base_weights = base_hasher.content_digest()
    result.shard_digests = journal.shard_digests
    return result


class _Run:
    """One pass over the blocks: what its workers share."""

    def __init__(
        self,
        plan: MergePlan,
        files: ShardFiles,
        journal: Journal,
        result: StreamResult,
        base_hasher: BaseHasher,
        preparations: Preparations,
    ) -> None:
        first = journal.blocks_done
        self._plan, self._files, self._journal = plan, files, journal
        self._result, self._base_hasher = result, base_hasher
        self._terms = ScaledTerms(plan, plan.options.worker_count + 1)
        self._preparations = preparations
        self._hash_base = plan.is_steering
        self._read_turn, self._write_turn = Turnstile(first), Turnstile(first)

    def execute(self, blocks: list[Block], progress: Progress | None) -> None:
        total = self._plan.write_bytes
        done = itertools.accumulate(
            (block.nbytes for block in blocks), initial=total - sum(block.nbytes for block in blocks)
        )
        remaining, lock = self._preparations.tasks(blocks), threading.Lock()

        def report() -> None:
            if progress is not None:
                progress(next(done), total)

        def work() -> None:
            worker = _Worker(self._plan, self._terms, self._preparations)
            while True:
                with lock:
                    task = next(remaining, None)
                if task is None:
                    return
                if isinstance(task, Prepare):
                    worker.prepare(task)
                else:
                    self._one_block(worker, task, report)

        next(done)
        try:
            self._on_threads(work, min(self._plan.options.worker_count, len(blocks)))
        finally:
            self._preparations.close()

    def _one_block(self, worker: _Worker, block: Block, report: Callable[[], None]) -> None:
        filled = worker.fill(block)
        self._files.write(block, filled.view)
        if self._hash_base:
            with self._read_turn.turn(block.number):
                for tensor, data in filled.inputs:
                    self._base_hasher.update(tensor, data)
        with self._write_turn.turn(block.number):
            self._journal.append(block, filled.view, filled.moments, filled.non_finite)
            self._result.add(filled.moments, filled.non_finite)
            report()

    def _on_threads(self, work: Callable[[], None], count: int) -> None:
        """Call `work` in `count` threads; the first failure or Ctrl-C stops all, and is raised when all have ended."""
        outcomes: SimpleQueue[BaseException | None] = SimpleQueue()
        with Interrupts(lambda: outcomes.put(KeyboardInterrupt())) as interrupts:
            failure = self._first_failure(work, count, outcomes)
        if failure is not None:
            raise failure
        interrupts.check()

    def _first_failure(
        self, work: Callable[[], None], count: int, outcomes: SimpleQueue[BaseException | None]
    ) -> BaseException | None:
        def guarded() -> None:
            failure: BaseException | None = None
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
                failure = error
            outcomes.put(failure)

        threads = [threading.Thread(target=guarded, name=f"wsmerge-{number}") for number in range(count)]
        try:
            for thread in threads:
                thread.start()
            return next((error for error in (_next(outcomes) for _ in threads) if error is not None), None)
        finally:
            self._stop()  # what still runs after a failure; after a success nothing does
            for thread in threads:
                if thread.ident is not None:
                    thread.join()

    def _stop(self) -> None:
        self._preparations.stop()
        self._read_turn.stop()
        self._write_turn.stop()


def _next(outcomes: SimpleQueue[BaseException | None]) -> BaseException | None:
    """The next outcome; wakes up now and then, since a signal just before the thread falls asleep does not wake it."""
    while True:
        try:
            return outcomes.get(timeout=_AWAKE_S)
        except Empty:
            continue
