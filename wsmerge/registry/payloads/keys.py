"""Which files a payload is made of, and under which keys its arrays stand.

Keys of a payload that is no adapter are `NAME.delta`, `NAME.lora_A` and `NAME.lora_B`, with NAME as in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from wsmerge.registry.records import ComponentRecord, TensorRecord

__all__ = [
    "ADAPTER_CONFIG_FILE",
    "ADAPTER_FILE",
    "INDEX_FILE",
    "NATIVE_FILE",
    "component_key",
    "component_keys",
]

ADAPTER_CONFIG_FILE: Final = "adapter_config.json"
ADAPTER_FILE: Final = "adapter_model.safetensors"
NATIVE_FILE: Final = "direction.safetensors"
INDEX_FILE: Final = "direction.safetensors.index.json"
_EMBEDDING_PARTS: Final = {"lora_A": "lora_embedding_A", "lora_B": "lora_embedding_B"}


def component_key(row: TensorRecord, component: str, *, adapter: bool) -> str:
    """Key of one component in the payload; for an adapter, the one that PEFT gives it."""
    if not adapter:
        return f"{row.name}.{component}"
    module = f"base_model.model.{row.adapted_module}"
    if row.layout == "embedding":
        return f"{module}.{_EMBEDDING_PARTS[component]}"
    return f"{module}.{component}.weight"


def component_keys(
    rows: Iterable[TensorRecord], *, adapter: bool
) -> Iterator[tuple[str, TensorRecord, ComponentRecord]]:
    """Each component of `rows`, with its key in the payload."""
    for row in rows:
        for part in row.components:
            yield component_key(row, part.component, adapter=adapter), row, part
