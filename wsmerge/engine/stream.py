"""Carries a plan out: blocks on threads, each read, computed, written and hashed once.

Workers take blocks in order and work on several at once. Reading, computing and writing go on side by side; hashing goes
through two turnstiles, in block order, so that the digests are those of whole tensors and whole files.
"""

from __future__ import annotations

import itertools
import mmap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from wsmerge.engine.arithmetic import Arithmetic, Moments, ScaledTerms
from wsmerge.engine.hashing import BaseHasher
from wsmerge.engine.journal import Journal
from wsmerge.engine.kernels import load_kernels
from wsmerge.engine.layout import Block, Piece, blocks_of
from wsmerge.engine.plan import MergePlan
from wsmerge.engine.sink import ShardFiles

__all__ = ["Progress", "StreamResult", "run_stream"]

Progress = Callable[[int, int], None]
"""Called with bytes written so far and bytes in all, from one thread at a time."""


@dataclass(slots=True)
class StreamResult:
    """What the stream learned on its way.

    Attributes:
        moments: by output tensor, where directions took part.
        base_weights: content digest of the base's tensors.
        shard_digests: SHA-256 of each output file.
        resumed_bytes: bytes that an earlier run had written.
    """

    moments: dict[int, Moments] = field(default_factory=dict)
    base_weights: str = ""
    shard_digests: dict[str, str] = field(default_factory=dict)
    resumed_bytes: int = 0

    def add(self, tensor: int, moments: Moments) -> None:
        """Add the moments of one piece of output tensor number `tensor`."""
        known = self.moments.get(tensor)
        self.moments[tensor] = moments if known is None else known + moments


class _Stopped(Exception):  # noqa: N818 - a signal among workers, not an error
    """Another worker failed, or the run was interrupted."""


class _Turnstile:
    """Lets threads through one at a time, in the order of their block numbers."""

    def __init__(self, first: int) -> None:
        self._next = first
        self._condition = threading.Condition()
        self._stopped = False

    @contextmanager
    def turn(self, number: int) -> Iterator[None]:
        with self._condition:
            self._condition.wait_for(lambda: self._stopped or self._next == number)
            if self._stopped:
                raise _Stopped
        yield  # outside the lock: nobody else's number is up
        with self._condition:
            self._next += 1
            self._condition.notify_all()

    def stop(self) -> None:
        with self._condition:
            self._stopped = True
            self._condition.notify_all()


class _InputBytes(NamedTuple):
    """Bytes of an input as they were read, to be hashed in order."""

    tensor: int
    data: memoryview


class _Worker:
    """One thread's buffers; computes blocks into its own page-aligned memory."""

    def __init__(self, plan: MergePlan, terms: ScaledTerms) -> None:
        self._plan = plan
        self._terms = terms
        block_bytes = plan.options.block_bytes
        self._block = memoryview(mmap.mmap(-1, block_bytes))  # page-aligned, as direct writes need it
        widest = max((t.step.inputs[0].dtype.itemsize / t.spec.dtype.itemsize for t in plan.tensors), default=1.0)
        self._stored = memoryview(bytearray(int(block_bytes * widest)))
        most_terms = max((len(tensor.terms) for tensor in plan.tensors), default=0)
        self._arithmetic = Arithmetic(load_kernels(), most_terms)

    def fill(self, block: Block) -> tuple[memoryview, list[_InputBytes], dict[int, Moments]]:
        """Compute `block`; the views are valid until the next call."""
        shard = self._plan.shards[block.shard]
        view = self._block[: block.nbytes]
        header = shard.header[block.offset : block.offset + block.nbytes]
        view[: len(header)] = header
        inputs: list[_InputBytes] = []
        moments: dict[int, Moments] = {}
        used = 0
        for piece in shard.pieces(block):
            out = view[piece.at : piece.at + piece.nbytes]
            stored, piece_moments = self._fill_piece(piece, out, used)
            used += 0 if stored is out else len(stored)
            inputs.append(_InputBytes(piece.tensor, stored))
            if piece_moments is not None:
                moments[piece.tensor] = piece_moments
        return view, inputs, moments

    def _fill_piece(self, piece: Piece, out: memoryview, used: int) -> tuple[memoryview, Moments | None]:
        tensor = self._plan.tensors[piece.tensor]
        name = tensor.step.inputs[0].name
        if tensor.is_copy:
            self._plan.base.read_into(name, piece.start, out)
            return out, None
        first, count = piece.start // tensor.spec.dtype.itemsize, piece.nbytes // tensor.spec.dtype.itemsize
        width = tensor.step.inputs[0].dtype.itemsize
        stored = self._stored[used : used + count * width]
        self._plan.base.read_into(name, first * width, stored)
        return stored, self._arithmetic.compute(tensor, self._terms.of(piece.tensor), first, stored, out)


def run_stream(plan: MergePlan, files: ShardFiles, journal: Journal, progress: Progress | None = None) -> StreamResult:
    """Write every block of `plan` that `journal` does not hold yet.

    Returns when all of it is written, not yet synced. Ctrl-C and the first error stop all workers and are raised.
    """
    blocks = blocks_of(plan.shards, plan.options.block_bytes)
    result = StreamResult()
    base_hasher = BaseHasher(plan)
    for line in journal.replay(plan, files, blocks, base_hasher):
        for tensor, moments in line.moments.items():
            result.add(tensor, moments)
    first = journal.blocks_done
    result.resumed_bytes = sum(block.nbytes for block in blocks[:first])
    run = _Run(plan, files, journal, result, base_hasher, first)
    run.execute(blocks[first:], progress)
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
        first: int,
    ) -> None:
        self._plan, self._files, self._journal = plan, files, journal
        self._result, self._base_hasher = result, base_hasher
        self._terms = ScaledTerms(plan, plan.options.worker_count + 1)
        self._read_turn, self._write_turn = _Turnstile(first), _Turnstile(first)

    def execute(self, blocks: list[Block], progress: Progress | None) -> None:
        total = self._plan.write_bytes
        done = itertools.accumulate(
            (block.nbytes for block in blocks), initial=total - sum(block.nbytes for block in blocks)
        )
        remaining, lock = iter(blocks), threading.Lock()

        def report() -> None:
            if progress is not None:
                progress(next(done), total)

        def work() -> None:
            worker = _Worker(self._plan, self._terms)
            while True:
                with lock:
                    block = next(remaining, None)
                if block is None:
                    return
                self._one_block(worker, block, report)

        next(done)
        self._on_threads(work, min(self._plan.options.worker_count, len(blocks)))

    def _one_block(self, worker: _Worker, block: Block, report: Callable[[], None]) -> None:
        view, inputs, moments = worker.fill(block)
        self._files.write(block, view)
        with self._read_turn.turn(block.number):
            for tensor, data in inputs:
                self._base_hasher.update(tensor, data)
        with self._write_turn.turn(block.number):
            self._journal.append(block, view, moments)
            for tensor, values in moments.items():
                self._result.add(tensor, values)
            report()

    def _on_threads(self, work: Callable[[], None], count: int) -> None:
        if count == 0:
            return

        def guarded() -> None:
            try:
                work()
            except BaseException:
                self._stop()
                raise

        with ThreadPoolExecutor(count, thread_name_prefix="wsmerge") as pool:
            futures: list[Future[None]] = []
            try:
                futures += [pool.submit(guarded) for _ in range(count)]
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                if not futures or not all(future.done() for future in futures):
                    self._stop()  # interrupted: the pool waits for its threads on leaving
        failures = [error for future in futures if (error := future.exception()) is not None]
        for error in failures:
            if not isinstance(error, _Stopped):
                raise error

    def _stop(self) -> None:
        self._read_turn.stop()
        self._write_turn.stop()
