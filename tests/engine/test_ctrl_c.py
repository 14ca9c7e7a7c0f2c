"""Ctrl-C at every instruction of the main thread while workers start and run: none is lost, and nobody waits for ever."""

import signal
import sys
import threading

import pytest

from wsmerge.core.interrupts import Interrupts
from wsmerge.engine import stream


class Workers(stream._Run):
    """Threads that take a moment, or end when they are stopped."""

    def __init__(self) -> None:
        self._stopped = threading.Event()

    def _stop(self) -> None:
        self._stopped.set()

    def run(self) -> None:
        self._on_threads(self._work, 3)

    def _work(self) -> None:
        self._stopped.wait(0.002)


def interrupted_at(instruction: int, workers: Workers) -> bool:
    """Run `workers` with a SIGINT before the given instruction; returns whether there are that many."""
    count = 0

    def trace(frame, event, _argument):
        nonlocal count
        frame.f_trace_opcodes = True
        if event == "opcode":
            count += 1
            if count == instruction:
                sys.settrace(None)
                signal.raise_signal(signal.SIGINT)
        return trace

    sys.settrace(trace)
    try:
        workers.run()
    finally:
        sys.settrace(None)
    return count >= instruction


@pytest.fixture
def _ctrl_c_raises():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_ctrl_c_raises")
def test_ctrl_c_at_every_instruction_ends_the_workers():
    alive = threading.active_count()
    interrupted = 0
    while True:
        try:
            reached = interrupted_at(interrupted + 1, Workers())
        except KeyboardInterrupt:
            interrupted += 1
        else:
            assert not reached, f"the signal before instruction {interrupted + 1} was lost"
            break
        finally:
            assert threading.active_count() == alive
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert interrupted > 100


def test_a_second_signal_interrupts_at_once():
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGTERM)
        assert interrupts.seen
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            signal.raise_signal(signal.SIGINT)
        assert not interrupts.seen
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
