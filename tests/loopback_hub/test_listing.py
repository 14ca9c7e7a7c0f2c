from __future__ import annotations

import pytest
from huggingface_hub.errors import HfHubHTTPError

from tests.loopback_hub import LoopbackHub


@pytest.fixture
def filled(hub: LoopbackHub) -> LoopbackHub:
    cards = {
        "acme/formal": "tags: [wsmerge, direction]\nbase_model: org/one\nbase_model_relation: adapter",
        "acme/brief": "tags: [wsmerge, direction]\nbase_model: [org/one, org/two]\ndatasets: org/pairs",
        "guest/formal": "tags: [wsmerge]\nbase_model: org/two\nlicense: mit",
        "guest/plain": "pipeline_tag: text-generation",
    }
    for repo, card in cards.items():
        if repo != "acme/formal":
            hub.make_repo(repo)
        hub.commit(repo, {"README.md": f"---\n{card}\n---\n".encode()})
    return hub


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({}, {"acme/formal", "acme/brief", "guest/formal", "guest/plain"}),
        ({"filter": "wsmerge"}, {"acme/formal", "acme/brief", "guest/formal"}),
        ({"filter": ["wsmerge", "base_model:org/one"]}, {"acme/formal", "acme/brief"}),
        ({"filter": ["base_model:adapter:org/one"]}, {"acme/formal"}),
        ({"filter": ["base_model:merge:org/two"]}, {"acme/brief"}),
        ({"filter": ["license:mit"]}, {"guest/formal"}),
        ({"filter": ["direction", "license:mit"]}, set()),
        ({"search": "FORMAL"}, {"acme/formal", "guest/formal"}),
        ({"author": "guest"}, {"guest/formal", "guest/plain"}),
        ({"author": "guest", "search": "formal", "filter": "wsmerge"}, {"guest/formal"}),
        ({"trained_dataset": "org/pairs"}, {"acme/brief"}),
        ({"pipeline_tag": "text-generation"}, {"guest/plain"}),
    ],
)
def test_filters(filled: LoopbackHub, asked: dict[str, str], found: set[str]) -> None:
    assert {model.id for model in filled.api().list_models(**asked)} == found  # type: ignore[arg-type]  # of the client


def test_what_a_row_tells(filled: LoopbackHub) -> None:
    api = filled.api()
    (plain,) = api.list_models(search="acme/formal")
    assert (plain.sha, plain.card_data, plain.siblings) == (None, None, None)
    assert "base_model:adapter:org/one" in (plain.tags or [])
    (full,) = api.list_models(search="acme/formal", full=True, cardData=True)
    assert full.sha == filled.head("acme/formal")
    assert full.card_data is not None
    assert full.card_data["base_model_relation"] == "adapter"
    (expanded,) = api.list_models(search="acme/formal", expand=["sha", "cardData"])
    assert (expanded.sha, expanded.tags) == (full.sha, None)


def test_limits_pages_and_order(filled: LoopbackHub) -> None:
    api = filled.api()
    filled.site.page_size = 3
    assert len(list(api.list_models())) == 4
    assert len([request for request in filled.requests if request.path == "/api/models"]) == 2
    assert len(list(api.list_models(limit=2))) == 2
    filled.site.repositories["guest/plain"].downloads = 7
    filled.site.repositories["acme/brief"].downloads = 5
    assert [model.id for model in api.list_models(sort="downloads", limit=2)] == ["guest/plain", "acme/brief"]


def test_collections(filled: LoopbackHub) -> None:
    api = filled.api()
    made = api.create_collection(title="Directions of org/one", description="By base")
    assert api.create_collection(title="Directions of org/one", exists_ok=True).slug == made.slug
    with pytest.raises(HfHubHTTPError):
        api.create_collection(title="Directions of org/one")
    for repo in ("acme/formal", "guest/formal"):
        api.add_collection_item(made.slug, repo, "model", note=f"note on {repo}")
    api.add_collection_item(made.slug, "acme/formal", "model", exists_ok=True)
    with pytest.raises(HfHubHTTPError):
        api.add_collection_item(made.slug, "acme/formal", "model")
    held = api.get_collection(made.slug)
    assert [(item.item_id, item.note) for item in held.items] == [
        ("acme/formal", "note on acme/formal"),
        ("guest/formal", "note on guest/formal"),
    ]
    assert [found.slug for found in api.list_collections(owner="acme", item="models/guest/formal")] == [made.slug]
    assert not list(api.list_collections(item="models/acme/brief"))
    api.delete_collection_item(made.slug, held.items[0].item_object_id)
    assert api.update_collection_metadata(made.slug, title="Renamed").title == "Renamed"
    assert [item.item_id for item in api.get_collection(made.slug).items] == ["guest/formal"]
    api.delete_collection(made.slug)
    assert not list(api.list_collections(owner="acme"))
