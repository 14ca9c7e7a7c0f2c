"""Which tensors a model of each architecture has: read as data from mergekit, without loading its code."""

from wsmerge.engine.architecture.choose import architecture_of, refuse_unheld_layers
from wsmerge.engine.architecture.undefined import is_derived, undefined_tensors
from wsmerge.engine.architecture.weights import (
    Architecture,
    Config,
    ModuleArchitecture,
    Weight,
    all_weights,
    is_present,
    resolve_name,
)

__all__ = [
    "Architecture",
    "Config",
    "ModuleArchitecture",
    "Weight",
    "all_weights",
    "architecture_of",
    "is_derived",
    "is_present",
    "refuse_unheld_layers",
    "resolve_name",
    "undefined_tensors",
]
