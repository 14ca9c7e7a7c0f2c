"""The registry on an object store against the plain model that the local store is held to."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis.stateful import initialize, rule

from tests.oracles.registry_model import RegistryModel
from tests.registry.artifacts import make_artifact
from tests.registry.test_store_model import StoreMachine
from wsmerge.registry.objects import MemoryObjects, ObjectRegistry
from wsmerge.registry.testing.harness import contents


class ObjectMachine(StoreMachine):
    @initialize()
    def start(self):
        self.folder = Path(tempfile.mkdtemp())
        self.sources = {seed: make_artifact(self.folder / str(seed), seed=seed) for seed in (1, 2)}
        self.store: Any = ObjectRegistry(MemoryObjects())
        self.model = RegistryModel()

    def teardown(self):
        shutil.rmtree(self.folder)

    @rule()
    def gc(self):
        expected = self.store.gc(min_age_s=-60)
        done = self.store.gc(dry_run=False, min_age_s=-60)
        assert (done.freed_bytes, done.blobs) == (expected.freed_bytes, expected.blobs)
        assert self.store.gc(min_age_s=-60).freed_bytes == 0

    def content(self, entry):
        held = contents(self.store.files(entry.name, entry.version))["adapter_model.safetensors"]
        return 1 if held == (self.sources[1] / "adapter_model.safetensors").read_bytes() else 2


TestObjectsAgainstModel = ObjectMachine.TestCase
TestObjectsAgainstModel.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)
