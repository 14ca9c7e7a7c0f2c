"""Payloads: the files that hold a direction's tensors. The manifest names none, so a direction can move between them.

adapter     adapter_config.json, adapter_model.safetensors: a plain PEFT LoRA adapter of 1.0 * w
native      direction.safetensors, or direction-00001-of-0000N.safetensors with direction.safetensors.index.json
zarr        direction.zarr, a zarr v3 group; see `zarr_layout`
"""

from wsmerge.registry.payloads.adapter_config import adapter_config_problems
from wsmerge.registry.payloads.choose import open_payload, payload_files, restated_files
from wsmerge.registry.payloads.fetched import FetchedPayload
from wsmerge.registry.payloads.keys import ADAPTER_CONFIG_FILE, ADAPTER_FILE, component_key, component_keys
from wsmerge.registry.payloads.payload import Payload
from wsmerge.registry.payloads.safetensors_writer import MAX_SHARD_BYTES, write_payload
from wsmerge.registry.payloads.zarr_codecs import Codec, check_codec
from wsmerge.registry.payloads.zarr_writing import write_zarr_payload

__all__ = [
    "ADAPTER_CONFIG_FILE",
    "ADAPTER_FILE",
    "MAX_SHARD_BYTES",
    "Codec",
    "FetchedPayload",
    "Payload",
    "adapter_config_problems",
    "check_codec",
    "component_key",
    "component_keys",
    "open_payload",
    "payload_files",
    "restated_files",
    "write_payload",
    "write_zarr_payload",
]
