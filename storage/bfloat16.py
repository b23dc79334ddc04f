"""The Zarr v3 data type `bfloat16`, which zarr-python lacks and TensorStore and zarrs know."""

from dataclasses import dataclass
from typing import ClassVar

import ml_dtypes
import numpy as np
from zarr.core.dtype.npy.float import BaseFloat
from zarr.dtype import data_type_registry

DTYPE = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True, kw_only=True)
class BFloat16(BaseFloat):  # type: ignore[misc]
    """Eight bits of exponent, seven of fraction; little-endian, as ml_dtypes has it in memory."""

    dtype_cls = type(DTYPE)
    _zarr_v3_name = "bfloat16"
    _zarr_v2_names: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def from_native_dtype(cls, dtype: object) -> "BFloat16":
        cls._require(dtype)
        return cls(endianness="little")

    @classmethod
    def _require(cls, dtype: object) -> None:
        if dtype != DTYPE:
            from zarr.dtype import DataTypeValidationError

            raise DataTypeValidationError(f"{dtype} is not {DTYPE}")

    def to_native_dtype(self) -> np.dtype:
        return DTYPE

    @property
    def item_size(self) -> int:
        return 2


def register() -> None:
    """Let zarr-python read and write `bfloat16` arrays. Safe to repeat."""
    if BFloat16._zarr_v3_name not in data_type_registry.contents:
        data_type_registry.register(BFloat16._zarr_v3_name, BFloat16)
