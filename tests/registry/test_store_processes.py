"""The store under several processes, and under a kill at every step."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.registry.artifacts import make_artifact
from wsmerge.errors import OutputError
from wsmerge.registry import Store

ROOT = Path(__file__).parents[2]
VERSIONS = ("1.0.0", "1.0.1", "1.0.2", "1.0.3", "1.0.4")


def start(*arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.registry.processes", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)


def result(process: subprocess.Popen[bytes]):
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0
    return json.loads(output)


def test_of_several_processes_exactly_one_wins_each_version(tmp_path):
    root, go, stop = tmp_path / "store", tmp_path / "go", tmp_path / "stop"
    # Two processes publish the same direction, which is no conflict, and one publishes another.
    sources = [make_artifact(tmp_path / str(number), seed=max(1, number)) for number in range(3)]
    writers = [start("write", root, source, ",".join(VERSIONS), go) for source in sources]
    reader = start("read", root, stop)
    go.touch()
    results = [result(writer) for writer in writers]
    stop.touch()
    seen = result(reader)

    store = Store(root)
    assert tuple(map(str, store.version_numbers("formal"))) == VERSIONS
    for version in VERSIONS:
        digest = store.resolve(f"formal@{version}").version_digest
        told = [outcome[version] for outcome in results]
        assert digest in told
        assert set(told) <= {digest, "conflict"}
    assert results[0] == results[1]
    assert all((results[0][version] == "conflict") != (results[2][version] == "conflict") for version in VERSIONS)
    assert store.verify().problems == ()
    assert seen["problems"] == []
    assert [event.version for event in store.log("formal") if event.action == "publish"] == list(VERSIONS)
    assert list(store.paths.temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("operation", "least_steps", "states", "end"),
    [
        ("publish", 30, (["1.0.0"], ["1.0.0", "1.1.0"]), ["1.0.0", "1.1.0"]),
        ("remove", 3, (["1.0.0", "1.0.1"], ["1.0.1"]), ["1.0.1"]),
    ],
)
def test_a_kill_at_any_step_leaves_all_or_nothing(tmp_path, operation, least_steps, states, end):
    store = Store(tmp_path / "store")
    store.publish(make_artifact(tmp_path / "first"))
    make_artifact(tmp_path / "second", seed=2)
    if operation == "remove":
        store.publish(tmp_path / "second", version="1.0.1", aliases=("good",))
    outcomes = result(start("crash", tmp_path, operation))
    assert len(outcomes) >= least_steps
    for outcome in outcomes:
        assert outcome["before"] in states, outcome
        assert outcome["after"] == end, outcome
        assert outcome["aliases"] == {"latest": end[-1], "good": end[-1]}, outcome
        assert outcome["problems"] == [], outcome
        assert outcome["leftovers"] == 0, outcome
        assert not outcome["logged_twice"], outcome
    assert [outcome["before"] for outcome in outcomes if outcome["before"] == states[0]]
    assert [outcome["before"] for outcome in outcomes if outcome["before"] == states[1]]


@pytest.mark.parametrize("function", ["fsync", "rename", "link"])
def test_a_full_disk_leaves_nothing_half_visible(tmp_path, monkeypatch, function):
    source, store = make_artifact(tmp_path / "d"), Store(tmp_path / "store")

    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"os.{function}", full)
        with pytest.raises(OutputError, match="No space left"):
            store.publish(source)
    assert store.names() == ()
    assert not store.paths.temporary.exists() or list(store.paths.temporary.iterdir()) == []
    assert store.publish(source).label == "formal@1.0.0"


def test_where_links_fail_versions_are_whole_all_the_same(tmp_path, monkeypatch):
    def unsupported(*_arguments: object, **_options: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("os.link", unsupported)
    store = Store(tmp_path / "store")
    store.publish(make_artifact(tmp_path / "d"))
    store.publish(tmp_path / "d", version="1.1.0")
    assert store.verify().problems == ()
    assert store.gc(dry_run=False, min_age_s=0).freed_bytes == 0
