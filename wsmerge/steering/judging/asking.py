"""Asking a judge about several answers at once, from threads; each score is handed on once it is there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from wsmerge.core.interrupts import Interrupts
from wsmerge.errors import JudgeError
from wsmerge.steering.judging.client import Judge

__all__ = ["Exchange", "ask_all"]


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question and the answer that is judged.

    Attributes:
        key: what it is called in scores and errors.
        question: what was asked.
        answer: what was answered.
    """

    key: str
    question: str
    answer: str


def ask_all(
    exchanges: Sequence[Exchange],
    judge: Judge,
    workers: int,
    given: Callable[[int, float | None], None],
    hint: Callable[[], str],
) -> None:
    """Have all exchanges judged.

    Args:
        exchanges: what is judged, in this order where `workers` is 1.
        judge: called from threads.
        workers: exchanges in work at once.
        given: called with each score once it is there and the place of its exchange, from the caller's own thread.
        hint: says what is kept, for the user to whom the error goes.

    Raises:
        JudgeError: the judge failed; it names the judge and the exchange. What is in work then is waited for, and what it
            gives is handed on; the rest is not asked.
        KeyboardInterrupt: interrupted; likewise.
    """
    failure: tuple[JudgeError, str] | None = None
    stopped = threading.Event()

    def ask(one: Exchange) -> float | None:
        if stopped.is_set() or interrupts.seen:
            raise CancelledError
        try:
            return judge(one.question, one.answer)
        except BaseException:
            stopped.set()
            raise

    with Interrupts() as interrupts, ThreadPoolExecutor(workers) as pool:
        futures = {pool.submit(ask, one): place for place, one in enumerate(exchanges)}
        try:
            for future in as_completed(futures):
                place, error = futures[future], future.exception()
                if error is None:
                    given(place, future.result())
                elif isinstance(error, JudgeError):
                    failure = failure or (error, exchanges[place].key)
                elif not isinstance(error, CancelledError):
                    raise error
        finally:
            stopped.set()
    interrupts.check()
    if failure is not None:
        error, key = failure
        raise JudgeError(error.message, where=f"{error.where}, {key}", details=error.details, hint=hint()) from error
