"""Under which name a weight is stored, against mergekit."""

from __future__ import annotations

from itertools import chain, combinations
from types import SimpleNamespace

import pytest

from tests.engine.architecture.live import mergekit
from wsmerge.engine.architecture import Weight, is_present, resolve_name

pytestmark = pytest.mark.slow

NAMES = ("name", "alias", "second", "tied", "other")
WEIGHT = Weight("name", optional=True, aliases=("alias", "second"), tied_names=("tied", "other"))
STORED = [set(chosen) for chosen in chain.from_iterable(combinations(NAMES, size) for size in range(len(NAMES) + 1))]


def loader_of(names):
    return SimpleNamespace(index=SimpleNamespace(tensor_paths=names))


@pytest.mark.parametrize("weight", [WEIGHT, Weight("name")], ids=["all", "bare"])
@pytest.mark.parametrize("stored", STORED, ids=lambda stored: "+".join(sorted(stored)) or "none")
def test_the_stored_name_is_mergekits(weight, stored):
    task = mergekit("io.tasks").LoadTensor(
        model=mergekit("common").ModelReference.parse("m"),
        tensor=weight.name,
        aliases=weight.aliases or None,
        tied_names=weight.tied_names or None,
    )
    assert resolve_name(weight, stored) == task._resolve_name(loader_of(stored))


class _AsksForMethodError(Exception):
    pass


class _Planner:
    """In place of mergekit's planner: what `plan_tensor` does with a weight that it does not skip is to ask for a method."""

    @property
    def _method(self):
        raise _AsksForMethodError


@pytest.mark.parametrize("stored", STORED, ids=lambda stored: "+".join(sorted(stored)) or "none")
def test_an_optional_weight_is_present_where_mergekit_plans_it(stored, monkeypatch):
    plan = mergekit("plan")
    monkeypatch.setattr(plan, "LoaderCache", lambda: SimpleNamespace(get=lambda _model: loader_of(stored)))
    # mergekit adds the aliases to a list, which fails for the tuples that it makes of them itself.
    info = SimpleNamespace(name=WEIGHT.name, aliases=list(WEIGHT.aliases), optional=True)
    try:
        plan.MergePlanner.plan_tensor(_Planner(), info, [info], ["m"], SimpleNamespace(base_model=None))
        planned = False
    except _AsksForMethodError:
        planned = True
    assert is_present(WEIGHT, stored) is planned
