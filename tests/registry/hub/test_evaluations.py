"""Evaluations beside a version on the Hub: with its push, and later."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.loopback_hub import LoopbackHub
from tests.registry.artifacts import make_artifact
from wsmerge.core.hub.connection import Hub
from wsmerge.errors import DirectionError, UsageError
from wsmerge.registry import open_direction_folder
from wsmerge.registry.artifact_reading import read_manifest
from wsmerge.registry.hub.push import Pushed, PushOptions, push

REPO = "acme/formal"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_artifact(tmp_path / "formal")


def write(path: Path, folder: Path, name: str, value: float, digest: str | None = None) -> Path:
    path.parent.mkdir(exist_ok=True)
    fields = {
        "schema": "wsmerge.evaluation/v1",
        "name": name,
        "version_digest": digest or read_manifest(folder).version_digest,
        "results": {"accuracy": value},
        "of the future": [1],
    }
    path.write_text(json.dumps(fields))
    return path


def pushed(hub: Hub, folder: Path, *evaluations: Path) -> Pushed:
    with open_direction_folder(folder) as direction:
        return push(hub, direction, REPO, PushOptions(evaluations=evaluations))


def card(loopback: LoopbackHub, revision: str = "main") -> str:
    return loopback.files(REPO, revision)["README.md"].decode()


def test_they_go_with_the_version_and_stand_on_its_card(hub, loopback, folder, tmp_path):
    beside = write(folder / "evaluations" / "pairs.json", folder, "pairs", 0.25)
    given = write(tmp_path / "x.json", folder, "held out", 0.75)
    assert pushed(hub, folder, given).outcome == "pushed"
    files = loopback.files(REPO, "v1.0.0")
    assert files["evaluations/pairs.json"] == beside.read_bytes()
    assert files["evaluations/held out.json"] == given.read_bytes()
    for line in ("| pairs | accuracy | 0.25 |", "| held out | accuracy | 0.75 |"):
        assert line in card(loopback, "v1.0.0")
    assert pushed(hub, folder, given).outcome == "present"


def test_they_may_come_later_and_the_tag_stays(hub, loopback, folder, tmp_path):
    first = pushed(hub, folder, write(tmp_path / "one.json", folder, "one", 0.5))
    done = pushed(hub, folder, write(tmp_path / "two.json", folder, "two", 0.125))
    assert (done.outcome, done.commit) == ("evaluated", first.commit)
    assert loopback.tags(REPO) == {"v1.0.0": first.commit}
    assert loopback.head(REPO) != first.commit
    for line in ("| one | accuracy | 0.5 |", "| two | accuracy | 0.125 |"):
        assert line in card(loopback)
    assert "two" not in card(loopback, "v1.0.0")
    whole, before = loopback.files(REPO), loopback.files(REPO, "v1.0.0")
    assert {name for name in whole if whole[name] != before.get(name)} == {"README.md", "evaluations/two.json"}
    assert pushed(hub, folder, tmp_path / "two.json").outcome == "present"


def test_a_card_that_was_edited_on_the_hub_stays(hub, loopback, folder, tmp_path):
    pushed(hub, folder)
    loopback.commit(REPO, {"README.md": b"# ours\n"})
    assert pushed(hub, folder, write(tmp_path / "one.json", folder, "one", 0.5)).outcome == "evaluated"
    assert card(loopback) == "# ours\n"


def test_those_of_another_version_are_refused_before_anything_is_sent(hub, loopback, folder, tmp_path):
    other = write(tmp_path / "other.json", folder, "other", 0.5, digest="0" * 64)
    with pytest.raises(UsageError, match="of another version") as caught:
        pushed(hub, folder, other)
    assert caught.value.details == (f"{other}: is of version digest {'0' * 64}",)
    assert not loopback.requests


def test_a_version_that_is_not_on_main_takes_none(hub, folder, tmp_path):
    pushed(hub, folder)
    pushed(hub, make_artifact(tmp_path / "next", version="1.1.0", seed=2))
    with pytest.raises(UsageError, match="main holds another version"):
        pushed(hub, folder, write(tmp_path / "one.json", folder, "one", 0.5))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "no JSON"),
        ("[]", "file: "),
        ('{"schema": "wsmerge.evaluation/v2"}', "schema: "),
        ('{"schema": "wsmerge.evaluation/v1", "name": "../x", "version_digest": "%s", "results": {}}' % ("0" * 64), "name"),
        ('{"schema": "wsmerge.evaluation/v1", "name": "x", "version_digest": "%s", "results": {"a": NaN}}' % ("0" * 64), "results.a"),
    ],
)  # fmt: skip
def test_what_is_no_evaluation_is_told(hub, folder, tmp_path, text, says):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(DirectionError, match="is no evaluation") as caught:
        pushed(hub, folder, path)
    assert caught.value.where == str(path)
    assert says in caught.value.details[0]


def test_files_of_others_beside_them_are_left_alone(hub, loopback, folder, tmp_path):
    others = {
        "evaluations/harness.json": b'{"results": {"mmlu": 0.5}}',
        "evaluations/list.json": b"[1]",
        "evaluations/deep.json": b"[" * 200_000 + b"]" * 200_000,
        "evaluations/large.json": b'{"samples": "' + b"x" * (2 << 20) + b'"}',
        "evaluations/broken.json": b"{",
    }
    for name, data in others.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    pushed(hub, folder)
    loopback.commit(REPO, others)
    assert pushed(hub, folder, write(tmp_path / "one.json", folder, "one", 0.5)).outcome == "evaluated"
    assert "| one | accuracy | 0.5 |" in card(loopback)
    files = loopback.files(REPO)
    assert {name: files[name] for name in others} == others


def test_a_damaged_one_of_ours_is_told(hub, loopback, folder):
    write(folder / "evaluations" / "bad.json", folder, "bad", 0.5, digest="short")
    with pytest.raises(DirectionError, match="is no evaluation") as caught:
        pushed(hub, folder)
    assert caught.value.where == str(folder / "evaluations" / "bad.json")
    assert not loopback.requests


def test_two_of_one_name_are_refused(hub, loopback, folder, tmp_path):
    first = write(tmp_path / "first.json", folder, "same", 0.5)
    second = write(tmp_path / "second.json", folder, "same", 0.75)
    with pytest.raises(UsageError) as caught:
        pushed(hub, folder, first, second)
    assert caught.value.details == (f"{second}: has the name of another, same",)
    assert not loopback.requests


def test_one_that_is_given_replaces_the_one_beside_the_artifact(hub, loopback, folder, tmp_path):
    write(folder / "evaluations" / "same.json", folder, "same", 0.5)
    given = write(tmp_path / "new.json", folder, "same", 0.75)
    pushed(hub, folder, given)
    assert loopback.files(REPO)["evaluations/same.json"] == given.read_bytes()


@pytest.mark.parametrize(
    ("data", "says"), [(b"[" * 200_000, "JSON"), (b"\xff", "JSON"), (b" " * (1 << 20) + b"{}", "bytes")]
)
def test_what_nobody_could_read_back_is_not_pushed(hub, loopback, folder, tmp_path, data, says):
    path = tmp_path / "bad.json"
    path.write_bytes(data)
    with pytest.raises(DirectionError, match=r"is no evaluation|cannot be read") as caught:
        pushed(hub, folder, path)
    assert says in str(caught.value)
    assert not loopback.requests
