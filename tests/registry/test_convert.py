"""From one payload to the other and back: nothing changes but the files that hold the tensors."""

from __future__ import annotations

import pytest

import wsmerge
from tests.registry.artifacts import SHAPES, about, make_artifact
from tests.registry.payloads.zarr_artifacts import DENSE, flip, make_pair, mixed_source, small_chunks
from tests.sources import MemoryDirection, identity, random_direction
from wsmerge.api.convert import convert
from wsmerge.errors import OutputError, UsageError, VerificationError
from wsmerge.registry import Store, compare_directions, open_direction_folder, verify_direction, write_direction
from wsmerge.registry.convert import convert_direction, payload_bytes
from wsmerge.registry.files import FolderFiles

LAYOUTS = {"h.0.attn.c_attn.weight": "transposed", "wte.weight": "embedding", "h.0.up.weight": "linear"}


def sources():
    shapes = {"h.0.attn.c_attn.weight": (4, 6), "wte.weight": (10, 4), "h.0.up.weight": (5, 4)}
    tied = random_direction({"model.embed_tokens.weight": (10, 4)})
    tied.base = identity({"model.embed_tokens.weight": (10, 4)}, tied={"lm_head.weight": "model.embed_tokens.weight"})
    return {
        "adapter": (random_direction(SHAPES), {}),
        "layouts": (random_direction(shapes, rank=2), {"layouts": LAYOUTS}),
        "tied": (tied, {"layouts": {"model.embed_tokens.weight": "embedding"}}),
        "mixed": (mixed_source(), {}),
    }


@pytest.mark.parametrize("kind", ["adapter", "layouts", "tied", "mixed"])
def test_there_and_back_gives_the_same_files(tmp_path, monkeypatch, kind):
    small_chunks(monkeypatch)
    source, more = sources()[kind]
    plain, packed = make_pair(tmp_path, source, **more)
    with plain, packed, convert_direction(packed, tmp_path / "back", "safetensors") as back:
        assert plain.digest == packed.digest == back.digest
        assert back.payload.adapter == (kind in ("adapter", "layouts"))
        assert not packed.payload.adapter
        names = FolderFiles(plain.path).names()
        assert FolderFiles(back.path).names() == names
        for name in names:
            assert (back.path / name).read_bytes() == (plain.path / name).read_bytes(), name
        with convert_direction(packed, tmp_path / "again", "zarr") as again:
            for name in FolderFiles(packed.path).names():
                assert (again.path / name).read_bytes() == (packed.path / name).read_bytes(), name


def test_it_is_the_same_version_in_any_store(tmp_path):
    store, other = Store(tmp_path / "store"), Store(tmp_path / "other")
    entry = store.publish(make_artifact(tmp_path / "plain"), aliases=("good",))
    with convert("formal@good", "zarr", tmp_path / "zarr", store=store) as packed:
        again = other.publish(packed)
        assert (again.label, again.version_digest) == (entry.label, entry.version_digest)
        assert store.publish(packed).version_digest == entry.version_digest
        with store.open("formal") as kept:
            assert kept.payload.adapter  # a version never changes, nor do its files
    assert other.verify().problems == ()
    with other.open("formal") as stored:
        assert not stored.payload.adapter
        assert stored.digest == entry.version_digest


def test_the_card_says_how_the_artifact_is_loaded(tmp_path):
    plain, packed = make_pair(tmp_path, random_direction(SHAPES))
    with plain, packed:
        assert "library_name: peft" in (plain.path / "README.md").read_text()
        assert "library_name: wsmerge" in (packed.path / "README.md").read_text()
        entry = Store(tmp_path / "store").publish(packed, name="casual")
    with Store(tmp_path / "store").open(entry.label) as renamed:
        assert "library_name: wsmerge" in (renamed.path / "README.md").read_text()


@pytest.mark.parametrize("payload", ["zarr", "safetensors"])
@pytest.mark.parametrize("kind", ["dense", "low-rank"])
def test_damaged_tensors_are_refused_by_name_and_nothing_is_left(tmp_path, payload, kind):
    source = mixed_source() if kind == "dense" else random_direction(SHAPES)
    deltas = {DENSE: source.deltas[DENSE]} if kind == "dense" else source.deltas
    source = MemoryDirection(deltas, identity({name: delta.shape for name, delta in deltas.items()}))
    for direction in make_pair(tmp_path, source):
        direction.close()
    file = "direction.safetensors" if kind == "dense" else "adapter_model.safetensors"
    flip(tmp_path / "plain" / file, -5)
    name = DENSE if kind == "dense" else max(SHAPES)
    with (
        open_direction_folder(tmp_path / "plain") as direction,
        pytest.raises(VerificationError) as caught,
    ):
        convert_direction(direction, tmp_path / "out", payload)
    assert name in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain", "zarr"]


def test_what_is_there_is_not_written_over(tmp_path):
    folder = make_artifact(tmp_path / "plain")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("keep")
    with pytest.raises(OutputError, match="no empty folder"):
        convert(folder, "zarr", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


@pytest.mark.parametrize("payload", ["gguf", "", "ZARR"])
def test_other_payloads_are_refused(tmp_path, payload):
    with pytest.raises(UsageError, match="one of safetensors, zarr"):
        convert(make_artifact(tmp_path / "plain"), payload, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_large_payloads_are_sharded(tmp_path, monkeypatch):
    small_chunks(monkeypatch)
    plain, packed = make_pair(tmp_path)
    with plain, packed, convert_direction(packed, tmp_path / "back", "safetensors", max_shard_bytes=2000) as back:
        assert (back.path / "direction.safetensors.index.json").exists()
        assert verify_direction(back) == ()
        assert back.digest == plain.digest


def test_the_bytes_of_a_payload_are_those_of_its_files(tmp_path):
    plain, packed = make_pair(tmp_path)
    with plain, packed:
        assert payload_bytes(plain.files) == (plain.path / "direction.safetensors").stat().st_size
        held = [path for path in (packed.path / "direction.zarr").rglob("*") if path.is_file()]
        assert payload_bytes(packed.files) == sum(path.stat().st_size for path in held)


def test_a_zarr_direction_steers_composes_and_compares(tmp_path):
    """What takes a direction takes one with either payload."""
    plain, packed = make_pair(tmp_path)
    with plain, packed, wsmerge.compose("twice", {str(packed.path): 2.0}, to=tmp_path / "two") as twice:
        for name in plain.shapes:
            assert (twice.delta(name).dense() == 2 * plain.delta(name).dense()).all()
    with open_direction_folder(tmp_path / "plain") as left, open_direction_folder(tmp_path / "zarr") as right:
        found = compare_directions(left, right)
    assert not found.fields
    assert not found.changed
    assert found.unchanged == len(left.shapes)


def test_a_sharded_safetensors_payload_becomes_zarr(tmp_path):
    with (
        write_direction(tmp_path / "many", mixed_source(), about(), max_shard_bytes=600) as many,
        convert_direction(many, tmp_path / "zarr", "zarr") as packed,
    ):
        assert packed.digest == many.digest
        assert verify_direction(packed) == ()
