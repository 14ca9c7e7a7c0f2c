"""The store against a plain model: any sequence of operations leaves both in the same state."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.oracles.registry_model import RefusedError, RegistryModel
from tests.registry.artifacts import make_artifact
from wsmerge.errors import ConflictError, NotFoundError
from wsmerge.registry import Entry, Store

NAMES = st.sampled_from(("formal", "acme/formal"))
VERSIONS = st.sampled_from(("1.0.0", "1.0.1", "1.10.0", "2.0.0-rc.1"))
ALIASES = st.sampled_from(("latest", "good"))
CONTENTS = st.sampled_from((1, 2))


class StoreMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.sources = {seed: make_artifact(self.folder / str(seed), seed=seed) for seed in (1, 2)}
        self.store: Any = Store(self.folder / "store")  # or whatever else a machine that extends this one makes
        self.model = RegistryModel()

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def both(self, ours, models):
        """Do the same on both sides; either both refuse or none."""
        try:
            models()
        except RefusedError:
            with pytest.raises((ConflictError, NotFoundError)):
                ours()
            return None
        return ours()

    @rule(name=NAMES, version=VERSIONS, content=CONTENTS, aliases=st.lists(ALIASES, max_size=1).map(tuple))
    def publish(self, name, version, content, aliases):
        self.both(
            lambda: self.store.publish(self.sources[content], name=name, version=version, aliases=aliases),
            lambda: self.model.publish(name, version, content, aliases),
        )

    @rule(name=NAMES, alias=ALIASES, to=VERSIONS | ALIASES)
    def tag(self, name, alias, to):
        self.both(lambda: self.store.tag(name, alias, to), lambda: self.model.tag(name, alias, to))

    @rule(name=NAMES, alias=ALIASES)
    def untag(self, name, alias):
        self.both(lambda: self.store.untag(name, alias), lambda: self.model.untag(name, alias))

    @rule(name=NAMES, which=VERSIONS | st.just("good"))
    def remove(self, name, which):
        self.both(lambda: self.store.remove(f"{name}@{which}"), lambda: self.model.remove(name, which))

    @rule()
    def gc(self):
        expected = self.store.gc(dry_run=True, min_age_s=0)
        done = self.store.gc(dry_run=False, min_age_s=0)
        assert done.freed_bytes == expected.freed_bytes
        assert done.blobs == expected.blobs
        assert self.store.gc(min_age_s=0).freed_bytes == 0

    @rule(name=NAMES, selector=st.none() | VERSIONS | ALIASES)
    def resolve(self, name, selector):
        text = name if selector is None else f"{name}@{selector}"
        entry = self.both(lambda: self.store.resolve(text), lambda: self.model.resolve(name, selector))
        if entry is not None:
            assert str(entry.version) == self.model.resolve(name, selector)

    @invariant()
    def the_same_versions_and_aliases(self):
        held = {name: model for name, model in self.model.names.items() if model.versions}
        assert set(self.store.names()) == set(held)
        for name, model in held.items():
            entries = self.store.versions(name)
            assert {str(entry.version): self.content(entry) for entry in entries} == model.versions
            shown = {alias: str(entry.version) for entry in entries for alias in entry.aliases}
            assert shown == {"latest": self.model.resolve(name, None)} | model.aliases
            assert str(self.store.next_version(name)) not in model.versions | dict.fromkeys(model.removed)

    def content(self, entry: Entry) -> int:
        written = (self.sources[1] / "adapter_model.safetensors").read_bytes()
        return 1 if (entry.path / "adapter_model.safetensors").read_bytes() == written else 2


TestStoreAgainstModel = StoreMachine.TestCase
TestStoreAgainstModel.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)
