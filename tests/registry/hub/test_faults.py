"""Every HTTP call of a push and of a pull is cut in turn, and doing it again ends in the right state.

Which calls there are is read from the Hub's log of an undisturbed run; then each is dropped before it does anything, has
its answer lost after it was carried out, or is answered with 503. However the first try ends, nothing half-done can be
seen, and the next one finishes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.hubs import connection, running_hub
from tests.loopback_hub import Fault, LoopbackHub, Request
from tests.registry.artifacts import SHAPES, about, make_artifact
from tests.sources import random_direction
from wsmerge.core.hub.connection import Hub, Patience
from wsmerge.errors import HubError, WsmergeError
from wsmerge.registry import Direction, Store, open_direction_folder, write_direction
from wsmerge.registry.hub.pull import pull
from wsmerge.registry.hub.push import PushOptions, push

REPO = "acme/formal"
KINDS = ("drop_before", "lost_response", "status")
ONCE = Patience(attempts=1)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    """The client's own waits between its tries, which are not what is tested."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _seconds: None)


@contextmanager
def fresh_hub(folder: Path) -> Iterator[LoopbackHub]:
    with pytest.MonkeyPatch.context() as patch, running_hub(folder, patch) as server:
        yield server


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def push_folder(hub: Hub, folder: Path, repo: str = REPO, **options: Any) -> Any:
    with open_direction_folder(folder) as direction:
        return push(hub, direction, repo, PushOptions(**options))


def whole_version(server: LoopbackHub, tag: str, artifact: Path, repo: str = REPO) -> bool:
    """Whether the tag has all files of the artifact and no payload beside them."""
    held = server.files(repo, tag)
    names = {path.name for path in artifact.iterdir()}
    payloads = {name for name in held if re.search(r"safetensors|adapter_config", name)}
    return (
        names <= held.keys()
        and payloads <= names
        and all(held[name] == (artifact / name).read_bytes() for name in names - {"README.md"})
    )


def failure_of(action: Callable[[], object]) -> WsmergeError | None:
    try:
        action()
    except WsmergeError as error:
        return error
    return None


def fault_for(kind: Any, number: int, calls: list[Request], repo: str = REPO) -> Fault:
    """The fault that meets the call at `number` of the undisturbed run, in `repo`."""
    call = calls[number]
    before = sum((earlier.method, shape(earlier)) == (call.method, shape(call)) for earlier in calls[:number])
    return Fault(kind, method=call.method, path=shape(call).replace(re.escape(REPO), re.escape(repo)), skip=before)


def shape(call: Request) -> str:
    """A pattern for this call: commits and the names of uploads differ from run to run."""
    return f"^{re.sub(r'[0-9a-f]{32,}', '[0-9a-f]{32,}', re.escape(call.path))}$"


@pytest.fixture(scope="module")
def versions(tmp_path_factory) -> tuple[Path, Path]:
    """1.0.0, an adapter, and 1.1.0, dense: its push adds, changes and deletes files."""
    folder = tmp_path_factory.mktemp("versions")
    make_artifact(folder / "adapter")
    dense = random_direction(SHAPES, rank=None)
    with write_direction(folder / "dense", dense, about(version="1.1.0")):
        return folder / "adapter", folder / "dense"


def prepared(server: LoopbackHub, scenario: str, versions: tuple[Path, Path], repo: str = REPO) -> tuple[Path, str]:
    """A repository that is missing, one with a lower version, one with a higher; what is pushed then, and its tag."""
    adapter, dense = versions
    if scenario == "next":
        push_folder(connection(server), adapter, repo)
        return dense, "v1.1.0"
    if scenario == "lower":
        push_folder(connection(server), dense, repo)
    return adapter, "v1.0.0"


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["first", "next", "lower"])
def test_each_call_of_a_push_may_fail(scenario, versions, tmp_path):
    with fresh_hub(tmp_path) as server:
        artifact, tag = prepared(server, scenario, versions)
        server.requests.clear()
        push_folder(connection(server), artifact, aliases=("good",))
        calls = list(server.requests)
        assert len(calls) >= 12
        ends = set()
        for number in range(len(calls)):
            for kind in KINDS:
                repo = f"acme/{kind}-{number}"
                prepared(server, scenario, versions, repo)
                server.faults.clear()
                server.faults.add(fault_for(kind, number, calls, repo))
                told = f"{kind} at {number}: {calls[number].method} {calls[number].path}"
                ends.add(disturbed_push(server, repo, artifact, tag, told))
        assert ends == {"told", "done"}


def disturbed_push(server: LoopbackHub, repo: str, artifact: Path, tag: str, told: str) -> str:
    others = server.tags(repo) if repo in server.site.repositories else {}
    main = server.head(repo) if others else None
    fired = len(server.faults.fired)
    failure = failure_of(lambda: push_folder(connection(server), artifact, repo, aliases=("good",)))
    assert failure is None or (isinstance(failure, HubError) and failure.hint), f"{told}: {failure!r}"
    assert len(server.faults.fired) == fired + 1, told
    if repo in server.site.repositories and tag in server.tags(repo):
        assert whole_version(server, tag, artifact, repo), told
    again = push_folder(connection(server), artifact, repo, aliases=("good",))
    assert server.tags(repo) == others | {tag: again.commit, "good": again.commit}, told
    assert whole_version(server, tag, artifact, repo), told
    assert digest(server.files(repo, tag)["direction.json"]) == again.version_digest, told
    assert [branch.name for branch in server.api().list_repo_refs(repo).branches] == ["main"], told
    assert server.head(repo) == (main if others and max(others) > tag else again.commit), told
    return "told" if failure else "done"


def test_each_call_of_a_pull_may_fail(versions, tmp_path):
    with fresh_hub(tmp_path / "hub") as server:
        push_folder(connection(server), versions[0])
        server.requests.clear()
        pull(connection(server), REPO, Store(tmp_path / "undisturbed"))
        calls = list(server.requests)
        assert len(calls) >= 9
        for number, call in enumerate(calls):
            for kind in (*KINDS, "cut"):
                server.faults.clear()
                server.faults.add(fault_for(kind, number, calls))
                store = Store(tmp_path / f"{number}-{kind}")
                disturbed_pull(server, store, versions[0], f"{kind} at {number}: {call.method} {call.path}")


def disturbed_pull(server: LoopbackHub, store: Store, artifact: Path, told: str) -> None:
    impatient = Hub(endpoint=server.endpoint, token=server.token, patience=ONCE)
    fired = len(server.faults.fired)
    failure = failure_of(lambda: pull(impatient, REPO, store))
    assert failure is None or isinstance(failure, HubError), f"{told}: {failure!r}"
    if failure:
        assert store.known_names() == (), told
        assert store.survey().entries == (), told
    assert len(server.faults.fired) == fired + 1, told
    entry = pull(connection(server), REPO, store).entry
    with open_direction_folder(artifact) as direction:
        assert entry.version_digest == direction.digest, told
    assert [event.action for event in store.log(REPO)] == ["publish", "tag"], told
    assert store.verify().problems == (), told
    assert list(store.paths.temporary.iterdir()) == [], told


def test_the_server_is_not_asked_again_for_a_commit_whose_answer_was_lost(tmp_path, versions):
    """The commit is recognised by what it holds: it is made once."""
    with fresh_hub(tmp_path) as server:
        server.faults.add(Fault("lost_response", method="POST", path="/commit/"))
        pushed = push_folder(connection(server), versions[0])
        assert pushed.outcome == "pushed"
        assert len(server.faults.fired) == 1
        commits = server.api().list_repo_commits(REPO)
        assert [commit.title for commit in commits].count("formal@1.0.0") == 1


def test_waiting_is_told_when_the_hub_limits(tmp_path, versions):
    with fresh_hub(tmp_path) as server:
        server.faults.add(Fault("status", status=429, path="/refs"))
        with pytest.raises(HubError, match="limits how much is asked"):
            push_folder(connection(server), versions[0])


def test_a_direction_of_many_files(tmp_path):
    """Shards: an index and each of its files are pushed and pulled."""
    dense = random_direction(SHAPES, rank=None)
    folder = tmp_path / "sharded"
    with (
        write_direction(folder, dense, about(), max_shard_bytes=2000) as direction,
        fresh_hub(tmp_path / "hub") as server,
    ):
        shards = [path for path in folder.iterdir() if path.name.startswith("direction-")]
        assert len(shards) > 1
        push(connection(server), direction, REPO)
        store = Store(tmp_path / "store")
        entry = pull(connection(server), REPO, store).entry
        assert whole_version(server, "v1.0.0", folder)
        with open_direction_folder(entry.path) as pulled:
            assert isinstance(pulled, Direction)
            assert pulled.manifest == direction.manifest


def test_a_tag_whose_answer_was_lost_is_found(tmp_path, versions):
    with fresh_hub(tmp_path) as server:
        server.faults.add(Fault("lost_response", method="POST", path="/tag/"))
        pushed = push_folder(connection(server), versions[0])
        assert len(server.faults.fired) == 1
        assert server.tags(REPO) == {"v1.0.0": pushed.commit}
