from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from huggingface_hub import CommitOperationAdd
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from tests.loopback_hub import LoopbackHub

Cases = tuple[tuple[str | Literal[False], int], ...]
# Another user, and nobody: the status that each is answered.
HIDDEN: Cases = (("hf_two", 404), (False, 401))
FORBIDDEN: Cases = (("hf_two", 403), (False, 401))


@pytest.fixture
def two_users(tmp_path: Path) -> Iterator[LoopbackHub]:
    with LoopbackHub(tmp_path / "hub", tokens={"hf_one": "acme", "hf_two": "guest"}) as hub:
        yield hub


def test_who_asks(two_users: LoopbackHub) -> None:
    assert two_users.api().whoami()["name"] == "acme"
    assert two_users.api("hf_two").whoami()["name"] == "guest"
    with pytest.raises(HfHubHTTPError) as caught:
        two_users.api("hf_unknown").whoami()
    assert caught.value.response.status_code == 401


def test_a_private_repository_is_there_for_its_owner_only(two_users: LoopbackHub, tmp_path: Path) -> None:
    hub = two_users
    hub.api().create_repo("acme/secret", private=True)
    hub.commit("acme/secret", {"a.txt": b"1"})
    assert hub.api().model_info("acme/secret").private
    for token, status in HIDDEN:
        with pytest.raises(RepositoryNotFoundError) as caught:
            hub.api(token).model_info("acme/secret")
        assert caught.value.response is not None
        assert caught.value.response.status_code == status
        with pytest.raises(RepositoryNotFoundError):
            hub.api(token).hf_hub_download("acme/secret", "a.txt", cache_dir=tmp_path / "cache")
        assert not list(hub.api(token).list_models())
    assert [model.id for model in hub.api().list_models()] == ["acme/secret"]


def test_a_gated_repository_is_seen_by_all_and_read_by_the_granted(two_users: LoopbackHub, tmp_path: Path) -> None:
    hub = two_users
    hub.make_repo("acme/gated", gated=True)
    hub.commit("acme/gated", {"a.safetensors": b"1"})
    for token, status in FORBIDDEN:
        assert hub.api(token).model_info("acme/gated").gated == "manual"
        with pytest.raises(GatedRepoError) as caught:
            hub.api(token).hf_hub_download("acme/gated", "a.safetensors", cache_dir=tmp_path / "cache")
        assert caught.value.response.status_code == status
        with pytest.raises(GatedRepoError):
            hub.api(token).auth_check("acme/gated")
    hub.grant("acme/gated", "guest")
    path = hub.api("hf_two").hf_hub_download("acme/gated", "a.safetensors", cache_dir=tmp_path / "cache")
    assert Path(path).read_bytes() == b"1"


def test_only_the_owner_writes(two_users: LoopbackHub) -> None:
    hub = two_users
    hub.make_repo("acme/formal")
    head = hub.head("acme/formal")
    for token, status in FORBIDDEN:
        api = hub.api(token)
        for write in (
            lambda api=api: api.create_repo("acme/other"),
            lambda api=api: api.create_tag("acme/formal", tag="v1"),
            lambda api=api: api.create_commit(
                "acme/formal", [CommitOperationAdd("a", b"1")], commit_message="no", parent_commit=head
            ),
        ):
            with pytest.raises(HfHubHTTPError) as caught:
                write()
            assert caught.value.response.status_code == status
    assert hub.head("acme/formal") == head
    assert not hub.tags("acme/formal")
    assert list(hub.site.repositories) == ["acme/formal"]


def test_a_large_file_needs_the_signature_of_its_url(two_users: LoopbackHub) -> None:
    hub = two_users
    hub.make_repo("acme/secret", private=True)
    hub.commit("acme/secret", {"a.safetensors": b"secret"})
    found = hub.ask("/acme/secret/resolve/main/a.safetensors")
    assert found.content == b"secret"
    assert hub.ask(str(found.url), token=False).content == b"secret"
    assert hub.ask(f"{str(found.url)[:-1]}x", token=False).status_code == 403
