"""The layout of a harvest: its arrays, and the Zarr v3 metadata that tells other readers of them.

zarr-python writes the metadata, here in memory. What the harvest itself reads of its layout is a record with a checksum, so that no
changed byte of a `zarr.json` misleads it.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import Crc32cCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import MemoryStore

from core.site import Site
from core.suite import CHUNKS_PER_BLOCK, Suite
from storage import bfloat16

bfloat16.register()

PARTS = ("train", "held_out")
DTYPES: dict[str, Any] = {"bfloat16": bfloat16.DTYPE, "float32": np.dtype("float32")}


@dataclass(frozen=True)
class Array:
    """An array that has one object a block."""

    num_blocks: int
    of_block: tuple[int, ...]
    """Shape of what it has for a block; blocks follow each other along the first axis."""
    dtype: npt.DTypeLike
    chunk_rows: int | None = None
    """Rows of the chunks of which an object is a shard; None where it is a chunk itself."""
    fill: int = 0
    rows: int | None = None
    """Where it ends before the last block does."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.num_blocks * self.of_block[0] if self.rows is None else self.rows, *self.of_block[1:])

    def path(self, block: int) -> str:
        """Of the object for a block, below the array's own."""
        return f"c/{block}" + "/0" * (len(self.of_block) - 1)


@dataclass(frozen=True)
class Layout:
    context: int
    block_sequences: int
    dtype: str
    sequences: dict[str, int]
    """Of each part."""
    widths: dict[str, int]
    """Of the activations at each site."""

    @classmethod
    def of(cls, suite: Suite, widths: dict[Site, int]) -> "Layout":
        sequences = dict(zip(PARTS, (suite.text.num_sequences, suite.text.num_held_out_sequences), strict=True))
        named = {str(site): width for site, width in sorted(widths.items())}
        return cls(suite.text.context, suite.harvest.block_sequences, suite.harvest.dtype, sequences, named)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Layout":
        return cls(**record)

    def record(self) -> dict[str, Any]:
        return asdict(self)

    def with_training(self, sequences: int) -> "Layout":
        """The same with a training part of so many sequences."""
        return replace(self, sequences=self.sequences | {"train": sequences})

    def num_blocks(self, part: str) -> int:
        return -(-self.sequences[part] // self.block_sequences)

    @property
    def block_rows(self) -> int:
        """Rows of a block, padding included: every token but the first of its sequence may be one."""
        return self.block_sequences * (self.context - 1)

    @property
    def chunk_rows(self) -> int:
        return self.block_rows // CHUNKS_PER_BLOCK

    def arrays(self, part: str) -> dict[str, Array]:
        """The arrays of a part, by name."""
        blocks, rows = self.num_blocks(part), self.block_rows
        found = {
            "tokens": Array(blocks, (self.block_sequences, self.context), "<i4", rows=self.sequences[part]),
            "rows": Array(blocks, (rows, 2), "<i4", fill=-1),
        }
        for site, width in self.widths.items():
            found[f"statistics/{site}/norms"] = Array(blocks, (rows,), "<f4")
            found[f"statistics/{site}/sums"] = Array(blocks, (1, width + 1), "<f8")
            found[f"activations/{site}"] = Array(blocks, (rows, width), DTYPES[self.dtype], self.chunk_rows)
        return found

    def metadata(self, attributes: dict[str, Any]) -> dict[str, bytes]:
        """Every `zarr.json`, by its path in the harvest.

        Args:
            attributes: of the whole: what its tokens are.
        """
        memory = MemoryStore()
        group = zarr.create_group(memory, attributes=attributes)
        for name in PARTS:
            part = group.create_group(name)
            counts = {"block_sequences": self.block_sequences, "block_rows": self.block_rows, "blocks": self.num_blocks(name)}
            part.attrs.update(counts | {"dtype": self.dtype})
            for path, array in self.arrays(name).items():
                chunk = (array.chunk_rows or array.of_block[0], *array.of_block[1:])
                shard = array.of_block if array.chunk_rows else None
                kind = np.dtype(array.dtype)
                part.create_array(path, shape=array.shape, dtype=kind, chunks=chunk, shards=shard, fill_value=array.fill, compressors=[Crc32cCodec()])

        async def every() -> dict[str, bytes]:
            found = {path: await memory.get(path, default_buffer_prototype()) async for path in memory.list()}
            return {path: data.to_bytes() for path, data in found.items() if data}

        return sync(every())
