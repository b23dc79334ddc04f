"""A harvest: tokens, and the activations of every site over them, in one Zarr v3 group.

    harvests/KEY/{train,held_out}/tokens                 sequences x context, int32
                                  rows                   rows x 2, int32: sequence, position; -1 where a block has no more rows
                                  activations/SITE       rows x D, bfloat16 or float32, one shard a block
                                  statistics/SITE/norms  rows, float32
                                  statistics/SITE/sums   blocks x (D + 1), float64: of the rows, and of their squared norms
                 commits/...                             a record for each block: which sites of it are there

Every array has one object a block, which is padded to one number of rows; its rows are in the same shuffled order at every site.
A block exists when its commit does. Chunks carry CRC32C, which is verified on read. zarr-python lays the arrays out; their objects are
written and read here (`storage/shards.py`), at the speed of the place where they lie.
"""

import hashlib
import logging
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from core.errors import JumpsuiteError
from core.order import Rows, block_permutation
from core.packing import SpecialTokens, Tokens, is_text
from core.rows import bits_of, move, sums
from core.site import Site
from core.statistics import Moments
from core.suite import CHUNKS_PER_BLOCK, Suite
from storage import shards
from storage.layout import PARTS, Layout
from storage.objects import Corrupt, Store

log = logging.getLogger(__name__)

BITS: dict[str, Any] = {"bfloat16": np.dtype("uint16"), "float32": np.dtype("float32")}
"""How rows are moved: NumPy's own types, so bfloat16 as its bits."""


class Struck(Corrupt):
    """Blocks were damaged, and are struck from the harvest: the next harvest makes them anew."""


class Harvest:
    """One harvest of a store; `lay_out` makes it.

    Args:
        key: of the configuration that made it (`Suite.harvest_key`).
        num_sequences: of its training part, where more may have been added since; by default all that there are.
        rolls: only some of its blocks are there at a time. It lies apart from one that is whole, which nobody removes anything of.
    """

    def __init__(self, store: Store, key: str, num_sequences: int | None = None, rolls: bool = False) -> None:
        self.store = store
        self.key = key
        self.num_sequences = num_sequences
        self.prefix = f"harvests/{key}" + "-rolling" * rolls

    @property
    def has_tokens(self) -> bool:
        return self.description is not None

    @cached_property
    def description(self) -> dict[str, Any] | None:
        """What the tokens are: model, text, fingerprint, special tokens; None until they are all written."""
        record = self.store.get_record(self._tokens)
        if record is None:
            return None
        fingerprints = record.pop("token_fingerprints")
        wanted = str(self.num_sequences or max(map(int, fingerprints)))
        return record | {"token_fingerprint": fingerprints[wanted]} if wanted in fingerprints else None

    @property
    def num_written(self) -> int:
        """Sequences of the training part whose tokens are committed."""
        record = self.store.get_record(self._tokens)
        return max(map(int, record["token_fingerprints"])) if record else 0

    @property
    def _tokens(self) -> str:
        return f"{self.prefix}/commits/tokens.json"

    @property
    def last_read(self) -> str | None:
        """What a text that grows was when it was read last."""
        record = self._worked_out(f"{self.prefix}/inputs/read.json")
        return str(record["text"]) if record else None

    def note_read(self, text: str) -> None:
        self.store.put_record(f"{self.prefix}/inputs/read.json", {"text": text})

    def turn(self) -> AbstractContextManager[None]:
        """The right to lay out the harvest and to write its tokens, after whoever has it."""
        owns = ["**/zarr.json", "commits/*.json", "*/tokens/**/*", "*/rows/**/*"]
        return self.store.turn(f"{self.prefix}/tokens", [f"{self.prefix}/{pattern}" for pattern in owns])

    def part(self, name: str) -> "Part":
        record = self.store.get_record(self._layout)
        if record is None:
            raise Corrupt(f"{self.store.where(self._layout)} is missing; expected the harvest's layout; run again, which writes it anew")
        layout = Layout.from_record(record["layout"])
        return Part(self, name, layout.with_training(self.num_sequences or layout.sequences["train"]))

    def lay_out(self, suite: Suite, widths: dict[Site, int]) -> None:
        """Leave arrays for tokens and for these sites, beside those that are there. To be called in `turn`.

        Metadata that was lost or changed is written anew; nothing in the store is read from it.
        """
        record = self.store.get_record(self._layout) or {"layout": {"widths": {}}, "metadata": {}}
        there = {Site.parse(name): width for name, width in record["layout"]["widths"].items()}
        layout = Layout.of(suite, there | widths)
        layout = layout.with_training(max(layout.sequences["train"], record["layout"].get("sequences", {}).get("train", 0)))
        metadata = layout.metadata(self.store.get_record(self._tokens) or {})
        with ThreadPoolExecutor(self.store.at_once) as pool:
            put = dict(zip(metadata, pool.map(partial(self._put_metadata, record["metadata"]), metadata.items()), strict=True))
        now = {"layout": layout.record(), "metadata": put}
        if now != record:
            self.store.put_record(self._layout, now)

    def _put_metadata(self, put_before: dict[str, str], file: tuple[str, bytes]) -> str:
        """Leave a metadata file as it must be; gives its SHA-256."""
        path, data = file
        key, expected = f"{self.prefix}/{path}", hashlib.sha256(data).hexdigest()
        try:
            found = hashlib.sha256(self.store.get(key)).hexdigest()
        except FileNotFoundError:
            found = None
        if found != expected:
            if found != put_before.get(path):
                what = "was changed since it was written" if found else "is missing"
                log.warning("%s %s; it is written anew", self.store.where(key), what)
            self.store.put(key, data)
        return expected

    @property
    def _layout(self) -> str:
        return f"{self.prefix}/commits/layout.json"

    def commit_tokens(self, description: dict[str, Any]) -> None:
        """Say that every token is written. From now on the rows of every block are known."""
        digest = hashlib.sha256()
        for name in PARTS:
            part = self.part(name)
            for block in part.blocks:
                digest.update(part.tokens(block).tobytes())
        record = self.store.get_record(self._tokens) or description | {"token_fingerprints": {}}
        record["token_fingerprints"][str(self.part("train").num_sequences)] = digest.hexdigest()
        self.store.put_record(self._tokens, record)
        self.__dict__.pop("description", None)

    def inputs(self, site: Site, key: str) -> dict[str, Any] | None:
        """What training takes of a site's statistics, worked out under some configuration; None until `save_inputs` wrote it."""
        return self._worked_out(f"{self.prefix}/inputs/{site}-{key}.json")

    def save_inputs(self, site: Site, key: str, inputs: dict[str, Any]) -> None:
        self.store.put_record(f"{self.prefix}/inputs/{site}-{key}.json", inputs)

    def _worked_out(self, key: str) -> dict[str, Any] | None:
        """A record of what can be had again from the rest. A damaged one is reported and counts as none."""
        try:
            return self.store.get_record(key)
        except Corrupt as damage:
            log.warning("%s; it is worked out again", str(damage).partition("; delete it")[0])
            return None


class Part:
    """The training or the held-out part of a harvest."""

    def __init__(self, harvest: Harvest, name: str, layout: Layout) -> None:
        self.harvest = harvest
        self.name = name
        self.num_sequences = layout.sequences[name]
        self.num_blocks = layout.num_blocks(name)
        self.block_rows = layout.block_rows
        self.block_sequences = layout.block_sequences
        self.dtype = layout.dtype
        self.chunk_rows = layout.chunk_rows
        self._arrays = layout.arrays(name)
        self._indices: dict[tuple[Site, int], npt.NDArray[Any]] = {}
        self._room = threading.local()

    # Tokens and rows

    def write_tokens(self, block: int, tokens: Tokens, special: SpecialTokens, shuffle_seed: int) -> None:
        """Write a block's tokens, sequences x context, and with them which rows it will have, in which order."""
        first = block * self.block_sequences
        padded = np.zeros((self.block_sequences, tokens.shape[1]), dtype="<i4")
        padded[: len(tokens)] = tokens
        self._put("tokens", block, padded)
        sequence, position = np.nonzero(is_text(tokens, special))
        rows = np.full((self.block_rows, 2), -1, dtype="<i4")
        order = block_permutation(shuffle_seed, block, len(sequence))
        rows[: len(sequence)] = np.stack([first + sequence[order], position[order]], axis=1)
        self._put("rows", block, rows)

    def tokens(self, block: int) -> Tokens:
        """The tokens of a block, sequences x context."""
        return self._get("tokens", [block])[: self.num_sequences - block * self.block_sequences]

    def first_tokens(self, num_sequences: int) -> Tokens:
        blocks = range(-(-num_sequences // self.block_sequences))
        return self._get("tokens", blocks)[:num_sequences]

    def rows(self, block: int) -> npt.NDArray[np.int32]:
        """(sequence, position) of each row of a block, padding left out; sequences are counted from the part's beginning."""
        rows = self._get("rows", [block])
        return rows[rows[:, 0] >= 0]

    def valid(self, blocks: range | None = None) -> npt.NDArray[np.bool_]:
        """Which rows of some blocks, or of all, hold activations, not padding."""
        return self._get("rows", self.blocks if blocks is None else blocks)[:, 0] >= 0

    @property
    def blocks(self) -> range:
        return range(self.num_blocks)

    # Activations

    def harvested(self, block: int) -> set[Site]:
        """The sites whose activations of a block are committed."""
        record = self.harvest.store.get_record(self._commit(block))
        return {Site.parse(name) for name in record["sites"]} if record else set()

    def missing(self, sites: Sequence[Site]) -> list[int]:
        """Blocks that lack one of the sites."""
        return [block for block in self.blocks if self.lacks(block, sites)]

    def lacks(self, block: int, sites: Sequence[Site]) -> bool:
        return not set(sites) <= self.harvested(block)

    def claim(self, block: int, watch: bool) -> AbstractContextManager[None]:
        """The right to write a block, which any number of processes may ask for. As `Store.lock`; raises Taken when entered."""
        prefix = f"{self.harvest.prefix}/{self.name}"
        owns = [f"{prefix}/activations/*/c/{block}/*", f"{prefix}/statistics/*/*/c/{block}*", f"{prefix}/statistics/*/*/c/{block}/*"]
        return self.harvest.store.lock(f"{prefix}/{block}", [*owns, self._commit(block)], watch)

    def write_block(self, block: int, activations: dict[Site, Tensor]) -> None:
        """Write and commit a block.

        Args:
            activations: rows x D of each site, in the order of `rows(block)`, of any floating type; or with zeros up to `block_rows`
                and of the stored type, which saves a copy.

        Raises:
            JumpsuiteError: an activation is not finite.
        """
        # Sites beside each other: in a bucket most of the time is waiting, and on a disk the sums of one go on while another is written.
        with ThreadPoolExecutor(self._at_once, initializer=_step_back) as pool:
            for _ in pool.map(partial(self._write_site, block), activations, activations.values()):
                pass
        self._commit_sites(block, self.harvested(block) | set(activations))

    def _write_site(self, block: int, site: Site, x_BD: Tensor) -> None:
        x = bits_of(self._padded(x_BD))
        total, norms = np.empty(x.shape[1] + 1), np.empty(len(x), np.float32)
        total[-1] = sums(x, total[:-1], norms)
        if not np.isfinite(total[-1]):
            raise JumpsuiteError(
                f"{site} has activations in block {block} of {self.name} that are not finite; expected numbers; "
                "set model.dtype to float32 or leave the site out"
            )
        self._put(f"statistics/{site}/sums", block, total)
        self._put(f"statistics/{site}/norms", block, norms)
        self.harvest.store.put_pieces(self._object(f"activations/{site}", block), shards.encode(x, self.chunk_rows))

    def keep_only(self, blocks: Sequence[int]) -> None:
        """Remove the activations of all other blocks, at every site; what they were summed to stays."""
        store, kept = self.harvest.store, set(blocks)
        for key in store.keys(f"{self.harvest.prefix}/commits/{self.name}"):
            if int(key.rpartition("/")[2].removesuffix(".json")) not in kept:
                store.delete(key)
        prefix = f"{self.harvest.prefix}/{self.name}/activations"
        for key in store.keys(prefix):
            _, separator, place = key.removeprefix(prefix).partition("/c/")
            if separator and int(place.partition("/")[0]) not in kept:
                store.delete(key)
        self._indices.clear()

    def _padded(self, x_BD: Tensor) -> Tensor:
        """Of the stored type, with zeros up to a whole shard."""
        stored = x_BD.to(getattr(torch, self.dtype)).contiguous()
        if len(stored) == self.block_rows:
            return stored
        padded = torch.zeros(self.block_rows, stored.shape[1], dtype=stored.dtype)
        padded[: len(stored)] = stored
        return padded

    def norms(self, site: Site, blocks: range | None = None) -> npt.NDArray[np.float32]:
        """The Euclidean norm of each row of some blocks, or of all; zero for padding."""
        return self._get(f"statistics/{site}/norms", self.blocks if blocks is None else blocks)

    def moments(self, site: Site, blocks: range | None = None) -> Moments:
        """Sums over the rows of some blocks, or of all, merged in block order."""
        blocks = self.blocks if blocks is None else blocks
        sums = self._get(f"statistics/{site}/sums", blocks)
        counts = self.valid(blocks).reshape(len(blocks), self.block_rows).sum(1)
        found = [Moments(int(n), row[:-1], float(row[-1])) for n, row in zip(counts, sums, strict=True)]
        return sum(found[1:], start=found[0])

    def read(self, site: Site, chunks: Sequence[int], rows: Rows, room: Tensor | None = None) -> Tensor:
        """Rows of a site, in the order asked for.

        Args:
            chunks: those that hold the rows. rows: row numbers of the part.
            room: where to put them: from `room`, or by default memory of their own.
        """
        chunk_E, row_E = np.divmod(rows, self.chunk_rows)
        number_of = np.zeros(max(chunks) - min(chunks) + 1, np.uint16)  # so small that they are sorted by counting
        number_of[np.subtract(chunks, min(chunks))] = np.arange(len(chunks))
        number_E = number_of[chunk_E - min(chunks)]
        by_chunk = np.argsort(number_E, kind="stable")
        ends = np.cumsum(np.bincount(number_E, minlength=len(chunks)))
        x = (self.room(site, len(chunks)) if room is None else room)[: len(rows)]

        of_chunk = list(zip(chunks, np.split(by_chunk, ends[:-1]), strict=True))

        def fetch(first: int) -> None:
            for chunk, here in of_chunk[first :: self._at_once]:
                move(self._chunk(site, chunk), row_E[here], bits_of(x), here)

        for _ in self._readers.map(fetch, range(self._at_once)):
            pass
        return x

    @property
    def _at_once(self) -> int:
        return self.harvest.store.at_once

    @cached_property
    def _readers(self) -> ThreadPoolExecutor:
        """Threads that read chunks beside each other, each into memory of its own."""
        return ThreadPoolExecutor(self._at_once, thread_name_prefix="chunk")

    def room(self, site: Site, num_chunks: int, pinned: bool = False) -> Tensor:
        """Memory for the rows of so many chunks, to `read` into; pinned, so that a GPU takes them while other things are done."""
        width = self._arrays[f"activations/{site}"].shape[1]
        return torch.empty(num_chunks * self.chunk_rows, width, dtype=getattr(torch, self.dtype), pin_memory=pinned)

    def block_room(self, site: Site) -> Tensor:
        """Memory for the rows of a block, to be written with `write_block`."""
        return torch.empty(self.block_rows, self._arrays[f"activations/{site}"].shape[1], dtype=getattr(torch, self.dtype))

    def batches(self, site: Site, wanted: npt.NDArray[np.bool_]) -> Iterator[Tensor]:
        """The wanted rows of a site in store order, a chunk at a time; chunks without one are left out.

        Args:
            wanted: of all rows, or of as many as there are from the first on.
        """
        for chunk in range(-(-len(wanted) // self.chunk_rows)):
            mask = wanted[chunk * self.chunk_rows : (chunk + 1) * self.chunk_rows]
            if mask.any():
                yield _to_torch(self._chunk(site, chunk)[mask])

    def _chunk(self, site: Site, chunk: int) -> npt.NDArray[Any]:
        """The rows of a chunk, float32 or a bfloat16's bits: until this thread asks for the next one."""
        block, number = divmod(chunk, CHUNKS_PER_BLOCK)
        key, name, begin = self._object(f"activations/{site}", block), f"activations/{site}", chunk * self.chunk_rows
        try:
            if (site, block) not in self._indices:
                tail = self.harvest.store.get_end(key, shards.index_size(CHUNKS_PER_BLOCK))
                self._indices[site, block] = shards.read_index(tail, CHUNKS_PER_BLOCK)
            place, length = map(int, self._indices[site, block][number])
            shape = (self.chunk_rows, self._arrays[name].shape[1])
            if len(getattr(self._room, "bytes", b"")) < length:
                self._room.bytes = bytearray(length)
            return shards.decode(self.harvest.store.get_range(key, place, length, self._room.bytes), BITS[self.dtype], shape)
        except FileNotFoundError:
            raise self._damage(name, f"{name}/{self._arrays[name].path(block)} is missing", [block]) from None
        except ValueError as error:
            raise self._damage(name, f"{name} is damaged in rows {begin:,} to {begin + self.chunk_rows:,} ({error})", [block]) from None

    def _object(self, name: str, block: int) -> str:
        """The key of the object that an array has for a block."""
        return f"{self.harvest.prefix}/{self.name}/{name}/{self._arrays[name].path(block)}"

    def _commit(self, block: int) -> str:
        return f"{self.harvest.prefix}/commits/{self.name}/{block:06d}.json"

    def _put(self, name: str, block: int, values: npt.NDArray[Any]) -> None:
        """Write what an array has for a block."""
        self.harvest.store.put_pieces(self._object(name, block), shards.seal(values))

    def _get(self, name: str, blocks: Sequence[int]) -> Any:
        """What an array has for some blocks, one after another."""
        with ThreadPoolExecutor(self._at_once) as pool:
            found = list(pool.map(partial(self._try, name), blocks))
        damaged = [block for block, piece in zip(blocks, found, strict=True) if isinstance(piece, str)]
        if damaged:
            raise self._damage(name, next(piece for piece in found if isinstance(piece, str)), damaged)
        return np.concatenate(found)

    def _try(self, name: str, block: int) -> npt.NDArray[Any] | str:
        """What an array has for a block, or what is wrong with it."""
        array = self._arrays[name]
        try:
            return shards.decode(self.harvest.store.get(self._object(name, block)), array.dtype, array.of_block)
        except FileNotFoundError:
            return f"{name}/{array.path(block)} is missing"
        except ValueError as error:
            begin = block * array.of_block[0]
            return f"{name} is damaged in rows {begin:,} to {begin + array.of_block[0]:,} ({error})"

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
        return Struck(f"{where}; run again, which harvests block {numbers} of {site} anew, for it is struck from the harvest now")

    def _commit_sites(self, block: int, sites: set[Site]) -> None:
        self.harvest.store.put_record(self._commit(block), {"sites": sorted(str(site) for site in sites)})


def _step_back() -> None:
    """Leave the cores to the model, on Linux, where a thread has a priority of its own: whose threads wait for each other many times a second,
    so that one which has to wait for a writer stops them all."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 15)


def _to_torch(x: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(x).view(torch.bfloat16) if x.dtype == np.uint16 else torch.from_numpy(x)
