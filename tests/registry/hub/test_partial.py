"""Part of a direction: the chosen tensors, their bytes and no others, as a direction with the whole as its parent."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore

from tests.builders import llama_shapes
from tests.loopback_hub import Fault, LoopbackHub
from tests.registry.artifacts import about
from tests.registry.hub.test_remote import assert_same, folder_files, put
from tests.sources import MemoryDirection, random_direction
from wsmerge.core.hub.connection import Hub
from wsmerge.core.layers import layer_position
from wsmerge.errors import ConflictError, HubError, TensorFileError, UsageError, VerificationError
from wsmerge.registry import Store, write_direction
from wsmerge.registry.convert import convert_direction
from wsmerge.registry.hub.partial import parse_layers, partial_direction, partial_name, pull_part
from wsmerge.registry.references import HubReference, check_name
from wsmerge.registry.verification import verify_store

REPO = "acme/formal"
LAYERS = 30
REFERENCE = HubReference(REPO, "v1.0.0")
WEIGHTS = r"\.safetensors|large-files"
HEADER_BYTES = 120_000  # manifest and safetensors header of 30 layers, refs and redirects


def whole(
    loopback: LoopbackHub, folder: Path, *, rank: int | None, hidden: int = 160, shard_bytes: int = 5_000_000_000
) -> MemoryDirection:
    shapes = llama_shapes(layers=LAYERS, hidden=hidden, inner=2 * hidden)
    source = random_direction(shapes, rank=rank)
    with write_direction(folder, source, about(description="All of it"), max_shard_bytes=shard_bytes):
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
    put(loopback, files)
    loopback.requests.clear()
    return source


def chosen(source: MemoryDirection, layers: set[int], module: str = "") -> MemoryDirection:
    def fits(name: str) -> bool:
        position = layer_position(name)
        return position is not None and position.layer in layers and module in name

    return MemoryDirection({name: delta for name, delta in source.deltas.items() if fits(name)}, source.base)


def layer_bytes(part: MemoryDirection) -> int:
    total = 0
    for name, shape in part.shapes.items():
        rank = part.rank(name)
        total += 4 * (int(np.prod(shape)) if rank is None else rank * sum(shape))
    return total


@pytest.mark.parametrize(("rank", "shard_bytes"), [(None, 5_000_000_000), (None, 4_000_000), (64, 5_000_000_000)])
def test_one_layer_of_thirty_reads_that_layer_and_headers(
    loopback: LoopbackHub, hub: Hub, store: Store, tmp_path: Path, rank: int | None, shard_bytes: int
) -> None:
    source = whole(loopback, tmp_path / "it", rank=rank, shard_bytes=shard_bytes)
    part = pull_part(hub, REFERENCE, store, layers="11")
    expected = chosen(source, {11})
    with store.open(part.entry.label) as direction:
        assert_same(direction, expected)
    sent = sum(request.bytes_sent for request in loopback.requests)
    assert part.bytes_read <= sent
    assert sent <= 1.1 * layer_bytes(expected) + HEADER_BYTES
    weights = sum(request.bytes_sent for request in loopback.requests if "large-files" in request.path)
    headers = 25 * sum(len(name) for name in source.shapes)
    assert layer_bytes(expected) < weights <= 1.02 * layer_bytes(expected) + headers
    assert part.whole_bytes > 20 * part.bytes_read


def test_neighbours_are_read_together(loopback: LoopbackHub, hub: Hub, store: Store, tmp_path: Path) -> None:
    whole(loopback, tmp_path / "it", rank=None)
    pull_part(hub, REFERENCE, store, layers="11", modules=["self_attn"])
    ranges = [request.range for request in loopback.requests if "large-files" in request.path]
    assert len(ranges) <= 3  # the length of the header, the header, and one run of four tensors


def test_the_part_says_whose_part_it_is(loopback: LoopbackHub, hub: Hub, store: Store, tmp_path: Path) -> None:
    source = whole(loopback, tmp_path / "it", rank=4, hidden=16)
    seen: list[tuple[int, int]] = []
    part = pull_part(hub, REFERENCE, store, layers="0,3,8-15", modules=["mlp.up"], progress=lambda *at: seen.append(at))
    assert part.entry.label == "formal-layers-0_3_8-15-mlp.up@1.0.0"
    expected = chosen(source, {0, 3, *range(8, 16)}, "mlp.up")
    with store.open(part.entry.label) as direction:
        assert_same(direction, expected)
        manifest = direction.manifest
    assert {stack: list(layers) for stack, layers in manifest.layers.items()} == {"model.layers": [0, 3, *range(8, 16)]}
    (parent,) = manifest.parents
    assert parent.reference == f"hub:acme/formal@{loopback.head(REPO)}"
    assert parent.coefficient == 1.0
    assert manifest.description == "All of it"
    assert part.commit == loopback.head(REPO)
    assert seen[-1] == (layer_bytes(expected), layer_bytes(expected))
    assert not verify_store(store).problems
    again = pull_part(hub, REFERENCE, store, layers="0,3,8-15", modules=["mlp.up"])
    assert again.entry.version_digest == part.entry.version_digest
    named = pull_part(hub, REFERENCE, store, layers="0,3,8-15", modules=["mlp.up"], name="upper")
    assert named.entry.label == "upper@1.0.0"
    assert named.entry.content_digest == part.entry.content_digest


@pytest.mark.parametrize(
    "fault",
    [
        Fault("cut", path=WEIGHTS, after_bytes=100),
        Fault("status", path=WEIGHTS, status=429),
        Fault("status", path=WEIGHTS, status=503),
        Fault("status", path="large-files", status=403, skip=2),
    ],
    ids=["cut", "429", "503", "expired"],
)
def test_faults_that_pass_change_nothing(
    loopback: LoopbackHub, hub: Hub, store: Store, tmp_path: Path, fault: Fault
) -> None:
    source = whole(loopback, tmp_path / "it", rank=None, hidden=32)
    loopback.faults.add(fault)
    part = pull_part(hub, REFERENCE, store, layers="2-3")
    assert loopback.faults.fired
    with store.open(part.entry.label) as direction:
        assert_same(direction, chosen(source, {2, 3}))


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault("wrong_byte", path=WEIGHTS, after_bytes=5000, skip=3), VerificationError),
        (Fault("status", path="large-files", status=503, times=None, skip=2), HubError),
    ],
    ids=["wrong byte", "lost"],
)
def test_what_fails_leaves_nothing(
    loopback: LoopbackHub, hub: Hub, store: Store, tmp_path: Path, fault: Fault, error: type[Exception]
) -> None:
    whole(loopback, tmp_path / "it", rank=None, hidden=64)
    loopback.faults.add(fault)
    with pytest.raises(error):
        pull_part(hub, REFERENCE, store, layers="2-3")
    assert not store.names()
    assert loopback.faults.fired


def test_the_same_part_of_another_commit_is_the_same_version(
    loopback: LoopbackHub, hub: Hub, store: Store, tmp_path: Path
) -> None:
    """Main moves: a card is edited, then another layer changes, then this one, which is a conflict."""
    deltas = {f"model.layers.{layer}.mlp.up_proj.weight": (8, 8) for layer in range(2)}

    def commit(name: str, seeds: tuple[int, int]) -> HubReference:
        parts = [
            random_direction({tensor: shape}, seed=seed)
            for (tensor, shape), seed in zip(deltas.items(), seeds, strict=True)
        ]
        both = MemoryDirection(parts[0].deltas | parts[1].deltas, parts[0].base)  # type: ignore[operator]  # dictionaries
        with write_direction(tmp_path / name, both, about()):
            return HubReference(REPO, put(loopback, folder_files(tmp_path / name), tag=None))

    first = pull_part(hub, commit("first", (1, 2)), store, layers="1")
    edited = HubReference(REPO, put(loopback, {"README.md": b"# Edited"}, tag=None))
    again = pull_part(hub, edited, store, layers="1")
    assert (again.entry, again.commit) == (first.entry, edited.revision)
    other = commit("other", (3, 2))
    assert pull_part(hub, other, store, layers="1").entry == first.entry
    with pytest.raises(ConflictError):
        pull_part(hub, commit("this", (3, 4)), store, layers="1")
    assert store.list() == (first.entry,)


def test_nothing_chosen_is_told_with_what_there_is(
    loopback: LoopbackHub, hub: Hub, store: Store, tmp_path: Path
) -> None:
    whole(loopback, tmp_path / "it", rank=4, hidden=16)
    with pytest.raises(UsageError, match="no tensor is in these layers and modules") as caught:
        pull_part(hub, REFERENCE, store, layers="30-40")
    assert "model.layers: 0-29" in str(caught.value.hint)
    assert "mlp.up_proj" in str(caught.value.hint)


def test_without_layers_modules_choose_among_all_tensors(tmp_path: Path) -> None:
    source = random_direction(llama_shapes(layers=3))
    with write_direction(tmp_path / "it", source, about()) as direction:
        assert set(partial_direction(direction, modules=["embed", "up_proj"]).shapes) == {
            name for name in source.shapes if "embed" in name or "up_proj" in name
        }
        assert set(partial_direction(direction).shapes) == set(source.shapes)
        assert "model.embed_tokens.weight" not in partial_direction(direction, layers="0-2").shapes


@pytest.mark.parametrize(
    ("text", "layers"), [("8", {8}), ("8-10", {8, 9, 10}), ("0,3, 8-9", {0, 3, 8, 9}), ("5-5", {5})]
)
def test_layers_are_ranges_that_hold_their_ends(text: str, layers: set[int]) -> None:
    assert parse_layers(text) == layers


@pytest.mark.parametrize("text", ["", "a", "8-", "-8", "9-8", "1,,2", "8:15", "1.5"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no range of layers"):
        parse_layers(text)


@pytest.mark.parametrize(
    ("repo", "layers", "modules", "name"),
    [
        ("acme/Formal", "8-15", ["mlp"], "formal-layers-8-15-mlp"),
        ("acme/formal", None, ["self_attn.q_proj"], "formal-self_attn.q_proj"),
        ("acme/formal.", "0,2", [], "formal.-layers-0_2"),
        ("acme/x", ",".join(map(str, range(60))), [], None),
        ("acme/x", "1", ["a/b c--d..e."], "x-layers-1-a-b-c-d.e"),
    ],
)
def test_default_names_are_names(repo: str, layers: str | None, modules: list[str], name: str | None) -> None:
    made = partial_name(repo, layers, modules)
    assert check_name(made) == made
    assert name is None or made == name


def exchanged(folder: Path, name: str) -> dict[str, bytes]:
    """The files of the zarr artifact in `folder`, one array of it written again with other values and good checksums."""
    group: Any = zarr.open_group(LocalStore(folder / "direction.zarr"), mode="r+")
    group[name][...] = np.asarray(group[name]) + np.float32(1)
    return folder_files(folder)


@pytest.mark.parametrize("how", ["exchanged", "changed on the way"])
def test_a_zarr_payload_that_is_not_the_manifests_is_refused(
    loopback: LoopbackHub, hub: Hub, store: Store, tmp_path: Path, how: str
) -> None:
    source = random_direction(llama_shapes(layers=3, hidden=16, inner=32), rank=None)
    with write_direction(tmp_path / "it", source, about()) as made:
        convert_direction(made, tmp_path / "zarr", "zarr").close()
    name = "model.layers.1.mlp.up_proj.weight"
    if how == "exchanged":
        put(loopback, exchanged(tmp_path / "zarr", f"{name}.delta"))
    else:
        put(loopback, folder_files(tmp_path / "zarr"))
        loopback.faults.add(Fault("wrong_byte", path=rf"{name}\.delta/c", times=None))
    with pytest.raises((VerificationError, TensorFileError), match=re.escape(name)):
        pull_part(hub, REFERENCE, store, layers="1")
    assert store.known_names() == ()
    part = pull_part(hub, REFERENCE, store, layers="0")  # of which no byte is wrong
    with store.open(part.entry.label) as direction:
        assert_same(direction, chosen(source, {0}))


def test_of_a_zarr_payload_the_chosen_arrays_alone_are_read(
    loopback: LoopbackHub, hub: Hub, store: Store, tmp_path: Path
) -> None:
    source = random_direction(llama_shapes(layers=6, hidden=64, inner=128), rank=None)
    with write_direction(tmp_path / "it", source, about()) as made:
        convert_direction(made, tmp_path / "zarr", "zarr").close()
    put(loopback, folder_files(tmp_path / "zarr"))
    loopback.requests.clear()
    pull_part(hub, REFERENCE, store, layers="2")
    read = {request.path for request in loopback.requests if ".delta/c" in request.path}
    assert read
    assert all(".layers.2." in path for path in read)
