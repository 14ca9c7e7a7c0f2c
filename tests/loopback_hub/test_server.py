from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, constants
from huggingface_hub.errors import HfHubHTTPError

from tests.loopback_hub import LoopbackHub

REPO = "acme/formal"
HEADER_ONLY = b'{"key": "header", "value": {"summary": "x"}}\n'


def sockets() -> int:
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        # The listing itself was one of them.
        with contextlib.suppress(FileNotFoundError):
            count += str(link.readlink()).startswith("socket:")
    return count


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    threads, open_sockets, endpoint = set(threading.enumerate()), sockets(), constants.ENDPOINT
    for number in range(3):
        with LoopbackHub(tmp_path / str(number)) as hub:
            hub.make_repo(REPO)
            hub.api().model_info(REPO)
            assert sockets() > open_sockets
            assert hub.endpoint == constants.ENDPOINT
    assert set(threading.enumerate()) <= threads
    assert sockets() == open_sockets
    assert endpoint == constants.ENDPOINT


def test_connections_stay_open(hub: LoopbackHub) -> None:
    hub.api().model_info(REPO)
    opened = sockets()
    for _ in range(5):
        hub.api().model_info(REPO)
        assert hub.ask("/api/nothing").status_code == 404
        assert hub.ask(f"/api/models/{REPO}/commit/nowhere", method="POST", content=HEADER_ONLY).status_code == 404
    assert sockets() == opened
    assert hub.connections == 1


def test_a_body_may_come_in_chunks(hub: LoopbackHub) -> None:
    line = b'{"key": "file", "value": {"path": "a", "content": "text", "encoding": "utf-8"}}\n'
    chunks = [HEADER_ONLY[:10], HEADER_ONLY[10:], line]
    answer = hub.ask(f"/api/models/{REPO}/commit/main", method="POST", content=iter(chunks))
    assert answer.json()["commitOid"] == hub.head(REPO)
    assert hub.files(REPO)["a"] == b"text"
    assert hub.requests[-1].bytes_received == len(HEADER_ONLY + line)
    assert hub.ask(f"/api/models/{REPO}").status_code == 200
    assert hub.connections == 1


def test_one_of_many_writers_wins(hub: LoopbackHub) -> None:
    head = hub.head(REPO)

    def write(number: int) -> str | int:
        operations = [CommitOperationAdd(f"{number}", b"1")]
        try:
            return hub.api().create_commit(REPO, operations, commit_message=f"{number}", parent_commit=head).oid
        except HfHubHTTPError as error:
            return error.response.status_code

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(write, range(16)))
    winner = hub.head(REPO)
    assert sorted(results, key=str) == sorted([winner, *[412] * 15], key=str)
    assert hub.site.repositories[REPO].parents(winner) == [head]


def test_writers_without_a_parent_all_commit(hub: LoopbackHub) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: hub.commit(REPO, {f"{number}": b"1"}), range(16)))
    assert set(hub.files(REPO)) == {".gitattributes", *(str(number) for number in range(16))}
    assert len(hub.api().list_repo_commits(REPO)) == 17


def test_a_mistake_of_the_server_is_told(tmp_path: Path) -> None:
    with pytest.RaisesGroup(KeyError), LoopbackHub(tmp_path) as hub:
        assert hub.ask("/api/repos/create", method="POST", json={}).status_code == 500


def test_git_reads_what_was_written(hub: LoopbackHub, tmp_path: Path) -> None:
    operations = [CommitOperationAdd("a/b.txt", b"text"), CommitOperationAdd("c.weights", b"\0large")]
    written = hub.api().create_commit(REPO, operations, commit_message="Title", commit_description="More")
    hub.api().create_tag(REPO, tag="v1", tag_message="first")
    hub.commit(REPO, {"a/b.txt": b"later"})

    def git(*arguments: str, where: Path) -> str:
        quiet = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_LFS_SKIP_SMUDGE": "1", "PATH": os.environ["PATH"]}
        return subprocess.run(
            ["git", *arguments],  # noqa: S607 - whichever git there is
            cwd=where,
            env=quiet,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    repository = hub.repo_path(REPO)
    checked = git("-c", "safe.directory=*", "fsck", "--full", "--strict", where=repository)
    assert checked == ""
    git("-c", "safe.directory=*", "clone", "--quiet", "--branch", "v1", str(repository), "clone", where=tmp_path)
    clone = tmp_path / "clone"
    assert git("rev-parse", "HEAD", where=clone).strip() == written.oid
    assert git("log", "-1", "--format=%an|%s|%b", where=clone).strip() == "acme|Title|More"
    assert git("cat-file", "-t", "v1", where=clone).strip() == "tag"
    assert (clone / "a" / "b.txt").read_text() == "text"
    assert (clone / "c.weights").read_text().startswith("version https://git-lfs.github.com/spec/v1\noid sha256:")
    assert git("check-attr", "filter", "c.weights", "a/b.txt", where=clone).splitlines() == [
        "c.weights: filter: lfs",
        "a/b.txt: filter: unspecified",
    ]
