"""Registries on object stores: the small interface to one, its implementations, and the registry on top."""

from wsmerge.registry.objects.interface import (
    Held,
    Listed,
    ObjectAbsentError,
    ObjectChangedError,
    ObjectRefusedError,
    Objects,
    Tag,
)
from wsmerge.registry.objects.memory import MemoryObjects
from wsmerge.registry.objects.registry import ObjectRegistry
from wsmerge.registry.objects.through_obstore import ObstoreObjects

__all__ = [
    "Held",
    "Listed",
    "MemoryObjects",
    "ObjectAbsentError",
    "ObjectChangedError",
    "ObjectRefusedError",
    "ObjectRegistry",
    "Objects",
    "ObstoreObjects",
    "Tag",
]
