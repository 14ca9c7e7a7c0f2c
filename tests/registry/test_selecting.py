"""Which registry an address or the environment means."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from wsmerge.errors import MissingDependencyError, StoreError, UsageError
from wsmerge.registry import Store
from wsmerge.registry.objects import ObjectRegistry, ObstoreObjects
from wsmerge.registry.selecting import open_registry
from wsmerge.registry.testing import sample_artifact

needs_obstore = pytest.mark.skipif(importlib.util.find_spec("obstore") is None, reason="obstore is not installed")


@pytest.fixture(autouse=True)
def _environment(tmp_path, monkeypatch):
    monkeypatch.delenv("WSMERGE_STORE", raising=False)
    monkeypatch.setenv("WSMERGE_HOME", str(tmp_path / "home"))


def test_without_anything_it_is_the_local_store(tmp_path):
    registry = open_registry()
    assert isinstance(registry, Store)
    assert registry.root == tmp_path / "home"


def test_the_environment_is_read_when_it_is_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("WSMERGE_STORE", "memory://environment")
    assert open_registry().place == "memory://environment"
    assert open_registry(tmp_path).place == str(tmp_path)
    monkeypatch.setenv("WSMERGE_STORE", str(tmp_path / "folder"))
    assert open_registry().place == str(tmp_path / "folder")
    monkeypatch.setenv("WSMERGE_STORE", "")
    assert open_registry().place == str(tmp_path / "home")


def test_a_folder_is_a_local_store_however_it_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for where in ("store", "./store", "~/store", str(tmp_path / "store"), Path("store"), f"file://{tmp_path}/store"):
        registry = open_registry(where)
        assert isinstance(registry, Store)
        assert registry.root == tmp_path / "store"
    assert open_registry(f"file://{tmp_path}/a%20b").place == str(tmp_path / "a b")
    with pytest.raises(UsageError, match="no folder of this machine"):
        open_registry("file://elsewhere/store")


def test_a_name_in_memory_is_one_registry(tmp_path):
    open_registry("memory://shared").publish(sample_artifact(tmp_path / "source"))
    assert open_registry("memory://shared").names() == ("formal",)
    assert open_registry("memory://other").names() == ()


@needs_obstore
def test_an_address_is_an_object_store_and_nothing_is_asked_yet(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    registry = open_registry("s3://bucket/pre/fix/")
    assert isinstance(registry, ObjectRegistry)
    assert registry.place == "s3://bucket/pre/fix"


@needs_obstore
@pytest.mark.parametrize("address", ["nothing://bucket/prefix", "s3://", "https://127.0.0.1/x?y"])
def test_an_address_of_no_store_is_refused(address):
    with pytest.raises(StoreError) as caught:
        open_registry(address).list()
    assert caught.value.hint


def test_without_obstore_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(MissingDependencyError, match="obstore") as caught:
        open_registry("s3://bucket/prefix")
    assert "wsmerge[s3]" in str(caught.value.hint)


@needs_obstore
def test_a_store_without_conditional_writes_is_told(tmp_path):
    from obstore.store import LocalStore  # noqa: PLC0415 - an optional package

    registry = ObjectRegistry(ObstoreObjects(LocalStore(tmp_path), "file://here"))
    registry.publish(sample_artifact(tmp_path / "source"))
    with pytest.raises(StoreError, match="cannot do this") as caught:
        registry.tag("formal", "good", "1.0.0")
    assert "conditional writes" in str(caught.value.hint)


@needs_obstore
def test_a_store_that_does_not_answer_is_told(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with pytest.raises(StoreError, match="the store fails") as caught:
        open_registry("s3://bucket/prefix").names()
    assert "AWS_ENDPOINT_URL" in str(caught.value.hint)
