"""wsmerge convert."""

from __future__ import annotations

import json

from tests.registry.artifacts import make_artifact
from wsmerge.registry import Store


def test_there_and_back(wsmerge, tmp_path):
    store = tmp_path / "store"
    entry = Store(store).publish(make_artifact(tmp_path / "plain"))
    done = wsmerge("convert", "formal", "--to", "zarr", "--out", tmp_path / "zarr", "--store", store, "--json")
    assert done.code == 0
    told = json.loads(done.out)
    assert told["version_digest"] == entry.version_digest
    assert told["content_digest"] == entry.content_digest
    assert told["payload"] == "zarr"
    held = [path for path in (tmp_path / "zarr/direction.zarr").rglob("*") if path.is_file()]
    assert told["payload_bytes"] == sum(path.stat().st_size for path in held)
    back = wsmerge("convert", tmp_path / "zarr", "--to", "safetensors", "--out", tmp_path / "back")
    assert back.code == 0
    assert entry.version_digest in back.out
    for path in (tmp_path / "plain").iterdir():
        assert path.read_bytes() == (tmp_path / "back" / path.name).read_bytes()
    assert wsmerge("verify", tmp_path / "zarr").code == 0


def test_what_cannot_be_done_is_told(wsmerge, tmp_path):
    folder = make_artifact(tmp_path / "plain")
    other = wsmerge("convert", folder, "--to", "gguf", "--out", tmp_path / "out")
    assert other.code == 2
    assert "one of safetensors, zarr" in other.err
    assert wsmerge("convert", folder, "--to", "zarr", "--codec", "gzip", "--out", tmp_path / "out").code == 2
    taken = wsmerge("convert", folder, "--to", "zarr", "--out", folder)
    assert taken.code == 1
    assert "no empty folder" in taken.err
    nothing = wsmerge("convert", "nothing", "--to", "zarr", "--out", tmp_path / "out", "--json")
    assert nothing.code == 1
    assert json.loads(nothing.err)["error"]["code"] == "not-found"
    assert not (tmp_path / "out").exists()
