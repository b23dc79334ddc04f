"""A shard of a Zarr v3 array, as bytes: its chunks one after another, each with its CRC32C behind it, and an index of where they are.

A harvest writes shards whole and reads chunks whole, and wants the speed of the disk; zarr-python copies each chunk several times on the
way. The bytes are those that the array's metadata announces (Zarr v3, sharding-indexed: codecs bytes and crc32c, an index at the end,
of pairs of uint64, with a CRC32C of its own), so every reader of Zarr opens them.
"""

from typing import Any

import crc32c
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

CHECKSUM = 4
"""Bytes of a CRC32C."""


def encode(rows: Array, chunk_rows: int) -> list[Any]:
    """The pieces of a shard, in their order.

    Args:
        rows: all of the shard, shard rows x D, contiguous; a whole number of chunks.
    """
    chunks = [rows[first : first + chunk_rows].reshape(-1).view(np.uint8) for first in range(0, len(rows), chunk_rows)]
    length = chunks[0].nbytes + CHECKSUM
    places = np.array([(number * length, length) for number in range(len(chunks))], dtype="<u8").tobytes()
    return [piece for part in (*chunks, np.frombuffer(places, np.uint8)) for piece in seal(part)]


def seal(values: Array) -> list[Any]:
    """The pieces of an object that is one chunk: contiguous values, and their CRC32C."""
    body = values.reshape(-1).view(np.uint8)
    return [body, _checksum(body)]


def index_size(num_chunks: int) -> int:
    return 16 * num_chunks + CHECKSUM


def read_index(data: Any, num_chunks: int) -> Array:
    """num_chunks x 2, uint64: where each chunk begins, and its length with its checksum.

    Raises:
        ValueError: these are not the bytes that were written.
    """
    if len(data) != index_size(num_chunks):
        raise ValueError(f"its index has {len(data)} bytes and not {index_size(num_chunks)}")
    return _checked(data, "index").view("<u8").reshape(num_chunks, 2)


def decode(data: Any, dtype: Any, shape: tuple[int, ...]) -> Array:
    """The values of one chunk, in the memory that it came in, which may be read-only.

    Raises:
        ValueError: these are not the bytes that were written.
    """
    return _checked(data, "chunk").view(dtype).reshape(shape)


def _checked(data: Any, what: str) -> Array:
    every = np.frombuffer(data, np.uint8)
    body = every[:-CHECKSUM]
    if _checksum(body) != every[-CHECKSUM:].tobytes():
        raise ValueError(f"the CRC32C of its {what} does not match")
    return body


def _checksum(data: Any) -> bytes:
    return crc32c.crc32c(data).to_bytes(CHECKSUM, "little")
