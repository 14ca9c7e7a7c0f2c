"""The callback in transformers' Trainer, on tiny models: full training, LoRA, and training that resumes."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainerCallback, TrainingArguments

from tests.oracles.similarity import reference
from tests.peft_adapters import quietly
from tests.sources import MemoryDirection, identity, random_direction
from tests.steering.similarity.made import published
from tests.steering.tiny import save_tiny_base, tiny_model
from wsmerge.api.monitoring import MonitorOptions, SimilarityCallback, monitor
from wsmerge.core.deltas import DenseDelta
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.errors import AdapterError, BaseMismatchError, UsageError
from wsmerge.steering.similarity import rows

SHAPES = {name: tuple(value.shape) for name, value in tiny_model().named_parameters()}
ROWS = [
    {"input_ids": ids, "labels": ids, "attention_mask": [1] * 12} for ids in (list(range(n, n + 12)) for n in range(8))
]


@pytest.fixture(autouse=True)
def _one_thread():
    """Models this small take longer with two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trainer(model, folder, **settings):
    arguments = TrainingArguments(
        **{
            "output_dir": str(folder),
            "max_steps": 6,
            "save_steps": 2,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-2,
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            "logging_steps": 100,
            "save_only_model": False,
            **settings,
        }
    )
    return Trainer(model=model, args=arguments, train_dataset=ROWS, eval_dataset=ROWS[:2])


class Keeping(TrainerCallback):
    """Keeps what is logged, and all parameters at each save."""

    def __init__(self):
        self.logs, self.saved = [], {}

    def on_log(self, args, state, control, logs=None, **kwargs):  # noqa: ARG002 - the interface's
        self.logs.append((state.global_step, dict(logs)))

    def on_save(self, args, state, control, model=None, **kwargs):  # noqa: ARG002 - the interface's
        self.saved[state.global_step] = values_of(model)


def values_of(model):
    return {name: value.detach().double().numpy().copy() for name, value in model.named_parameters()}


def dense_direction(direction):
    return {name: delta.dense() for name, delta in direction.deltas.items()}


@pytest.fixture
def low_rank():
    return random_direction(SHAPES, rank=3, label="low-rank")


def test_full_training_at_every_save(tmp_path, low_rank):
    dense = random_direction(SHAPES, rank=None, seed=9, label="dense")
    model, keeping = tiny_model(), Keeping()
    before = values_of(model)
    running = trainer(model, tmp_path)
    callback = SimilarityCallback([low_rank, dense])
    running.add_callback(keeping)
    callback.attach(running)
    running.train()
    assert [step for step, _ in callback.history] == [2, 4, 6]
    logged = {step: logs for step, logs in keeping.logs if "similarity/norm" in logs}
    for (step, readings), direction in itertools.product(callback.history, (low_rank, dense)):
        update = {name: value - before[name] for name, value in keeping.saved[step].items()}
        whole = next(item for item in readings if item.direction == direction.label).scopes.whole
        wanted = reference(update, dense_direction(direction), SHAPES, rank=direction.rank)
        assert whole.cosine == pytest.approx(wanted["cosine"], abs=1e-6)
        assert whole.null_std == pytest.approx(wanted["null_std"], rel=1e-4)
        assert logged[step][f"similarity/{direction.label}/z"] == whole.z
        assert whole.projection == pytest.approx(wanted["projection"], rel=1e-5, abs=1e-6)
        assert logged[step][f"similarity/{direction.label}/cosine"] == whole.cosine
        assert logged[step]["similarity/norm"] == pytest.approx(wanted["update_norm"], rel=1e-6)
    assert sum("similarity/norm" in row for row in running.state.log_history) == 3


def test_directions_that_share_their_factors_are_told(tmp_path, low_rank):
    running = trainer(tiny_model(), tmp_path)
    same = dataclasses.replace(low_rank, label="the same")
    running.add_callback(SimilarityCallback([low_rank, same]))
    with pytest.warns(UserWarning, match="low-rank and the same share 100% of their factors A"):
        running.train()


def test_evaluation_and_save_of_one_step_are_one_look(tmp_path, low_rank):
    running = trainer(tiny_model(), tmp_path, eval_strategy="steps", eval_steps=2, save_steps=4)
    callback = SimilarityCallback([low_rank])
    running.add_callback(callback)
    running.train()
    running.evaluate()  # outside training nothing is compared
    assert [step for step, _ in callback.history] == [2, 4, 6]
    assert [row["step"] for row in running.state.log_history if "similarity/norm" in row] == [2, 4, 6]


def test_lora_factors_as_peft_merges_them(tmp_path, low_rank):
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], modules_to_save=["lm_head"])
    model = quietly(get_peft_model, tiny_model(), config)
    before = values_of(tiny_model())
    callback = SimilarityCallback([low_rank])
    running = trainer(model, tmp_path)
    running.add_callback(callback)
    running.train()
    merged = values_of(quietly(model.merge_and_unload))
    update = {name: merged[name] - before[name] for name in merged}
    found = callback.history[-1][1][0].scopes
    wanted = reference(update, dense_direction(low_rank), SHAPES)
    assert found.whole.cosine == pytest.approx(wanted["cosine"], abs=1e-6)
    assert found.whole.update_norm == pytest.approx(wanted["update_norm"], rel=1e-5)
    assert found.without_embeddings.cosine != found.whole.cosine


def test_the_saved_adapter_says_the_same(tmp_path, low_rank):
    base = save_tiny_base(tmp_path / "base")
    made = published(tmp_path / "direction", low_rank, base)
    model = quietly(get_peft_model, tiny_model(), LoraConfig(r=4, target_modules=["q_proj"], use_rslora=True))
    callback = SimilarityCallback([made])
    running = trainer(model, tmp_path / "run")
    running.add_callback(callback)
    quietly(running.train)
    report = monitor(base, [made], [tmp_path / "run"])
    assert [item.step for item in report.checked] == [2, 4, 6]
    for (_, readings), item in zip(callback.history, report.checked, strict=True):
        live, saved = readings[0].scopes.whole, item.readings[0].scopes.whole
        assert live.cosine == pytest.approx(saved.cosine, abs=1e-9)
        assert live.update_norm == pytest.approx(saved.update_norm, rel=1e-9)


def test_training_stops_at_the_threshold(tmp_path):
    """Towards where one step of training goes, so that the first look passes."""
    model = tiny_model()
    before = values_of(model)
    trainer(model, tmp_path / "first", max_steps=2).train()
    change = {name: DenseDelta((value - before[name]).astype(np.float32)) for name, value in values_of(model).items()}
    towards = MemoryDirection(change, identity(SHAPES), label="towards")
    for threshold, steps in ((0.9, 2), (1.1, 6)):
        callback = SimilarityCallback([towards], threshold=threshold)
        running = trainer(tiny_model(), tmp_path / str(threshold), lr_scheduler_type="constant")
        running.add_callback(callback)
        running.train()
        assert running.state.global_step == steps
        assert (callback.passed is not None) == (steps == 2)


def test_resumed_training_needs_its_base(tmp_path, low_rank):
    base = save_tiny_base(tmp_path / "base")
    trainer(tiny_model(), tmp_path / "run", max_steps=4, save_steps=2).train()
    running = trainer(tiny_model(), tmp_path / "run")
    running.add_callback(SimilarityCallback([low_rank]))
    with pytest.raises(UsageError, match="resumes at step 4"):
        running.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    model, callback = tiny_model(), SimilarityCallback([low_rank], base=base)
    running = trainer(model, tmp_path / "run")
    running.add_callback(callback)
    running.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    update = {name: value - values_of(tiny_model())[name] for name, value in values_of(model).items()}
    wanted = reference(update, dense_direction(low_rank), SHAPES)
    assert callback.history[-1][1][0].scopes.whole.cosine == pytest.approx(wanted["cosine"], abs=1e-6)


def test_a_sample_of_the_rows_at_every_step(tmp_path, monkeypatch, low_rank):
    """The same rows as `monitor` reads of the checkpoints that were saved."""
    monkeypatch.setattr(rows, "RUN_ELEMENTS", 1)
    base = save_tiny_base(tmp_path / "base")
    made = published(tmp_path / "direction", low_rank, base)
    model, keeping, callback = tiny_model(), Keeping(), SimilarityCallback([made], sample=0.2)
    running = trainer(model, tmp_path / "run")
    running.add_callback(keeping)
    callback.attach(running)
    running.train()
    report = monitor(base, [made], [tmp_path / "run"], options=MonitorOptions(sample=0.2))
    logged = [logs for _, logs in keeping.logs if "similarity/norm" in logs]
    for (_, readings), item, logs in zip(callback.history, report.checked, logged, strict=True):
        live, saved = readings[0].scopes.whole, item.readings[0].scopes.whole
        assert live.cosine == pytest.approx(saved.cosine, rel=1e-5)
        error = readings[0].standard_error("cosine") or 0.0
        assert error == pytest.approx(item.readings[0].standard_error("cosine"), rel=1e-4)
        assert logs[f"similarity/{readings[0].direction}/cosine_standard_error"] == error > 0


def test_a_sample_of_factors_alone(tmp_path, low_rank):
    with pytest.raises(UsageError, match="share above 0"):
        SimilarityCallback([low_rank], sample=0)
    model = quietly(get_peft_model, tiny_model(), LoraConfig(r=4, target_modules=["q_proj"]))
    running = trainer(model, tmp_path)
    running.add_callback(SimilarityCallback([low_rank], sample=0.2))
    with pytest.raises(UsageError, match="nothing to sample"):
        running.train()


def test_what_cannot_be_watched(tmp_path, low_rank):
    with pytest.raises(UsageError, match="no direction"):
        SimilarityCallback([])
    dora = quietly(get_peft_model, tiny_model(), LoraConfig(r=2, target_modules=["q_proj"], use_dora=True))
    running = trainer(dora, tmp_path)
    running.add_callback(SimilarityCallback([low_rank]))
    with pytest.raises(AdapterError, match="DoRA"):
        running.train()
    running = trainer(tiny_model(), tmp_path)
    running.add_callback(SimilarityCallback([random_direction({"model.layers.0.none.weight": (3, 4)})]))
    with pytest.raises(BaseMismatchError, match="there is no"):
        running.train()


def test_bfloat16_parameters_and_tied_embeddings(tmp_path):
    from wsmerge.steering.similarity.live import LiveUpdate  # noqa: PLC0415 - the one test that goes below the callback

    model = tiny_model()
    model.bfloat16()
    model.config.tie_word_embeddings = True
    model.tie_weights()
    before = values_of(model)
    update = LiveUpdate(model)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.add_(0.01 * (number + 1))
    assert "lm_head.weight" not in update.shapes
    after = values_of(model)
    for name, shape in update.shapes.items():
        found = np.empty(int(np.prod(shape)), np.float32)
        update.read_dense(name, 0, found)
        np.testing.assert_array_equal(found, (after[name] - before[name]).ravel())
    with Checkpoint(save_tiny_base(tmp_path / "base")) as base, pytest.raises(BaseMismatchError, match="lm_head"):
        LiveUpdate(torch.nn.ModuleDict({"lm_head": torch.nn.Linear(3, 3)}), base)
