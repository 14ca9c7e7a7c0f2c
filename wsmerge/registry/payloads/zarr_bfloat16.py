"""The zarr data type `bfloat16` of the zarr extensions, which zarr itself does not have.

zarr loads this module by its entry point `zarr.data_type` wherever wsmerge is installed. zarr 3.1 only lists such entry
points: there, call `register_bfloat16()` first. The module imports zarr, so nothing imports it that may not need it. Arrays of the type hold ml_dtypes' `bfloat16`, as those of TensorStore and JAX do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
from zarr.core.common import JSON, ZarrFormat
from zarr.core.dtype.npy.float import BaseFloat
from zarr.dtype import data_type_registry

from wsmerge.errors import MissingDependencyError

__all__ = ["BFloat16", "register_bfloat16"]

_NAME: Final = "bfloat16"
_HEX_DIGITS: Final = 4


@dataclass(frozen=True, kw_only=True)
class BFloat16(BaseFloat[Any, Any]):
    """bfloat16: the upper half of a float32. A fill value is a number, `NaN`, `Infinity` or its bits, `0x7fc0`."""

    _zarr_v3_name: ClassVar[str] = _NAME
    _zarr_v2_names: ClassVar[tuple[str, ...]] = ()

    dtype_cls: ClassVar[type[np.dtype[Any]]] = np.dtype  # ml_dtypes' own class has no public name

    @classmethod
    def _check_native_dtype(cls, dtype: np.dtype[Any]) -> bool:  # type: ignore[override]  # zarr narrows to its dtypes
        """Whether `dtype` is ml_dtypes' bfloat16, which need not be imported to be known."""
        return dtype.name == _NAME and dtype.kind == "V"

    def to_native_dtype(self) -> np.dtype[Any]:
        """ml_dtypes' bfloat16.

        Raises:
            MissingDependencyError: ml_dtypes is not installed.
        """
        try:
            import ml_dtypes  # noqa: PLC0415 - only arrays of this type need it, and zarr loads the module for all
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                "zarr arrays of bfloat16 need ml_dtypes", hint="pip install ml-dtypes"
            ) from error
        native: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return native.newbyteorder("<" if self.endianness == "little" else ">")

    @property
    def item_size(self) -> int:
        """Bytes of an element."""
        return 2

    def from_json_scalar(self, data: JSON, *, zarr_format: ZarrFormat) -> Any:  # noqa: ANN401 - a scalar of ml_dtypes
        """The fill value that the metadata state as `data`."""
        if isinstance(data, str) and data.startswith("0x") and len(data) == 2 + _HEX_DIGITS:
            return np.uint16(int(data, 16)).view(self.to_native_dtype().newbyteorder("="))
        return super().from_json_scalar(data, zarr_format=zarr_format)


def register_bfloat16() -> None:
    """Make the type known to zarr in this process, whatever zarr does about entry points."""
    data_type_registry.register(_NAME, BFloat16)
