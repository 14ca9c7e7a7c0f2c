"""Programs of others against the loopback Hub; README.md beside this file says how to install and name them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import RepoFile

from tests.loopback_hub import LoopbackHub

REPO = "acme/formal"
OLAH, HUB_JS = os.environ.get("WSMERGE_OLAH"), os.environ.get("WSMERGE_HUB_JS")
STARTS_WITHIN_S = 60


@pytest.mark.skipif(HUB_JS is None, reason="WSMERGE_HUB_JS names no folder where @huggingface/hub is installed")
def test_the_npm_client_writes_and_reads(hub: LoopbackHub, tmp_path: Path) -> None:
    script = Path(__file__).with_name("second_client.mjs")
    ran = subprocess.run(
        ["node", script, HUB_JS or "", hub.endpoint, hub.token, "acme/second"],  # noqa: S607 - whichever Node there is
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    told, weights = json.loads(ran.stdout), bytes(index % 251 for index in range(100_000))
    head = hub.head("acme/second")
    assert told["user"] == "acme"
    assert told["stale"] == 412
    assert told["deleted"] == told["info"] == head
    assert [oid for oid, _ in told["commits"][:2]] == [head, told["first"]]
    assert told["exists"] == [True, False]
    assert (told["small"], told["large"]) == ("{}", True)
    assert sorted(told["models"]) == ["acme/formal", "acme/second"]
    assert [row for row in told["files"] if row[1] == "file" and row[0] != ".gitattributes"] == [
        ["deep/er.safetensors", "file", len(weights)],
        ["direction.json", "file", 2],
    ]
    assert hub.head("acme/second", "try") == head
    # The other client reads what this one wrote, and is told that it is no longer at the head.
    path = hub.api().hf_hub_download("acme/second", "deep/er.safetensors", cache_dir=tmp_path)
    assert Path(path).read_bytes() == weights
    with pytest.raises(HfHubHTTPError, match="a commit has happened since"):
        hub.api().create_commit(
            "acme/second", [CommitOperationAdd("a", b"1")], commit_message="late", parent_commit=told["first"]
        )


@contextmanager
def olah_client(hub: LoopbackHub, folder: Path) -> Iterator[HfApi]:
    """The client of an `olah` server that serves a clone of the repository, large files included."""
    clone = folder / "mirrors" / "models" / REPO
    arguments = ["-c", "safe.directory=*", "clone", "--quiet", str(hub.repo_path(REPO)), str(clone)]
    subprocess.run(["git", *arguments], env={**os.environ, "GIT_LFS_SKIP_SMUDGE": "1"}, check=True)  # noqa: S607 - whichever git there is
    (clone / ".git" / "lfs").symlink_to(hub.repo_path(REPO) / "lfs")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "olah.toml").write_text(
        f'[basic]\nhost = "127.0.0.1"\nport = {port}\nrepos-path = "{folder / "cache"}"\n'
        f'mirrors-path = ["{folder / "mirrors"}"]\n[accessibility]\noffline = true\n'
    )
    started = [OLAH or "", "--config", str(folder / "olah.toml"), "--log-path", str(folder / "logs")]
    with (folder / "out").open("wb") as out, subprocess.Popen(started, cwd=folder, stdout=out, stderr=out) as process:
        try:
            _wait_for(port, process, folder / "out")
            yield HfApi(endpoint=f"http://127.0.0.1:{port}", token=False)
        finally:
            process.terminate()


@pytest.mark.skipif(OLAH is None, reason="WSMERGE_OLAH names no `olah-cli`")
def test_olah_reads_the_same(hub: LoopbackHub, tmp_path: Path) -> None:
    card, weights = b"---\nlibrary_name: wsmerge\n---\n# Formal\n", os.urandom(50_000)
    operations = [
        CommitOperationAdd("README.md", card),
        CommitOperationAdd("a/b.txt", b"text"),
        CommitOperationAdd("a/direction.safetensors", weights),
    ]
    ours = hub.api()
    ours.create_commit(REPO, operations, commit_message="one")
    ours.create_tag(REPO, tag="v1.0.0", tag_message="the first")
    hub.commit(REPO, {"a/b.txt": b"later"})
    commit = hub.tags(REPO)["v1.0.0"]
    with olah_client(hub, tmp_path) as theirs:
        info = theirs.model_info(REPO, revision="v1.0.0")
        assert info.sha == commit
        assert {file.rfilename for file in info.siblings or []} == set(hub.files(REPO, "v1.0.0"))
        assert _refs(theirs) == _refs(ours)
        assert _tree(theirs, commit) == _tree(ours, commit)
        folder = theirs.snapshot_download(REPO, revision="v1.0.0", cache_dir=tmp_path / "theirs")
    assert Path(folder).name == commit
    assert {path: (Path(folder) / path).read_bytes() for path in hub.files(REPO)} == hub.files(REPO, "v1.0.0")


def _refs(api: HfApi) -> set[tuple[str, str, str]]:
    refs = api.list_repo_refs(REPO)
    return {(ref.name, ref.ref, ref.target_commit) for ref in (*refs.branches, *refs.tags)}


def _tree(api: HfApi, commit: str) -> set[tuple[str, str, int, str | None]]:
    entries = api.list_repo_tree(REPO, revision=commit, recursive=True)
    files = [entry for entry in entries if isinstance(entry, RepoFile)]
    return {(file.path, file.blob_id, file.size, file.lfs.sha256 if file.lfs else None) for file in files}


def _wait_for(port: int, process: subprocess.Popen[bytes], out: Path) -> None:
    end = time.monotonic() + STARTS_WITHIN_S
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError(out.read_text())
