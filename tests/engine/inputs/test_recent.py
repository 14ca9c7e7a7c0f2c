import gc

import pytest

from wsmerge.engine.inputs import recent
from wsmerge.engine.inputs.recent import Recent, recent_of


class Owner:  # noqa: PLW1641 - that it has no hash is the point
    """Not hashable, as a direction may be."""

    def __eq__(self, other):
        return self is other


def test_the_least_recently_used_goes_first():
    loads: list[str] = []
    held = Recent(kept=2)

    def load(name: str) -> str:
        loads.append(name)
        return name.upper()

    def get(name: str) -> str:
        return held.get(name, lambda: load(name))

    assert [get(name) for name in "abacab"] == list("ABACAB")
    assert loads == list("abcb")


def test_a_failed_load_is_tried_again():
    held = Recent()
    with pytest.raises(ZeroDivisionError):
        held.get("a", lambda: 1 // 0)
    assert held.get("a", lambda: 2) == 2


def test_each_owner_has_one_that_goes_with_it():
    one, other = Owner(), Owner()
    key = id(one)
    assert recent_of(one) is recent_of(one)
    assert recent_of(one) is not recent_of(other)
    del one
    gc.collect()
    assert key not in recent._of_owners
