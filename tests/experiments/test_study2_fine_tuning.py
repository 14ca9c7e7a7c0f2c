"""The second study's fine-tunes, on a tiny model."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from experiments.study.fine_tuning import Collator, fine_tune
from tests.steering.tiny import save_tiny_base
from wsmerge.steering.loading import load_model, load_tokenizer
from wsmerge.steering.pairs import load_pairs
from wsmerge.steering.training.data import Example, encode

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A base, rows, and two adapters of one seed and one of another."""
    folder = tmp_path_factory.mktemp("tuned")
    base = save_tiny_base(folder / "base")
    rows = folder / "rows.jsonl"
    rows.write_text(
        "".join(
            json.dumps({"id": f"row-{n}", "prompt": f"Number {n}?", "plus": "aaaa", "minus": "zzzz"}) + "\n"
            for n in range(16)
        )
    )
    told: list[str] = []
    for name, seed in (("one", 7), ("again", 7), ("other", 8)):
        fine_tune(base, rows, folder / name, steps=12, seed=seed, say=told.append)
    return folder, told


def weights(folder):
    return load_file(folder / "adapter_model.safetensors")


def test_an_adapter_is_left_that_learnt_the_plus_answers(trained):
    folder, _ = trained
    example = encode(load_pairs(folder / "rows.jsonl"), "plus", load_tokenizer(folder / "base"))[0]
    batch = Collator(257)([example])

    def loss(model) -> float:
        with torch.no_grad():
            return float(model(**batch).loss)

    model = load_model(folder / "base", dtype="float32", device="cpu")
    before = loss(model)
    assert loss(PeftModel.from_pretrained(model, str(folder / "one"))) < before - 0.5
    assert sorted(file.name for file in folder.iterdir() if file.is_dir()) == ["again", "base", "one", "other"]
    assert not list((folder / "one").glob("checkpoint-*"))


def test_a_seed_gives_one_adapter(trained):
    folder, _ = trained
    one, again, other = (weights(folder / name) for name in ("one", "again", "other"))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)


def test_what_is_there_is_kept(trained):
    folder, told = trained
    assert told[0] == "training one"
    assert "12 steps" in told[1]
    said: list[str] = []
    fine_tune(folder / "base", folder / "missing.jsonl", folder / "one", steps=1, seed=0, say=said.append)
    assert said == []


def test_prompts_and_padding_are_no_targets():
    rows = [Example([1, 2, 3], [4]), Example([5], [6, 7])]
    batch = Collator(9)(rows)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4], [5, 6, 7, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch["labels"].tolist() == [[-100, -100, -100, 4], [-100, 6, 7, -100]]
