"""The conformance suite on the local store and on object stores in memory; `objects/test_s3.py` runs it over HTTP.

A further registry passes it by a class here with `make` and `again`: one on the Hub sets `name` to `owner/formal`, and
`supports_remove`, `supports_gc` and whatever else it does not do to False.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from wsmerge.registry import Store
from wsmerge.registry.objects import MemoryObjects, ObjectRegistry, Objects, ObstoreObjects
from wsmerge.registry.testing import CrashConformance, DyingObjects, ObjectsConformance, RegistryConformance
from wsmerge.registry.testing.naming import NamingChecks
from wsmerge.registry.testing.publishing import PublishingChecks

needs_obstore = pytest.mark.skipif(importlib.util.find_spec("obstore") is None, reason="obstore is not installed")


class TestLocalStore(RegistryConformance):
    def make(self, folder):
        return Store(folder)

    def again(self, registry):
        return Store(registry.root)

    def damage(self, registry, entry, file):  # noqa: ARG002 - the entry knows its folder
        path = entry.path / file
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.chmod(0o644)
        path.unlink()  # the blob, and so whatever else has these bytes, stays
        path.write_bytes(data)


class OnObjects(RegistryConformance, CrashConformance):
    def make_objects(self) -> Objects:
        raise NotImplementedError

    def make(self, folder: Path) -> ObjectRegistry:  # noqa: ARG002 - nothing lies in a folder
        return ObjectRegistry(self.make_objects())

    def again(self, registry):
        return ObjectRegistry(registry.objects)

    def dying(self, registry, requests, *, answered):
        return ObjectRegistry(DyingObjects(registry.objects, requests, answered=answered))

    def damage(self, registry, entry, file):
        blob = registry.files(entry.name, entry.version).open(file).blob
        data = bytearray(registry.objects.get(blob).data)
        data[-1] ^= 1
        registry.objects.put(blob, bytes(data))


class TestMemory(OnObjects):
    def make_objects(self):
        return MemoryObjects()


class TestNamesWithAnOwner(PublishingChecks, NamingChecks):
    name = "acme/formal"

    def make(self, folder):  # noqa: ARG002 - nothing lies in a folder
        return ObjectRegistry(MemoryObjects())

    def again(self, registry):
        return ObjectRegistry(registry.objects)


@needs_obstore
class TestObstoreMemory(OnObjects):
    def make_objects(self):
        from obstore.store import MemoryStore  # noqa: PLC0415 - an optional package

        return ObstoreObjects(MemoryStore(), "memory://obstore")


class TestMemoryObjects(ObjectsConformance):
    def make_objects(self):
        return MemoryObjects()


@needs_obstore
class TestObstoreMemoryObjects(ObjectsConformance):
    def make_objects(self):
        from obstore.store import MemoryStore  # noqa: PLC0415 - an optional package

        return ObstoreObjects(MemoryStore(), "memory://obstore")
