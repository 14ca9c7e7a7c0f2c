"""Directions as versioned artifacts: references, the manifest, artifact folders and the local store."""

from wsmerge.registry.artifact import About, write_direction
from wsmerge.registry.catalogue import Broken, Entry, Survey
from wsmerge.registry.compare import Difference, compare_directions
from wsmerge.registry.direction import Direction, open_direction_folder, verify_direction
from wsmerge.registry.manifest import Manifest, parse_manifest
from wsmerge.registry.records import BaseRecord, DatasetRecord, Kind, Layout, ParentRecord, PoleRecord, TensorRecord
from wsmerge.registry.references import HubReference, PathReference, Reference, StoreReference, parse_reference
from wsmerge.registry.registry import Registry
from wsmerge.registry.resolve import open_reference
from wsmerge.registry.selecting import open_registry
from wsmerge.registry.store import Store
from wsmerge.registry.versions import Version

__all__ = [
    "About",
    "BaseRecord",
    "Broken",
    "DatasetRecord",
    "Difference",
    "Direction",
    "Entry",
    "HubReference",
    "Kind",
    "Layout",
    "Manifest",
    "ParentRecord",
    "PathReference",
    "PoleRecord",
    "Reference",
    "Registry",
    "Store",
    "StoreReference",
    "Survey",
    "TensorRecord",
    "Version",
    "compare_directions",
    "open_direction_folder",
    "open_reference",
    "open_registry",
    "parse_manifest",
    "parse_reference",
    "verify_direction",
    "write_direction",
]
