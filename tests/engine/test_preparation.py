"""What is prepared when: tasks in an order in which nobody waits for what nobody has taken, and results that are let go."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import wsmerge
from tests.builders import llama_shapes
from tests.engine.merging.made import entries, fine_tune, model
from wsmerge.engine.kernels import load_kernels
from wsmerge.engine.layout import Block, blocks_of
from wsmerge.engine.preparation import Preparations, Prepare
from wsmerge.engine.reader import BitsReader, ChunkReader
from wsmerge.engine.turnstile import Stopped

SHAPES = llama_shapes(layers=11, hidden=32, inner=48, vocab=20_000)
HALF = {"weight": 0.5, "density": 0.5}
SETTINGS = {
    "statistics": ("ties", False),
    "whole": ("arcee_fusion", False),
    "mergekit's draws": ("dare_linear", True),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    base = model(folder / "base", shapes=SHAPES)
    return base, fine_tune(base, folder / "one", seed=1)


@pytest.fixture(params=SETTINGS)
def planned(request, models):
    method, rng = SETTINGS[request.param]
    base, one = models
    recipe = {"merge_method": method, "base_model": str(base), "models": entries((one, HALF)), "parameters": {"t": 0.5}}
    settings = wsmerge.Settings(
        options=wsmerge.PlanOptions(block_bytes=1 << 20, threads=3, max_shard_bytes=50_000),
        numerics=wsmerge.Numerics(mergekit_rng=rng),
    )
    with wsmerge.plan(recipe, settings=settings) as found:
        yield found.merge


def all_blocks(plan):
    return blocks_of(plan.shards, plan.options.block_bytes)


def carry_out(preparations, task):
    preparations.run(task, lambda: ChunkReader(load_kernels(), 2), BitsReader())


def tensors_of(plan, block):
    return [piece.tensor for piece in plan.shards[block.shard].pieces(block)]


@pytest.mark.parametrize("first", [0, 3])
def test_every_tensor_is_prepared_before_its_first_block(planned, first):
    blocks = all_blocks(planned)[first:]
    preparations = Preparations(planned, blocks)
    prepared, numbers, seen = set(), [], []
    for task in preparations.tasks(blocks):
        if isinstance(task, Prepare):
            assert task.tensor not in prepared
            prepared.add(task.tensor)
            numbers.append(task.number)
        else:
            seen.append(task)
            assert {tensor for tensor in tensors_of(planned, task) if preparations.is_needed(tensor)} <= prepared
    assert seen == blocks
    assert numbers == list(range(len(numbers)))  # a turn that nobody takes would stop all later ones
    needed = {tensor for block in blocks for tensor in tensors_of(planned, block)}
    assert prepared == (set(range(len(planned.tensors))) if planned.draws else needed)


def test_whole_tensors_are_not_made_ahead(models):
    base, one = models
    recipe = {"merge_method": "arcee_fusion", "base_model": str(base), "models": entries((one, {}))}
    options = wsmerge.PlanOptions(block_bytes=1 << 20, threads=3)
    with wsmerge.plan(recipe, settings=wsmerge.Settings(options=options)) as found:
        blocks = all_blocks(found.merge)
        ahead = 0
        preparations = Preparations(found.merge, blocks)
        waiting: set[int] = set()
        for task in preparations.tasks(blocks):
            if isinstance(task, Block):
                assert waiting <= set(tensors_of(found.merge, task))
                waiting.clear()
            else:
                waiting.add(task.tensor)
                ahead = max(ahead, len(waiting))
        assert ahead > 0


def test_what_was_prepared_is_let_go_with_its_last_block(planned):
    blocks = all_blocks(planned)
    preparations = Preparations(planned, blocks)
    for task in preparations.tasks(blocks):
        if isinstance(task, Prepare):
            carry_out(preparations, task)
            continue
        for tensor in tensors_of(planned, task):
            assert preparations.of(tensor) is not None
            preparations.used(tensor)
    assert not preparations._ready


def test_draws_come_in_mergekits_order_whoever_takes_them(models, monkeypatch):
    base, one = models
    recipe = {"merge_method": "dare_linear", "base_model": str(base), "models": entries((one, HALF))}
    settings = wsmerge.Settings(numerics=wsmerge.Numerics(mergekit_rng=True))
    with wsmerge.plan(recipe, settings=settings) as found:
        plan = found.merge
        blocks = all_blocks(plan)
        preparations, drawn = Preparations(plan, blocks), []
        monkeypatch.setattr("wsmerge.engine.preparation.merge_whole", lambda step: drawn.append(step.spec.name))
        tasks = [task for task in preparations.tasks(blocks) if isinstance(task, Prepare)]
        with ThreadPoolExecutor(len(tasks)) as pool:
            list(pool.map(lambda task: carry_out(preparations, task), reversed(tasks)))
    names = [tensor.spec.name for tensor in plan.tensors]
    assert drawn == [names[number] for number in plan.draws] == sorted(names)
    assert drawn != names


def test_stopping_frees_who_waits(planned):
    blocks = all_blocks(planned)
    preparations = Preparations(planned, blocks)
    failures = []

    def wait() -> None:
        try:
            preparations.of(0)
        except Stopped as stopped:
            failures.append(stopped)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    preparations.stop()
    for thread in threads:
        thread.join(20)
    assert len(failures) == 3
    whole = [task for task in preparations.tasks(blocks) if isinstance(task, Prepare)]
    if preparations._methods[whole[0].tensor] is None:
        with pytest.raises(Stopped):
            carry_out(preparations, whole[0])
