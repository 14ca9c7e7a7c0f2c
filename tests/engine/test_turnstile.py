"""Order among threads."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from wsmerge.engine.turnstile import Stopped, Turnstile


@pytest.mark.parametrize("first", [0, 7])
def test_one_at_a_time_and_in_order(first):
    turnstile, seen, inside = Turnstile(first), [], threading.Lock()
    numbers = list(range(first, first + 60))

    def go(number: int) -> None:
        time.sleep(number * 7919 % 13 / 2000)
        with turnstile.turn(number):
            assert inside.acquire(blocking=False), "two at once"
            seen.append(number)
            inside.release()

    with ThreadPoolExecutor(len(numbers)) as pool:
        list(pool.map(go, reversed(numbers)))
    assert seen == numbers


def test_stopping_frees_all_that_wait_and_all_that_come():
    turnstile = Turnstile(0)
    with ThreadPoolExecutor(4) as pool:

        def wait(number: int) -> None:
            with turnstile.turn(number):
                pytest.fail("it was nobody's turn")

        waiting = [pool.submit(wait, number) for number in (1, 2, 3)]
        time.sleep(0.05)
        turnstile.stop()
        for future in waiting:
            with pytest.raises(Stopped):
                future.result(timeout=120)
    with pytest.raises(Stopped), turnstile.turn(0):
        pytest.fail("it is stopped")


def test_who_fails_lets_nobody_through():
    turnstile = Turnstile(0)
    with pytest.raises(ValueError, match="no"), turnstile.turn(0):
        raise ValueError("no")
    passed = threading.Event()

    def go() -> None:
        with turnstile.turn(1):
            passed.set()

    def try_to() -> None:
        with pytest.raises(Stopped):
            go()

    thread = threading.Thread(target=try_to)
    thread.start()
    assert not passed.wait(0.1)
    turnstile.stop()
    thread.join(10)
    assert not thread.is_alive()
    assert not passed.is_set()
