from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hf_xet  # type: ignore[import-untyped]  # it ships no types
import pytest
from huggingface_hub import CommitOperationAdd

from tests.loopback_hub import LoopbackHub

REPO = "acme/formal"
MEGABYTE = 1_000_000


@pytest.fixture
def xet_hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    with LoopbackHub(tmp_path / "hub", xet=True) as running:
        running.make_repo(REPO)
        yield running


def push(hub: LoopbackHub, content: bytes, folder: Path) -> None:
    """Commit from a process of its own, which has nothing in its caches."""
    (folder / "weights").write_bytes(content)
    run(
        "api.create_commit('acme/formal', [CommitOperationAdd('a.safetensors', 'weights')], commit_message='a')",
        hub,
        folder,
    )


def run(code: str, hub: LoopbackHub, folder: Path) -> str:
    code = f"from huggingface_hub import CommitOperationAdd, HfApi\napi = HfApi()\n{code}"
    environment = {**os.environ, **hub.environment(folder / "home")}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def test_there_and_back(xet_hub: LoopbackHub, tmp_path: Path) -> None:
    content = os.urandom(3 * MEGABYTE)
    push(xet_hub, content, tmp_path)
    assert not [request for request in xet_hub.requests if request.method == "PUT"], "nothing went through LFS"
    (found,) = xet_hub.api().get_paths_info(REPO, "a.safetensors")
    assert found.xet_hash == hf_xet.hash_files([str(tmp_path / "weights")])[0].hash  # type: ignore[union-attr]  # a file
    path = run("print(api.hf_hub_download('acme/formal', 'a.safetensors'))", xet_hub, tmp_path)
    assert Path(path).read_bytes() == content
    assert not [request for request in xet_hub.requests if request.path.startswith("/large-files/")]
    assert xet_hub.files(REPO)["a.safetensors"] == content


def test_a_small_change_uploads_little(xet_hub: LoopbackHub, tmp_path: Path) -> None:
    content = bytearray(os.urandom(8 * MEGABYTE))
    push(xet_hub, bytes(content), tmp_path)
    before = xet_hub.xet_bytes()
    assert before >= 8 * MEGABYTE
    content[3 * MEGABYTE : 4 * MEGABYTE] = os.urandom(MEGABYTE)
    push(xet_hub, bytes(content), tmp_path)
    # A chunk of at most 128 KiB is sent again at each end of the change.
    assert MEGABYTE <= xet_hub.xet_bytes() - before <= MEGABYTE + 4 * 128 * 1024
    assert xet_hub.files(REPO)["a.safetensors"] == content


def test_a_whole_snapshot(xet_hub: LoopbackHub, tmp_path: Path) -> None:
    files = {f"{number}.safetensors": os.urandom(MEGABYTE // 2) for number in range(4)}
    xet_hub.commit(REPO, {**files, "a.txt": b"1"})
    folder = run("print(api.snapshot_download('acme/formal'))", xet_hub, tmp_path)
    assert {name: (Path(folder) / name).read_bytes() for name in files} == files


def test_plain_readers_get_ranges(xet_hub: LoopbackHub) -> None:
    content = os.urandom(MEGABYTE)
    xet_hub.commit(REPO, {"a.safetensors": content})
    found = xet_hub.ask(f"/{REPO}/resolve/main/a.safetensors", headers={"Range": "bytes=1000-1999"})
    assert (found.status_code, found.content) == (206, content[1000:2000])


def test_in_this_process(xet_hub: LoopbackHub, tmp_path: Path) -> None:
    content = os.urandom(MEGABYTE)
    xet_hub.api().create_commit(REPO, [CommitOperationAdd("a.safetensors", content)], commit_message="a")
    path = xet_hub.api().hf_hub_download(REPO, "a.safetensors", cache_dir=tmp_path / "cache")
    assert Path(path).read_bytes() == content
    assert xet_hub.xet_bytes() >= MEGABYTE


def test_a_large_file_that_was_not_stored_is_refused(xet_hub: LoopbackHub) -> None:
    lines = b'{"key": "header", "value": {"summary": "x"}}\n' + (
        b'{"key": "lfsFile", "value": {"path": "a.safetensors", "algo": "sha256", "oid": "%s"}}\n' % (b"0" * 64)
    )
    assert xet_hub.ask("/api/models/acme/formal/commit/main", method="POST", content=lines).status_code == 400
