"""A harvest: tokens, and the activations of every site over them, in one Zarr v3 group.

    harvests/KEY/{train,held_out}/tokens                 sequences x context, int32
                                  rows                   rows x 2, int32: sequence, position; -1 where a block has no more rows
                                  activations/SITE       rows x D, bfloat16 or float32, one shard a block
                                  statistics/SITE/norms  rows, float32; sum: blocks x D and square: blocks, float64
                 commits/...                             a record for each block: which sites of it are there

Blocks are padded to one number of rows, so that a block is a shard; its rows are in the same shuffled order at every site.
A block exists when its commit does. Chunks carry CRC32C, which is verified on read.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import zarr
from torch import Tensor
from zarr.codecs import Crc32cCodec

from core.errors import JumpsuiteError
from core.order import Rows, block_permutation
from core.packing import SpecialTokens, Tokens, is_text
from core.rows import bits_of, move, sums
from core.site import Site
from core.statistics import Moments
from core.suite import CHUNKS_PER_BLOCK, Suite
from storage import bfloat16, shards
from storage.objects import Corrupt, Store

bfloat16.register()

DTYPES: dict[str, Any] = {"bfloat16": bfloat16.DTYPE, "float32": np.dtype("float32")}
BITS: dict[str, Any] = {"bfloat16": np.dtype("uint16"), "float32": np.dtype("float32")}
"""How rows are moved: NumPy's own types, so bfloat16 as its bits."""
PARTS = ("train", "held_out")


class Harvest:
    """One harvest of a store; `begin` makes it.

    Args:
        key: of the configuration that made it (`Suite.harvest_key`).
    """

    def __init__(self, store: Store, key: str) -> None:
        self.store = store
        self.key = key
        self.prefix = f"harvests/{key}"

    @property
    def has_tokens(self) -> bool:
        return self.description is not None

    @cached_property
    def description(self) -> dict[str, Any] | None:
        """What the tokens are: model, text, fingerprint, special tokens; None until they are all written."""
        return self.store.get_record(f"{self.prefix}/commits/tokens.json")

    def part(self, name: str) -> "Part":
        return Part(self, name)

    def begin(self, suite: Suite) -> None:
        """Lay out the group and its tokens, empty."""
        group = zarr.create_group(self.store.zarr(self.prefix), overwrite=True)
        harvest, context = suite.harvest, suite.text.context
        block_rows = harvest.block_sequences * (context - 1)
        for name, sequences in zip(PARTS, (suite.text.num_sequences, suite.text.num_held_out_sequences), strict=True):
            blocks = -(-sequences // harvest.block_sequences)
            part = group.create_group(name)
            part.attrs.update({"block_sequences": harvest.block_sequences, "block_rows": block_rows, "blocks": blocks, "dtype": harvest.dtype})
            _array(part, "tokens", (sequences, context), "int32", (harvest.block_sequences, context))
            _array(part, "rows", (blocks * block_rows, 2), "int32", (block_rows, 2), fill=-1)

    def commit_tokens(self, description: dict[str, Any]) -> None:
        """Say that every token is written. From now on the rows of every block are known."""
        digest = hashlib.sha256()
        for name in PARTS:
            for block in range(self.part(name).num_blocks):
                digest.update(self.part(name).tokens(block).tobytes())
        full = description | {"token_fingerprint": digest.hexdigest()}
        zarr.open_group(self.store.zarr(self.prefix), mode="r+").attrs.update(full)
        self.store.put_record(f"{self.prefix}/commits/tokens.json", full)
        self.__dict__.pop("description", None)

    def losses(self, name: str) -> list[float] | None:
        """Losses of the held-out sequences, in nats, measured under some condition; None until `save_losses` wrote them."""
        record = self.store.get_record(f"{self.prefix}/losses/{name}.json")
        return [float(loss) for loss in record["losses"]] if record else None

    def save_losses(self, name: str, losses: list[float]) -> None:
        self.store.put_record(f"{self.prefix}/losses/{name}.json", {"losses": losses})


class Part:
    """The training or the held-out part of a harvest."""

    def __init__(self, harvest: Harvest, name: str) -> None:
        self.harvest = harvest
        self.name = name
        self._group = zarr.open_group(harvest.store.zarr(f"{harvest.prefix}/{name}"), mode="r+")
        attributes: dict[str, Any] = dict(self._group.attrs)
        self.num_blocks = int(attributes["blocks"])
        self.block_rows = int(attributes["block_rows"])
        self.block_sequences = int(attributes["block_sequences"])
        self.dtype = str(attributes["dtype"])
        self.chunk_rows = self.block_rows // CHUNKS_PER_BLOCK
        self._arrays: dict[str, Any] = {}
        self._indices: dict[tuple[Site, int], npt.NDArray[Any]] = {}

    # Tokens and rows

    def write_tokens(self, block: int, tokens: Tokens, special: SpecialTokens, shuffle_seed: int) -> None:
        """Write a block's tokens, sequences x context, and with them which rows it will have, in which order."""
        first = block * self.block_sequences
        self._array("tokens")[first : first + len(tokens)] = tokens
        sequence, position = np.nonzero(is_text(tokens, special))
        rows = np.full((self.block_rows, 2), -1, dtype=np.int32)
        order = block_permutation(shuffle_seed, block, len(sequence))
        rows[: len(sequence)] = np.stack([first + sequence[order], position[order]], axis=1)
        self._array("rows")[block * self.block_rows : (block + 1) * self.block_rows] = rows

    def tokens(self, block: int) -> Tokens:
        """The tokens of a block, sequences x context."""
        return self._read("tokens", slice(block * self.block_sequences, (block + 1) * self.block_sequences))

    def first_tokens(self, num_sequences: int) -> Tokens:
        return self._read("tokens", slice(0, num_sequences))

    def rows(self, block: int) -> npt.NDArray[np.int32]:
        """(sequence, position) of each row of a block, padding left out; sequences are counted from the part's beginning."""
        rows = self._read("rows", slice(block * self.block_rows, (block + 1) * self.block_rows))
        return rows[rows[:, 0] >= 0]

    @cached_property
    def valid(self) -> npt.NDArray[np.bool_]:
        """Which rows hold activations, not padding."""
        return self._read("rows", slice(None))[:, 0] >= 0

    # Activations

    def add_sites(self, widths: dict[Site, int]) -> None:
        """Lay out the arrays of sites that are not there yet."""
        for site, width in widths.items():
            rows, block_rows = self.num_blocks * self.block_rows, self.block_rows
            statistics = f"statistics/{site}"
            _array(self._group, f"{statistics}/norms", (rows,), "float32", (block_rows,))
            _array(self._group, f"{statistics}/sum", (self.num_blocks, width), "float64", (1, width))
            _array(self._group, f"{statistics}/square", (self.num_blocks,), "float64", (1,))
            shape, chunk = (rows, width), (self.chunk_rows, width)
            _array(self._group, f"activations/{site}", shape, DTYPES[self.dtype], chunk, shard=(block_rows, width))

    def harvested(self, block: int) -> set[Site]:
        """The sites whose activations of a block are committed."""
        record = self.harvest.store.get_record(self._commit(block))
        return {Site.parse(name) for name in record["sites"]} if record else set()

    def missing(self, sites: Sequence[Site]) -> list[int]:
        """Blocks that lack one of the sites."""
        return [block for block in range(self.num_blocks) if not set(sites) <= self.harvested(block)]

    def write_block(self, block: int, activations: dict[Site, Tensor]) -> None:
        """Write and commit a block.

        Args:
            activations: rows x D of each site, in the order of `rows(block)`, of any floating type; or with zeros up to `block_rows`
                and of the stored type, which saves a copy.

        Raises:
            JumpsuiteError: an activation is not finite.
        """
        for site, x_BD in activations.items():
            x = bits_of(self._padded(x_BD))
            total, norms = np.empty(x.shape[1]), np.empty(len(x), np.float32)
            square = sums(x, total, norms)
            if not np.isfinite(square):
                raise JumpsuiteError(
                    f"{site} has activations in block {block} of {self.name} that are not finite; expected numbers; "
                    "set model.dtype to float32 or leave the site out"
                )
            begin, statistics = block * self.block_rows, f"statistics/{site}"
            self._array(f"{statistics}/sum")[block] = total
            self._array(f"{statistics}/square")[block] = square
            self._array(f"{statistics}/norms")[begin : begin + self.block_rows] = norms
            self.harvest.store.put_pieces(self._shard(site, block), shards.encode(x, self.chunk_rows))
        self._commit_sites(block, self.harvested(block) | set(activations))

    def _padded(self, x_BD: Tensor) -> Tensor:
        """Of the stored type, with zeros up to a whole shard."""
        stored = x_BD.to(getattr(torch, self.dtype)).contiguous()
        if len(stored) == self.block_rows:
            return stored
        padded = torch.zeros(self.block_rows, stored.shape[1], dtype=stored.dtype)
        padded[: len(stored)] = stored
        return padded

    def norms(self, site: Site) -> npt.NDArray[np.float32]:
        """The Euclidean norm of each row, zero for padding."""
        return self._read(f"statistics/{site}/norms", slice(None))

    def moments(self, site: Site) -> Moments:
        """Sums over all rows, merged in block order."""
        totals, squares = self._read(f"statistics/{site}/sum", slice(None)), self._read(f"statistics/{site}/square", slice(None))
        counts = self.valid.reshape(self.num_blocks, self.block_rows).sum(1)
        blocks = [Moments(int(n), total, float(square)) for n, total, square in zip(counts, totals, squares, strict=True)]
        return sum(blocks[1:], start=blocks[0])

    def read(self, site: Site, chunks: Sequence[int], rows: Rows) -> Tensor:
        """Rows of a site, in the order asked for.

        Args:
            chunks: those that hold the rows. rows: row numbers of the part.
        """
        chunk_E, row_E = np.divmod(rows, self.chunk_rows)
        asked_for = np.argsort(chunk_E, kind="stable")
        ends = np.searchsorted(chunk_E[asked_for], np.array([chunks, np.add(chunks, 1)]))
        x = torch.empty(len(rows), self._array(f"activations/{site}").shape[1], dtype=getattr(torch, self.dtype))
        for chunk, first, end in zip(chunks, *ends, strict=True):
            here = asked_for[first:end]
            move(self._chunk(site, chunk), row_E[here], bits_of(x), here)
        return x

    def batches(self, site: Site, wanted: npt.NDArray[np.bool_]) -> Iterator[Tensor]:
        """The wanted rows of a site in store order, a chunk at a time; chunks without one are left out."""
        for chunk in range(self.num_blocks * CHUNKS_PER_BLOCK):
            mask = wanted[chunk * self.chunk_rows : (chunk + 1) * self.chunk_rows]
            if mask.any():
                yield _to_torch(self._chunk(site, chunk)[mask])

    def _chunk(self, site: Site, chunk: int) -> npt.NDArray[Any]:
        """The rows of a chunk, read-only: float32, or a bfloat16's bits."""
        block, number = divmod(chunk, CHUNKS_PER_BLOCK)
        key, name, begin = self._shard(site, block), f"activations/{site}", chunk * self.chunk_rows
        try:
            if (site, block) not in self._indices:
                tail = self.harvest.store.get_end(key, shards.index_size(CHUNKS_PER_BLOCK))
                self._indices[site, block] = shards.read_index(tail, CHUNKS_PER_BLOCK)
            place, length = map(int, self._indices[site, block][number])
            shape = (self.chunk_rows, self._array(name).shape[1])
            return shards.decode(self.harvest.store.get_range(key, place, length), BITS[self.dtype], shape)
        except FileNotFoundError:
            raise self._damage(name, f"{name}/c/{block}/0 is missing", [block]) from None
        except ValueError as error:
            raise self._damage(name, f"{name} is damaged in rows {begin:,} to {begin + self.chunk_rows:,} ({error})", [block]) from None

    def _shard(self, site: Site, block: int) -> str:
        return f"{self.harvest.prefix}/{self.name}/activations/{site}/c/{block}/0"

    def _commit(self, block: int) -> str:
        return f"{self.harvest.prefix}/commits/{self.name}/{block:06d}.json"

    def _array(self, name: str) -> Any:
        if name not in self._arrays:
            # zarr leaves out objects that hold the fill value alone; here an object that is absent was lost.
            self._arrays[name] = self._group[name].with_config({"write_empty_chunks": True})
        return self._arrays[name]

    def _read(self, name: str, rows: slice) -> Any:
        """Rows of an array that has one object a block."""
        array = self._array(name)
        begin, end, _ = rows.indices(array.shape[0])
        of_block = array.chunks[0]
        blocks = range(begin // of_block, -(-end // of_block))
        # zarr reads an absent object as zeros, without a word.
        for block in blocks:
            lost = f"{name}/c/{block}" + "/0" * (array.ndim - 1)
            if not self.harvest.store.has(f"{self.harvest.prefix}/{self.name}/{lost}"):
                raise self._damage(name, f"{lost} is missing", [block])
        try:
            return array[rows]
        except ValueError as error:
            damaged = [block for block in blocks if not _readable(array, slice(block * of_block, (block + 1) * of_block))]
            raise self._damage(name, f"{name} is damaged in rows {begin:,} to {end:,} ({error})", damaged) from None

    def _damage(self, name: str, what: str, blocks: list[int]) -> Corrupt:
        """The error of blocks that are not what was written. Activations and their sums follow from the tokens, so those blocks are struck from
        the commits, and the next run makes them again; where tokens are lost the harvest begins anew, which is not for us to say."""
        where = f"{self.harvest.store.where(f'{self.harvest.prefix}/{self.name}')}: {what}; expected what was harvested"
        if name in ("tokens", "rows"):
            return Corrupt(f"{where}; delete {self.harvest.store.where(self.harvest.prefix)} and run again to harvest it anew")
        site = Site.parse(name.split("/")[1])
        for block in blocks:
            self._commit_sites(block, self.harvested(block) - {site})
        numbers = ", ".join(map(str, blocks))
        return Corrupt(f"{where}; run again, which harvests block {numbers} of {site} anew, for it is struck from the harvest now")

    def _commit_sites(self, block: int, sites: set[Site]) -> None:
        self.harvest.store.put_record(self._commit(block), {"sites": sorted(str(site) for site in sites)})


def _readable(array: Any, rows: slice) -> bool:
    try:
        array[rows]
    except ValueError:
        return False
    return True


def _array(group: zarr.Group, name: str, shape: Any, dtype: Any, chunk: Any, shard: Any = None, fill: int = 0) -> None:
    """Lay out an array, unless it is there: a run may have been killed between any two."""
    if name in group:
        return
    group.create_array(name, shape=shape, dtype=dtype, chunks=chunk, shards=shard, fill_value=fill, compressors=[Crc32cCodec()])


def _to_torch(x: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(x).view(torch.bfloat16) if x.dtype == np.uint16 else torch.from_numpy(x)
