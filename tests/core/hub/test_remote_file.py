"""Byte ranges over HTTP: the right bytes whatever fails, no byte twice, no token to a stranger."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from huggingface_hub import constants

from tests.hubs import IMPATIENT, connection
from tests.loopback_hub import Fault, LoopbackHub
from wsmerge.core.hub.commit import RepoCommit
from wsmerge.core.hub.connection import Hub
from wsmerge.core.hub.transfer import Target, Traffic, Transfer
from wsmerge.core.ranges import RangeFile, read_range
from wsmerge.errors import HubError, VerificationError

LARGE = np.random.default_rng(1).bytes(3_000_000)
SMALL = b'{"kind": "small"}'
NAME = "weights.safetensors"
STORAGE = "/large-files/"


@pytest.fixture
def commit(server: LoopbackHub) -> RepoCommit:
    server.commit("acme/formal", {NAME: LARGE, "direction.json": SMALL})
    found = RepoCommit.resolve(connection(server), "acme/formal")
    server.requests.clear()
    return found


def ranges_asked(server: LoopbackHub) -> list[str | None]:
    return [request.range for request in server.requests if STORAGE in request.path]


def test_the_commit_lists_what_the_hub_has(server: LoopbackHub, commit: RepoCommit) -> None:
    assert commit.commit == server.head("acme/formal")
    entry = commit.files[NAME]
    assert (entry.size, entry.sha256) == (len(LARGE), hashlib.sha256(LARGE).hexdigest())
    small = commit.files["direction.json"]
    assert (small.size, small.sha256) == (len(SMALL), None)
    assert small.blob_id == hashlib.sha1(b"blob 17\0" + SMALL, usedforsecurity=False).hexdigest()
    assert commit.label == f"hub:acme/formal@{commit.commit[:12]}"


@pytest.mark.parametrize(("start", "count"), [(0, 1), (0, 3_000_000), (123_456, 1_000), (2_999_999, 1)])
def test_an_exact_read_is_one_request_for_exactly_its_bytes(
    server: LoopbackHub, commit: RepoCommit, start: int, count: int
) -> None:
    assert read_range(commit.open(NAME, ahead=False), start, count) == LARGE[start : start + count]
    assert ranges_asked(server) == [f"bytes={start}-{start + count - 1}"]
    redirects = sum(request.bytes_sent for request in server.requests if request.status == 302)
    assert commit.bytes_read == count + redirects


def test_the_redirect_is_followed_once_and_its_address_kept(server: LoopbackHub, commit: RepoCommit) -> None:
    file = commit.open(NAME, ahead=False)
    for start in range(0, 1_000_000, 100_000):
        read_range(file, start, 10)
    assert [request.status for request in server.requests] == [302, *[206] * 10]


def test_reading_in_order_takes_few_requests(server: LoopbackHub, commit: RepoCommit) -> None:
    file = commit.open(NAME)
    read = b"".join(read_range(file, start, min(4096, len(LARGE) - start)) for start in range(0, len(LARGE), 4096))
    assert read == LARGE
    assert len(ranges_asked(server)) <= 6
    assert sum(request.bytes_sent for request in server.requests if STORAGE in request.path) == len(LARGE)


def test_threads_share_what_was_fetched(server: LoopbackHub, commit: RepoCommit) -> None:
    file = commit.open(NAME)
    starts = list(range(0, len(LARGE), 50_000))
    with ThreadPoolExecutor(6) as pool:
        parts = list(pool.map(lambda start: read_range(file, start, min(50_000, len(LARGE) - start)), starts))
    assert b"".join(parts) == LARGE
    assert sum(request.bytes_sent for request in server.requests if STORAGE in request.path) == len(LARGE)


def test_expected_ranges_are_fetched_together_and_nothing_else_is(server: LoopbackHub, commit: RepoCommit) -> None:
    file = commit.open(NAME, ahead=False)
    wanted = [(500_000, 600_000), (600_000, 650_000), (655_000, 700_000), (2_000_000, 2_000_100)]
    file.expect(wanted)
    for begin, end in wanted:
        assert read_range(file, begin, end - begin) == LARGE[begin:end]
    assert ranges_asked(server) == ["bytes=500000-699999", "bytes=2000000-2000099"]


def test_the_token_is_for_the_hub_alone(server: LoopbackHub, commit: RepoCommit) -> None:
    read_range(commit.open(NAME), 0, 100)
    told = {request.path.split("/")[1]: request.user for request in server.requests}
    assert told == {"acme": "acme", "large-files": None}


@pytest.mark.parametrize(
    "fault",
    [
        Fault("cut", path=STORAGE, after_bytes=70_000),
        Fault("cut", path=STORAGE, after_bytes=0),
        Fault("cut", path=STORAGE, after_bytes=70_000, times=20),
        Fault("drop_before", path=STORAGE, times=2),
        Fault("lost_response", path=STORAGE),
        Fault("status", path=STORAGE, status=503, times=2),
        Fault("status", path=STORAGE, status=429, times=3),
        Fault("status", path="/resolve/", status=500),
        Fault("status", path="/resolve/", status=429, times=2),
        Fault("drop_before", path="/resolve/"),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}-{fault.path.strip('/')}-{fault.after_bytes}-{fault.times}",
)
def test_what_may_pass_is_tried_again(server: LoopbackHub, commit: RepoCommit, fault: Fault) -> None:
    server.faults.add(fault)
    assert read_range(commit.open(NAME, ahead=False), 100, 1_000_000) == LARGE[100:1_000_100]
    assert server.faults.fired


def test_a_cut_body_is_continued_where_it_stopped(server: LoopbackHub, commit: RepoCommit) -> None:
    server.faults.add(Fault("cut", path=STORAGE, after_bytes=70_000))
    read_range(commit.open(NAME, ahead=False), 100, 1_000_000)
    assert ranges_asked(server) == ["bytes=100-1000099", "bytes=70100-1000099"]


def test_an_expired_address_is_asked_for_anew(server: LoopbackHub, commit: RepoCommit) -> None:
    file = commit.open(NAME, ahead=False)
    read_range(file, 0, 10)
    server.faults.add(Fault("status", path=STORAGE, status=403))
    assert read_range(file, 50, 10) == LARGE[50:60]
    assert [request.status for request in server.requests] == [302, 206, 403, 302, 206]


def test_a_failure_that_stays_is_told_with_the_file(server: LoopbackHub, commit: RepoCommit) -> None:
    server.faults.add(Fault("status", path=STORAGE, status=503, times=None))
    with pytest.raises(HubError, match="after 4 attempts: status 503") as caught:
        read_range(commit.open(NAME), 0, 10)
    assert caught.value.where == f"{commit.label}/{NAME}"
    assert len(ranges_asked(server)) == IMPATIENT.attempts


def test_a_range_behind_the_end_asks_nothing(server: LoopbackHub, commit: RepoCommit) -> None:
    with pytest.raises(HubError, match="has 3000000 bytes"):
        read_range(commit.open(NAME), len(LARGE) - 5, 6)
    assert not server.requests


def test_a_closed_file_is_not_read(commit: RepoCommit) -> None:
    file = commit.open(NAME)
    file.close()
    with pytest.raises(HubError, match="closed"):
        read_range(file, 0, 1)


def test_a_whole_file_is_checked(server: LoopbackHub, commit: RepoCommit) -> None:
    assert (commit.read(NAME), commit.read("direction.json")) == (LARGE, SMALL)
    server.faults.add(Fault("wrong_byte", path=STORAGE, after_bytes=1000))
    with pytest.raises(VerificationError, match="not those that the commit names"):
        commit.read(NAME)
    server.faults.add(Fault("wrong_byte", path="direction.json", after_bytes=3))
    with pytest.raises(VerificationError):
        commit.read("direction.json")


def test_a_moved_branch_changes_nothing(server: LoopbackHub, commit: RepoCommit) -> None:
    server.commit("acme/formal", {NAME: LARGE[::-1], "direction.json": b"{}"})
    assert (commit.read(NAME), commit.read("direction.json")) == (LARGE, SMALL)


@pytest.mark.parametrize(
    ("size", "etag", "message"),
    [
        (len(LARGE), "0" * 64, "its ETag is"),
        (len(LARGE) - 1, "", "it has 3000000 bytes, and the commit names 2999999"),
        (len(LARGE) + 100_000, "", "not the file of the commit"),
    ],
)
def test_another_file_than_the_commit_has_is_refused(
    server: LoopbackHub, commit: RepoCommit, size: int, etag: str, message: str
) -> None:
    transfer = Transfer(connection(server), Target(commit.address(NAME), "hub:it", size, etag), Traffic())
    with pytest.raises(HubError, match=message):
        transfer.fetch(size - 10, memoryview(bytearray(10)))


@pytest.mark.parametrize(
    ("repo", "revision", "message"),
    [
        ("acme/nothing", None, "no such repository"),
        ("acme/formal", "v9", "no such revision"),
        ("acme/formal", "0" * 40, "no such revision"),
    ],
)
def test_what_is_not_there_is_told(server: LoopbackHub, repo: str, revision: str | None, message: str) -> None:
    with pytest.raises(HubError, match=message) as caught:
        RepoCommit.resolve(connection(server), repo, revision)
    assert caught.value.where == (f"{repo}@{revision}" if revision else repo)


def test_a_private_repository_needs_its_owner(server: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.make_repo("acme/secret", private=True)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="no such repository, or does not show it"):
        RepoCommit.resolve(Hub(endpoint=server.endpoint), "acme/secret")
    assert RepoCommit.resolve(connection(server), "acme/secret").files


def test_the_environment_is_read_at_each_call(server: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub()
    assert (hub.endpoint, hub.token, hub.offline) == (server.endpoint, server.token, False)
    assert hub.headers["authorization"] == f"Bearer {server.token}"
    assert RepoCommit.resolve(hub, "acme/formal").repo == "acme/formal"
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1/")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert (hub.endpoint, hub.api.endpoint, hub.offline) == ("http://127.0.0.1:1", "http://127.0.0.1:1", True)
    server.requests.clear()
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        RepoCommit.resolve(hub, "acme/formal")
    assert not server.requests


def test_a_remote_file_is_a_range_file(commit: RepoCommit) -> None:
    file: RangeFile = commit.open(NAME)
    assert (file.size, file.label) == (len(LARGE), f"{commit.label}/{NAME}")


def test_what_is_expected_is_kept_within_what_the_connection_may_keep(server: LoopbackHub, commit: RepoCommit) -> None:
    hub = Hub(endpoint=server.endpoint, token=server.token, kept_bytes=100_000)
    commit = RepoCommit.resolve(hub, "acme/formal")
    server.requests.clear()
    file = commit.open(NAME, ahead=False)
    file.expect([(0, 90_000), (1_000_000, 1_090_000)])
    for start in (0, 1_000_000, 10):
        assert read_range(file, start, 10) == LARGE[start : start + 10]
    assert ranges_asked(server) == ["bytes=0-89999", "bytes=1000000-1089999", "bytes=10-89999"]


@pytest.mark.parametrize("endpoint", ["http://[::1", "http://127.0.0.1:abc", "127.0.0.1", "ftp://127.0.0.1", "http://"])
def test_an_endpoint_that_is_no_address_is_told(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(HubError, match="acme/formal") as caught:
        RepoCommit.resolve(Hub(patience=IMPATIENT), "acme/formal")
    assert "HF_ENDPOINT" in (caught.value.hint or "")


def test_a_token_that_cannot_be_sent_is_told_and_not_shown(
    server: LoopbackHub, monkeypatch: pytest.MonkeyPatch, commit: RepoCommit
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_s\u00f6cret")
    hub = Hub(endpoint=server.endpoint, patience=IMPATIENT)
    again = RepoCommit(hub, "acme/formal", commit.commit, revision=None, files=commit.files)
    for ask in (lambda: RepoCommit.resolve(hub, "acme/formal"), lambda: again.read(NAME)):
        with pytest.raises(HubError, match="token") as caught:
            ask()
        assert "cret" not in str(caught.value)
        assert "HF_TOKEN" in (caught.value.hint or "")
    assert not server.requests
