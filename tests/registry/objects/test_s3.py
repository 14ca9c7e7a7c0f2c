"""The registry on S3 over HTTP: obstore's S3 client against moto's server on the loopback."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from tests.registry.objects import s3_server
from tests.sources import random_direction
from wsmerge.errors import StoreError
from wsmerge.registry import About, write_direction
from wsmerge.registry.objects import ObstoreObjects
from wsmerge.registry.selecting import open_registry
from wsmerge.registry.testing import ObjectsConformance, RegistryConformance, sample_artifact

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")
    for package in ("obstore", "moto")
]
_numbers = itertools.count()


@pytest.fixture(scope="module")
def s3() -> Iterator[s3_server.LoopbackS3]:
    with s3_server.running() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


def fresh() -> str:
    return f"s3://{s3_server.BUCKET}/registries/{next(_numbers)}"


@pytest.mark.usefixtures("s3")
class TestS3(RegistryConformance):
    def make(self, folder):  # noqa: ARG002 - nothing lies in a folder
        return open_registry(fresh())

    def again(self, registry):
        return open_registry(registry.place)

    def damage(self, registry, entry, file):
        blob = registry.files(entry.name, entry.version).open(file).blob
        data = bytearray(registry.objects.get(blob).data)
        data[-1] ^= 1
        registry.objects.put(blob, bytes(data))


@pytest.mark.usefixtures("s3")
class TestS3Objects(ObjectsConformance):
    def make_objects(self):
        return ObstoreObjects.at(f"s3://{s3_server.BUCKET}/objects/{next(_numbers)}")


def test_an_answer_that_was_lost_is_no_failure_and_no_second_event(s3, tmp_path):
    source, registry = sample_artifact(tmp_path / "source"), open_registry(fresh())
    s3.lose_answers("/versions/1.0.0.json", "log.jsonl", "/blobs/")
    s3.requests()
    entry = registry.publish(source, aliases=("good",))
    puts = [path.rpartition("/")[2] for method, path, _, _ in s3.requests() if method == "PUT"]
    assert entry.aliases == ("good", "latest")
    # Each was sent twice, the second time on a condition that did not hold any more.
    assert (puts.count("1.0.0.json"), puts.count("log.jsonl")) == (2, 2)
    assert [(event.action, event.alias) for event in registry.log("formal")] == [("publish", ""), ("tag", "good")]
    s3.lose_answers("log.jsonl")
    assert registry.remove("formal@1.0.0").version == "1.0.0"
    assert [event.action for event in registry.log("formal")] == ["publish", "tag", "remove"]


def test_a_part_is_read_by_range_and_no_more(s3, tmp_path):
    shapes = {f"model.layers.{layer}.mlp.down_proj.weight": (128, 256) for layer in range(30)}
    source = random_direction(shapes, rank=None)
    write_direction(tmp_path / "source", source, About(name="formal", kind="contrastive")).close()
    registry = open_registry(fresh())
    registry.publish(tmp_path / "source")
    name = "model.layers.7.mlp.down_proj.weight"
    s3.requests()
    with registry.open("formal") as direction:
        opened = s3.requests()
        values = direction.delta(name).dense()
    read = s3.requests()
    layer_bytes = 128 * 256 * 4
    assert np.array_equal(values, source.deltas[name].dense())
    assert sum(got for _, _, _, got in read) == layer_bytes
    assert sum(got for _, _, _, got in opened) < layer_bytes / 2
    assert {method for method, _, _, _ in opened + read} == {"GET"}


def test_a_large_file_goes_in_parts(s3, tmp_path):
    source = random_direction({"model.layers.0.mlp.down_proj.weight": (1536, 2048)}, rank=None)
    write_direction(tmp_path / "source", source, About(name="formal", kind="contrastive")).close()
    registry = open_registry(fresh())
    s3.requests()
    registry.publish(tmp_path / "source")
    sent = [size for method, path, size, _ in s3.requests() if method == "PUT" and "/blobs/" in path]
    payload_bytes = (tmp_path / "source" / "direction.safetensors").stat().st_size
    assert max(sent) == 8 << 20 < payload_bytes
    assert registry.verify().problems == ()


@pytest.mark.usefixtures("s3")
def test_a_bucket_that_is_not_there_is_told():
    with pytest.raises(StoreError, match="NoSuchBucket") as caught:
        open_registry("s3://no-such-bucket/x").list()
    assert "Debug source" not in str(caught.value)
    assert "AWS_ENDPOINT_URL" in str(caught.value.hint)
