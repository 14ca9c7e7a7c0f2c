"""Pushing over HTTP with the real client: what a repository holds afterwards, and who is told what."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.hubs import connection
from tests.loopback_hub import Fault, LoopbackHub
from tests.registry.artifacts import SHAPES, about, make_artifact
from tests.sources import random_direction
from wsmerge.core.hub.connection import Hub
from wsmerge.errors import BadReferenceError, ConflictError, HubError, UsageError, VerificationError, WsmergeError
from wsmerge.registry import open_direction_folder, write_direction
from wsmerge.registry.hub.push import Pushed, PushOptions, push
from wsmerge.registry.hub.tagging import drop_branch, ensure_branch

REPO = "acme/formal"


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Path]:
    """An artifact folder of `formal` for a version and a seed."""

    def make(version: str = "1.0.0", seed: int = 1) -> Path:
        folder = tmp_path / f"{version}-{seed}"
        return folder if folder.exists() else make_artifact(folder, version=version, seed=seed)

    return make


def push_folder(hub: Hub, folder: Path, repo: str = REPO, **options: object) -> Pushed:
    with open_direction_folder(folder) as direction:
        return push(hub, direction, repo, PushOptions(**options))  # type: ignore[arg-type]  # as the caller names them


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_version_is_one_commit_and_one_tag(hub, loopback, made):
    folder = made()
    pushed = push_folder(hub, folder)
    assert (pushed.outcome, pushed.branch, pushed.tag) == ("pushed", "main", "v1.0.0")
    assert loopback.tags(REPO) == {"v1.0.0": pushed.commit}
    assert loopback.head(REPO) == pushed.commit
    files = loopback.files(REPO, "v1.0.0")
    written = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert files.keys() == {".gitattributes", *written}
    for name in written.keys() - {"README.md"}:
        assert files[name] == written[name]
    assert digest(files["direction.json"]) == pushed.version_digest
    commits = hub.api.list_repo_commits(REPO)
    assert commits[0].title == "formal@1.0.0"
    assert f"version digest {pushed.version_digest}" in commits[0].message


def test_the_card_is_for_the_repository_and_an_edited_one_stays(hub, loopback, made):
    push_folder(hub, made())
    card = loopback.files(REPO)["README.md"].decode()
    assert f"wsmerge pull {REPO}@1.0.0" in card
    matter = yaml.safe_load(card.split("---")[1])
    assert (matter["library_name"], matter["base_model"]) == ("peft", "acme/base")
    edited = made("1.1.0")
    (edited / "README.md").write_text("---\ntags: [mine]\n---\n# My own words\n")
    push_folder(hub, edited)
    assert loopback.files(REPO)["README.md"] == (edited / "README.md").read_bytes()


def test_pushing_again_is_nothing(hub, loopback, made):
    first = push_folder(hub, made())
    loopback.requests.clear()
    again = push_folder(hub, made())
    assert (again.outcome, again.commit, again.branch) == ("present", first.commit, None)
    assert {request.method for request in loopback.requests} == {"GET"}


def test_a_version_with_another_digest_is_refused(hub, loopback, made):
    first = push_folder(hub, made())
    with pytest.raises(ConflictError, match=r"version 1\.0\.0 is there with digest") as refused:
        push_folder(hub, made(seed=2))
    assert first.version_digest in refused.value.message
    assert "1.0.1" in str(refused.value.hint)
    assert loopback.head(REPO) == first.commit


def test_a_commit_without_its_tag_gets_it(hub, loopback, made):
    first = push_folder(hub, made())
    hub.api.delete_tag(REPO, tag="v1.0.0")
    # Somebody touched another file meanwhile: the direction at the head is still this one.
    head = loopback.commit(REPO, {"notes.txt": b"hello"})
    again = push_folder(hub, made())
    assert (again.outcome, again.commit) == ("tagged", head)
    assert loopback.tags(REPO) == {"v1.0.0": head}
    assert again.version_digest == first.version_digest


def test_another_direction_that_is_about_to_be_this_version_is_waited_for(hub, loopback, made):
    push_folder(hub, made())
    hub.api.delete_tag(REPO, tag="v1.0.0")
    with pytest.raises(ConflictError, match=r"about to become version 1\.0\.0"):
        push_folder(hub, made(seed=2))
    assert loopback.tags(REPO) == {}


def test_a_lower_version_leaves_main_alone(hub, loopback, made):
    first = push_folder(hub, made("1.0.0"))
    highest = push_folder(hub, made("1.1.0", seed=2))
    lower = push_folder(hub, made("1.0.1", seed=3))
    assert (lower.outcome, lower.branch) == ("pushed", "version/1.0.1")
    assert loopback.head(REPO) == highest.commit
    assert loopback.tags(REPO) == {"v1.0.0": first.commit, "v1.1.0": highest.commit, "v1.0.1": lower.commit}
    assert [branch.name for branch in hub.api.list_repo_refs(REPO).branches] == ["main"]
    assert digest(loopback.files(REPO, "v1.0.1")["direction.json"]) == lower.version_digest
    parents = hub.api.list_repo_commits(REPO, revision="v1.0.1")
    assert parents[1].commit_id == first.commit
    assert push_folder(hub, made("1.0.1", seed=3)).outcome == "present"


def test_a_pre_release_leaves_a_release_alone(hub, loopback, made):
    candidate = push_folder(hub, made("1.0.0-rc.1"))
    assert loopback.head(REPO) == candidate.commit
    release = push_folder(hub, made("1.0.0", seed=2))
    assert loopback.head(REPO) == release.commit
    assert push_folder(hub, made("1.1.0-rc.1", seed=3)).branch == "version/1.1.0-rc.1"
    assert loopback.head(REPO) == release.commit


def test_files_of_another_payload_go_and_side_files_stay(hub, loopback, made, tmp_path):
    push_folder(hub, made())
    loopback.commit(REPO, {"evaluations/a.json": b"{}", "direction.json.sig": b"s"})
    dense = random_direction(SHAPES, rank=None)
    with write_direction(tmp_path / "dense", dense, about(version="2.0.0")) as direction:
        push(hub, direction, REPO)
    files = loopback.files(REPO)
    assert "adapter_model.safetensors" in loopback.files(REPO, "v1.0.0")
    assert files.keys() == {
        ".gitattributes",
        "README.md",
        "direction.json",
        "direction.json.sig",
        "direction.safetensors",
        "evaluations/a.json",
        "meta.yaml",
    }
    assert b"library_name: wsmerge" in files["README.md"]


def test_aliases_move(hub, loopback, made):
    first = push_folder(hub, made(), aliases=("good", "calm"))
    second = push_folder(hub, made("1.1.0", seed=2), aliases=("good",))
    tags = loopback.tags(REPO)
    assert (tags["good"], tags["calm"]) == (second.commit, first.commit)
    push_folder(hub, made(), aliases=("good",))
    assert loopback.tags(REPO)["good"] == first.commit


@pytest.mark.parametrize("alias", ["main", "v1.0.0"])
def test_an_alias_that_means_something_else_is_refused(hub, loopback, made, alias):
    with pytest.raises(UsageError, match="is no alias on the Hub"):
        push_folder(hub, made(), aliases=(alias,))
    assert loopback.requests == []


def test_the_repository_is_made_private_if_asked(hub, loopback, made, monkeypatch):
    push_folder(hub, made(), private=True)
    assert hub.api.model_info(REPO).private
    monkeypatch.delenv("HF_TOKEN")
    stranger = Hub(endpoint=loopback.endpoint)
    with pytest.raises(HubError):
        push_folder(stranger, made("1.1.0", seed=2))


def test_what_is_no_artifact_any_more_is_not_pushed(hub, loopback, made):
    folder = made()
    payload = folder / "adapter_model.safetensors"
    data = bytearray(payload.read_bytes())
    data[-1] ^= 1
    payload.write_bytes(data)
    with pytest.raises(VerificationError, match="not what the manifest says"):
        push_folder(hub, folder)
    assert loopback.requests == []


def test_offline_and_bad_names_are_refused_at_once(hub, loopback, made, monkeypatch):
    with pytest.raises(BadReferenceError):
        push_folder(hub, made(), "formal")
    with pytest.raises(BadReferenceError, match="under its own number"):
        push_folder(hub, made(), f"{REPO}@1.0.0")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        push_folder(hub, made())
    assert loopback.requests == []


def test_another_writer_between_reading_and_committing_is_told(hub, loopback, made, monkeypatch):
    """The head moves after it was read; the commit's parent is stale and nothing of it is left."""
    push_folder(hub, made())
    api = hub.api
    before = api.create_commit

    def create_commit(*arguments: object, **options: object) -> object:
        loopback.commit(REPO, {"direction.json": b"other"})
        return before(*arguments, **options)

    monkeypatch.setattr(api, "create_commit", create_commit)
    with pytest.raises(ConflictError, match="another writer was first: main was at"):
        push_folder(hub, made("1.1.0", seed=2))
    assert set(loopback.tags(REPO)) == {"v1.0.0"}
    assert loopback.files(REPO)["direction.json"] == b"other"


def test_a_tag_that_another_writer_gave_meanwhile_is_told(hub, loopback, made, monkeypatch):
    api = hub.api
    before = api.create_tag

    def create_tag(*arguments: object, **options: object) -> object:
        loopback.move_tag(REPO, "v1.0.0", loopback.commit(REPO, {"direction.json": b"other"}))
        return before(*arguments, **options)

    monkeypatch.setattr(api, "create_tag", create_tag)
    with pytest.raises(ConflictError, match=r"another writer was first: v1\.0\.0 is commit"):
        push_folder(hub, made())
    assert loopback.files(REPO, "v1.0.0")["direction.json"] == b"other"


def test_a_stale_head_is_no_overwritten_head(hub, loopback, made):
    push_folder(hub, made())
    head = loopback.commit(REPO, {"direction.json": b"other"})
    loopback.faults.add(Fault("stale_head", path="/revision/main"))
    with pytest.raises(ConflictError, match="another writer was first"):
        push_folder(hub, made("1.1.0", seed=2))
    assert loopback.head(REPO) == head


def test_of_two_writers_of_one_version_one_wins(loopback: LoopbackHub, made):
    """Every round ends with one direction under the tag, and the other writer told."""
    for round_ in range(4):
        repo = f"acme/race-{round_}"
        loopback.make_repo(repo)
        results = race(loopback, repo, [made("1.0.0", 1), made("1.0.0", 2)])
        won = [result for result in results if isinstance(result, Pushed)]
        assert len(won) == 1, results
        assert [isinstance(result, ConflictError) for result in results if result is not won[0]] == [True]
        assert digest(loopback.files(repo, "v1.0.0")["direction.json"]) == won[0].version_digest
        assert loopback.tags(repo)["v1.0.0"] == won[0].commit


def test_two_writers_of_the_same_direction_agree(loopback: LoopbackHub, made):
    results = race(loopback, REPO, [made("1.0.0", 1), made("1.0.0", 1)])
    commits = [result.commit if isinstance(result, Pushed) else repr(result) for result in results]
    assert commits == [loopback.head(REPO)] * 2
    assert loopback.tags(REPO) == {"v1.0.0": loopback.head(REPO)}


def race(loopback: LoopbackHub, repo: str, folders: list[Path]) -> list[Pushed | Exception]:
    barrier = threading.Barrier(len(folders))
    results: list[Pushed | Exception] = []

    def write(folder: Path) -> None:
        barrier.wait()
        try:
            results.append(push_folder(connection(loopback), folder, repo))
        except (ConflictError, HubError) as error:
            results.append(error)

    threads = [threading.Thread(target=write, args=(folder,)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_a_side_branch_that_another_process_removed_is_gone(hub, loopback, made):
    push_folder(hub, made("1.1.0"))
    head = loopback.head(REPO)
    ensure_branch(hub, REPO, "version/1.0.0", head)
    for _ in range(2):
        drop_branch(hub, REPO, "version/1.0.0")
    assert [branch.name for branch in hub.api.list_repo_refs(REPO).branches] == ["main"]
    with pytest.raises(HubError, match="no such repository"):
        drop_branch(hub, "acme/nothing", "version/1.0.0")


def test_of_a_direction_that_another_writer_tagged_its_commit_is_told(hub, loopback, made, monkeypatch):
    """The same direction at two commits: what is told, and what the aliases point to, is what the tag points to."""
    folder = made()
    create_tag = type(hub.api).create_tag
    theirs: list[str] = []

    def tagged_meanwhile(api: object, repo: str, *, tag: str, **options: object) -> None:
        if not theirs:
            theirs.append(loopback.commit(REPO, {"notes.txt": b"theirs"}))
            loopback.move_tag(REPO, "v1.0.0", theirs[0])
        create_tag(api, repo, tag=tag, **options)

    monkeypatch.setattr(type(hub.api), "create_tag", tagged_meanwhile)
    done = push_folder(hub, folder, aliases=("stable",))
    assert done.commit == theirs[0]
    assert loopback.tags(REPO) == {"v1.0.0": theirs[0], "stable": theirs[0]}


@pytest.mark.parametrize("name", ["README.md", "adapter_config.json", "adapter_model.safetensors"])
def test_links_out_of_the_folder_are_never_sent(hub, loopback, made, tmp_path, name):
    private = (made() / name).rename(tmp_path / "private")
    (made() / name).symlink_to(private)
    with pytest.raises(WsmergeError, match="link out of its folder"):
        push_folder(hub, made())
    assert REPO not in loopback.site.repositories or not loopback.tags(REPO)
