"""Shards as bytes: what zarr-python reads and writes itself, and no changed byte goes unnoticed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.codecs import Crc32cCodec

from storage import bfloat16, shards

bfloat16.register()


def _array(root: Path, dtype: Any, shape: tuple[int, int], chunk_rows: int) -> Any:
    group = zarr.create_group(zarr.storage.LocalStore(root), overwrite=True)
    return group.create_array("x", shape=shape, dtype=dtype, chunks=(chunk_rows, shape[1]), shards=shape, compressors=[Crc32cCodec()])


def _rows(dtype: Any, rows: int, width: int) -> Any:
    return np.random.default_rng(rows).normal(size=(rows, width)).astype(dtype)


SIZES = [(1, 1, 1), (3, 2, 5), (16, 4, 7), (2, 100, 640)]  # chunks, rows of each, width


@pytest.mark.parametrize("dtype", [bfloat16.DTYPE, np.float32])
@pytest.mark.parametrize(("chunks", "chunk_rows", "width"), SIZES)
def test_zarr_python_reads_the_rows_of_a_shard(tmp_path: Path, dtype: Any, chunks: int, chunk_rows: int, width: int) -> None:
    x = _rows(dtype, chunks * chunk_rows, width)
    array = _array(tmp_path, dtype, x.shape, chunk_rows)
    (tmp_path / "x/c/0").mkdir(parents=True)
    (tmp_path / "x/c/0/0").write_bytes(b"".join(bytes(piece) for piece in shards.encode(x, chunk_rows)))
    assert np.array_equal(array[:], x)


@pytest.mark.parametrize("dtype", [bfloat16.DTYPE, np.float32])
@pytest.mark.parametrize(("chunks", "chunk_rows", "width"), SIZES)
def test_a_shard_is_to_the_byte_what_zarr_python_writes(tmp_path: Path, dtype: Any, chunks: int, chunk_rows: int, width: int) -> None:
    x = _rows(dtype, chunks * chunk_rows, width)
    _array(tmp_path, dtype, x.shape, chunk_rows)[:] = x
    data = (tmp_path / "x/c/0/0").read_bytes()
    assert data == b"".join(bytes(piece) for piece in shards.encode(x, chunk_rows))
    index = shards.read_index(data[-shards.index_size(chunks) :], chunks)
    for number, (place, length) in enumerate(index.tolist()):
        decoded = shards.decode(data[place : place + length], dtype, (chunk_rows, width))
        assert np.array_equal(decoded, x[number * chunk_rows : (number + 1) * chunk_rows])


@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_anywhere_is_found_out(place: int, bit: int) -> None:
    x = _rows(np.float32, 8, 3)
    data = bytearray(b"".join(bytes(piece) for piece in shards.encode(x, 4)))
    data[place % len(data)] ^= 1 << bit
    with pytest.raises(ValueError, match=r"the CRC32C of its (index|chunk) does not match"):
        _read_all(bytes(data))


def _read_all(data: bytes) -> None:
    for begin, length in shards.read_index(data[-shards.index_size(2) :], 2).tolist():
        shards.decode(data[begin : begin + length], np.float32, (4, 3))
