from __future__ import annotations

import os
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, constants
from huggingface_hub.errors import HfHubHTTPError

from tests.loopback_hub import Fault, LoopbackHub

REPO = "acme/formal"


def commit(hub: LoopbackHub, content: bytes = b"1") -> str:
    return hub.api().create_commit(REPO, [CommitOperationAdd("a", content)], commit_message="a").oid


def test_a_lost_response_has_done_its_work(hub: LoopbackHub) -> None:
    head = hub.head(REPO)
    hub.faults.add(Fault("lost_response", method="POST", path=r"/commit/"))
    with pytest.raises(httpx2.RemoteProtocolError):
        commit(hub)
    assert hub.head(REPO) != head
    assert hub.files(REPO)["a"] == b"1"
    assert (hub.requests[-1].fault, hub.requests[-1].status) == ("lost_response", None)
    assert commit(hub) == hub.head(REPO), "the fault happens once"


def test_a_drop_before_has_done_nothing(hub: LoopbackHub) -> None:
    head = hub.head(REPO)
    hub.faults.add(Fault("drop_before", method="POST", path=r"/commit/"))
    with pytest.raises(httpx2.RemoteProtocolError):
        commit(hub)
    assert hub.head(REPO) == head
    assert commit(hub) == hub.head(REPO) != head


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_a_status_has_done_nothing(hub: LoopbackHub, status: int) -> None:
    head = hub.head(REPO)
    hub.faults.add(Fault("status", method="POST", path=r"/commit/", status=status))
    with pytest.raises(HfHubHTTPError) as caught:
        commit(hub)
    assert caught.value.response.status_code == status
    assert hub.head(REPO) == head
    assert commit(hub) == hub.head(REPO) != head


def test_a_client_that_retries_gets_through(hub: LoopbackHub) -> None:
    hub.faults.add(Fault("status", path=r"/preupload/", status=429))
    commit(hub)
    assert [request.status for request in hub.requests if "/preupload/" in request.path] == [429, 200]


def test_a_cut_download_is_resumed_where_it_ended(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The client keeps whole pieces only, of 10 MB by default.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 30_000)
    content = os.urandom(300_000)
    hub.commit(REPO, {"a.safetensors": content})
    hub.faults.add(Fault("cut", method="GET", path=r"/large-files/", after_bytes=100_000))
    path = hub.api().hf_hub_download(REPO, "a.safetensors", cache_dir=tmp_path)
    assert Path(path).read_bytes() == content
    first, second = [request for request in hub.requests if request.path.startswith("/large-files/")]
    assert (first.fault, first.bytes_sent) == ("cut", 100_000)
    assert (second.range, second.bytes_sent) == ("bytes=90000-", 210_000)


@pytest.mark.parametrize("at", [0, 70_000, 99_999])
def test_a_wrong_byte_reaches_the_client(hub: LoopbackHub, tmp_path: Path, at: int) -> None:
    content = os.urandom(100_000)
    hub.commit(REPO, {"a.safetensors": content})
    hub.faults.add(Fault("wrong_byte", path=r"/large-files/", after_bytes=at))
    path = hub.api().hf_hub_download(REPO, "a.safetensors", cache_dir=tmp_path)
    read = Path(path).read_bytes()
    assert [index for index in range(100_000) if read[index] != content[index]] == [at]


def test_a_stale_head_is_one_commit_behind_on_branches_only(hub: LoopbackHub) -> None:
    before = hub.head(REPO)
    now = hub.commit(REPO, {"a": b"1"})
    hub.api().create_tag(REPO, tag="v1")
    hub.faults.add(Fault("stale_head", times=3))
    assert hub.api().model_info(REPO).sha == before
    refs = hub.api().list_repo_refs(REPO)
    assert (refs.branches[0].target_commit, refs.tags[0].target_commit) == (before, now)
    assert hub.api().model_info(REPO, revision="v1").sha == now
    assert hub.api().model_info(REPO).sha == now


def test_faults_are_counted(hub: LoopbackHub) -> None:
    hub.faults.add(Fault("status", method="GET", path=r"/api/models/acme/formal$", status=500, skip=2, times=2))
    statuses = [hub.ask("/api/models/acme/formal").status_code for _ in range(6)]
    assert statuses == [200, 200, 500, 500, 200, 200]
    assert [method for _, method, _ in hub.faults.fired] == ["GET", "GET"]
    hub.faults.add(Fault("status", times=None))
    assert [hub.ask("/api/models").status_code for _ in range(3)] == [503] * 3
    hub.faults.clear()
    assert hub.ask("/api/models").status_code == 200
