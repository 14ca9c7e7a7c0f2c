"""A task of lm-eval as a scorer; skipped where the package is not installed."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from tests.steering.tiny import tiny_model, tiny_tokenizer
from wsmerge.errors import MissingDependencyError, UsageError
from wsmerge.steering.baselines import Subject
from wsmerge.steering.named import Allowed
from wsmerge.steering.sweep.items import Split
from wsmerge.steering.sweep.measures import load_scorers
from wsmerge.steering.sweep.measuring import Measure, Task
from wsmerge.steering.sweep.tasks import TaskScorer

installed = importlib.util.find_spec("lm_eval") is not None
needs_it = pytest.mark.skipif(not installed, reason="needs lm-eval")
pytestmark = pytest.mark.filterwarnings("default")  # lm-eval and what it loads warn of themselves

DOCUMENTS = [{"question": f"Is {n} even?", "label": n % 2} for n in range(9)]
CHOICES = ["Yes", "No"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """A folder with one task of two choices over local documents."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "documents.json"
    data.write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
    task = {
        "task": "tiny_even",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": CHOICES,
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}],
    }
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "tiny_even.yaml").write_text(yaml.safe_dump(task))
    return tmp_path


def by_hand(model, tokenizer, document) -> float:
    """Whether the right choice has the larger summed log-probability after the question."""
    scores = []
    for choice in CHOICES:
        asked = tokenizer(document["question"], add_special_tokens=False)["input_ids"]
        said = tokenizer(f" {choice}", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([asked + said])).logits[0].double().log_softmax(dim=-1)
        scores.append(sum(float(logits[len(asked) - 1 + at, token]) for at, token in enumerate(said)))
    return float(scores.index(max(scores)) == document["label"])


@needs_it
def test_documents_of_even_number_validate_and_those_of_odd_number_test(folder):
    subject = Subject(tiny_model(), tiny_tokenizer())
    scorer = TaskScorer("capability", Task(name="tiny_even", include="tasks"), folder)
    splits: tuple[tuple[Split, int], ...] = (("validation", 0), ("test", 1))
    for split, first in splits:
        found = scorer.score(subject, split, 4)[""]
        expected = [by_hand(subject.model, subject.tokenizer, document) for document in DOCUMENTS[first::2]]
        assert found.values.tolist() == expected
        assert found.role == "capability"
    few = TaskScorer("capability", Task(name="tiny_even", include="tasks", items=2), folder)
    assert len(few.score(subject, "test", 4)[""].values) == 2


@needs_it
@pytest.mark.parametrize(
    ("name", "metric", "told"), [("nothing_here", "acc", "no such task"), ("tiny_even", "f1", "acc")]
)
def test_tasks_and_metrics_that_are_not_there(folder, name, metric, told):
    scorer = TaskScorer("capability", Task(name=name, metric=metric, include="tasks"), folder)
    with pytest.raises(UsageError, match=told):
        scorer.score(Subject(tiny_model(), tiny_tokenizer()), "test", 4)


@pytest.mark.skipif(installed, reason="lm-eval is installed")
def test_without_the_package_the_extra_is_named(tmp_path):
    scorer = TaskScorer("capability", Task(name="hellaswag"), tmp_path)
    with pytest.raises(MissingDependencyError, match=r"wsmerge\[eval\]"):
        scorer.score(Subject(tiny_model(), tiny_tokenizer()), "test", 4)


def test_a_folder_of_tasks_may_hold_code_and_has_to_be_allowed(tmp_path):
    measures = {"even": Measure(role="capability", task=Task(name="tiny_even", include="tasks"))}
    with pytest.raises(UsageError) as caught:
        load_scorers(measures, tmp_path)
    assert "--allow-code tasks" in caught.value.details[0]
    assert set(load_scorers(measures, tmp_path, Allowed(code=frozenset({"tasks"})))) == {"even"}


@pytest.fixture
def asked(monkeypatch) -> list[dict[str, Any]]:
    """What lm-eval is asked for, by a stand-in that knows one task without documents."""
    calls: list[dict[str, Any]] = []

    def evaluate(**options: Any) -> dict[str, Any]:
        calls.append(options)
        return {"samples": {"tiny": [{"acc": 1.0, "doc_id": 0}]}}

    task = SimpleNamespace(eval_docs=[0])
    manager = SimpleNamespace(all_tasks=["tiny"], load=lambda _: {"tasks": {"tiny": task}})
    for name, module in {
        "lm_eval": SimpleNamespace(simple_evaluate=evaluate),
        "lm_eval.models": SimpleNamespace(),
        "lm_eval.models.huggingface": SimpleNamespace(HFLM=lambda **_: None),
        "lm_eval.tasks": SimpleNamespace(TaskManager=lambda **_: manager),
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    return calls


@pytest.mark.parametrize("chat_template", [False, True])
def test_every_method_is_asked_with_the_chat_template_or_none_is(asked, tmp_path, chat_template):
    scorer = TaskScorer("capability", Task(name="tiny", chat_template=chat_template), tmp_path)
    tokenizer = tiny_tokenizer()
    for system in (None, "Be kind."):
        scorer.score(Subject(tiny_model(), tokenizer, system), "validation", 4)
    assert [one["apply_chat_template"] for one in asked] == [chat_template] * 2
    assert [one["system_instruction"] for one in asked] == [None, "Be kind."]


def test_a_system_message_that_lm_eval_would_leave_out_is_refused(asked, tmp_path):
    scorer = TaskScorer("capability", Task(name="tiny", chat_template=True), tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No') }}{% endif %}"
    scorer.score(Subject(tiny_model(), tokenizer), "validation", 4)
    with pytest.raises(UsageError, match="takes no system message"):
        scorer.score(Subject(tiny_model(), tokenizer, "Be kind."), "validation", 4)
    assert len(asked) == 1
