"""From what a user writes to a folder, without a network."""

from contextlib import suppress
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import errors as hub

from tests.builders import llama_shapes, make_checkpoint, random_tensors
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.engine.locate import hub_snapshot, locate_model, model_name, path_label
from wsmerge.errors import CheckpointError, ModelAbsentError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def in_cache(tmp_path: Path) -> Path:
    return tmp_path / "models--acme--small-1B" / "snapshots" / COMMIT


def test_folders_of_the_hubs_cache_go_by_their_id(tmp_path):
    folder = make_checkpoint(in_cache(tmp_path), random_tensors(llama_shapes()))
    assert hub_snapshot(folder) == ("acme/small-1B", COMMIT)
    assert path_label(folder) == "acme/small-1B"
    assert path_label(tmp_path) == tmp_path.name
    with Checkpoint(folder) as checkpoint:
        assert checkpoint.label == "acme/small-1B"
    assert hub_snapshot(tmp_path) is None
    assert model_name("acme/small-1B@main", folder) == "acme/small-1B"
    assert model_name(str(tmp_path), tmp_path) == tmp_path.name


def test_local_paths_are_found_and_win(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "acme" / "base").mkdir(parents=True)
    assert locate_model("acme/base") == Path("acme/base")
    assert locate_model(str(tmp_path)) == tmp_path
    assert model_name("acme/base", Path("acme/base")) == "base"


def test_a_hub_id_is_downloaded_without_what_is_not_needed(tmp_path, monkeypatch):
    calls = []

    def snapshot_download(repo, **options):
        calls.append((repo, options))
        return str(tmp_path)

    (tmp_path / "model.safetensors").touch()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert locate_model("acme/base@v2") == tmp_path
    assert locate_model("acme/base@v2", revision="v3") == tmp_path
    assert locate_model("gpt2") == tmp_path
    assert [(repo, options["revision"]) for repo, options in calls] == [
        ("acme/base", "v2"),
        ("acme/base", "v3"),
        ("gpt2", None),
    ]
    assert not [pattern for pattern in calls[0][1]["allow_patterns"] if pattern.endswith(".bin")]
    assert "consolidated*.safetensors" in calls[0][1]["ignore_patterns"]


def test_a_model_of_which_the_cache_has_no_weights_is_absent_where_nothing_may_be_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))

    def is_absent():
        with suppress(ModelAbsentError):
            return locate_model("acme/base", download=False) != tmp_path
        return True

    (tmp_path / "config.json").write_text("{}")
    assert is_absent()
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}')
    (tmp_path / "one.safetensors").write_text("x")
    assert is_absent()
    (tmp_path / "two.safetensors").write_text("x")
    assert not is_absent()
    index.write_text("no JSON")
    assert not is_absent()  # what is wrong with it is told where it is read
    index.unlink()
    assert not is_absent()
    assert locate_model("acme/base") == tmp_path


def test_the_weights_of_modules_are_downloaded_too(tmp_path, monkeypatch):
    asked = []

    def snapshot_download(_repo, **options):
        asked.append((options["allow_patterns"][-1], options["ignore_patterns"]))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    (tmp_path / "model.safetensors").write_text("x")
    (tmp_path / "modules.json").write_text('[{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}]')
    assert locate_model("acme/embedding") == tmp_path
    assert asked[1:] == [("1_Pooling/*", []), ("2_Dense/*", [])]


def test_pickles_are_downloaded_where_there_is_nothing_else(tmp_path, monkeypatch):
    asked = []

    def snapshot_download(_repo, **options):
        asked.append([pattern for pattern in options["allow_patterns"] if pattern.endswith(".bin")])
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert locate_model("acme/old") == tmp_path
    assert asked == [[], ["pytorch_model*.bin", "adapter_model.bin"]]


@pytest.mark.parametrize("text", ["./none", "/none/at/all", "~/none-at-all", "a b", "one/two/three"])
def test_what_is_neither_a_path_nor_an_id(text):
    with pytest.raises(CheckpointError, match="no such folder"):
        locate_model(text)


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (hub.LocalEntryNotFoundError("x"), "cannot be reached"),
        (hub.OfflineModeIsEnabled("x"), "cannot be reached"),
        (hub.HFValidationError("bad"), "bad"),
        (OSError("disk"), "cannot be downloaded: disk"),
    ],
)
def test_the_hubs_failures_are_checkpoint_errors(monkeypatch, failure, reason):
    def snapshot_download(*_, **__):
        raise failure

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(CheckpointError, match=reason) as caught:
        locate_model("acme/none@v1")
    assert caught.value.where == "acme/none@v1"
    assert caught.value.hint


def test_offline_for_real(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="cannot be reached"):
        locate_model("acme/none-at-all")
