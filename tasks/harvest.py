"""Harvest: the activations of every site, block by block, each block from one pass over its sequences."""

import logging
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

import torch
from prefect import task
from prefect.cache_policies import NO_CACHE
from torch import Tensor

from core.anatomy import Anatomy, device_of
from core.rows import bits_of, move
from core.site import Site
from storage.catalogue import Catalogue
from storage.harvest import Part
from storage.layout import PARTS
from storage.objects import LOOK_SECONDS
from storage.places import Taken
from tasks.progress import Progress
from tasks.resources import borrowed_anatomy, require_room, warn_of_slow_bfloat16

log = logging.getLogger(__name__)


@task(task_run_name="harvest {catalogue.suite.name}", cache_policy=NO_CACHE)
def harvest_blocks(catalogue: Catalogue, turn: int | None = None) -> None:
    """Leave every block of the suite's sites in the harvest; blocks that are there are not made again.

    Any number of processes may do so at once: each claims block after block, and ends when all are there.

    Args:
        turn: of a rolling harvest, the turn whose window is to be there.
    """
    sites = list(catalogue.sites)
    window = {} if turn is None else {"train": catalogue.suite.window(turn)}
    parts = map(catalogue.harvest.part, PARTS)
    missing = [(part, block) for part in parts for block in window.get(part.name, part.blocks) if part.lacks(block, sites)]
    if not missing:
        return
    require_room(catalogue, [device_of(catalogue.suite.device)], at_all=True)  # for training too, or the harvest were in vain
    warn_of_slow_bfloat16("model.dtype", catalogue.suite.model.dtype, device_of(catalogue.suite.device))
    total = sum(part.tokens(block).size for part, block in missing)
    # A block is written while the model runs over the next one, so two are in memory, the same again and again.
    with (
        Progress(f"harvest {len(sites)} sites", total, "tokens") as progress,
        ExitStack() as claims,  # which outlive the writer
        ThreadPoolExecutor(1, thread_name_prefix="write") as writer,
    ):
        writing: Future[None] | None = None
        rooms: tuple[dict[Site, Tensor], dict[Site, Tensor]] = ({}, {})
        for number, (part, block, claim) in enumerate(_claimed(missing, sites, claims, progress)):
            room = rooms[number % 2]
            lacking = sorted(set(sites) - part.harvested(block))
            for site in lacking:
                if site not in room:
                    room[site] = part.block_room(site)
            activations = {site: room[site] for site in lacking}
            with borrowed_anatomy(catalogue) as anatomy:
                _gather(anatomy, part, block, activations, catalogue.suite.harvest.batch_sequences, progress)
            if writing:
                writing.result()
            writing = writer.submit(_write, part, block, activations, claim)
        if writing:
            writing.result()


def _claimed(missing: list[tuple[Part, int]], sites: list[Site], claims: ExitStack, progress: Progress) -> Iterator[tuple[Part, int, ExitStack]]:
    """Each block that lacks a site, when it is ours to write, until none lacks any.

    Its claim is to be closed once it is written; those that an error leaves open are closed with `claims`.
    """
    watch = False
    while missing:
        taken = []
        for part, block in missing:
            claim = ExitStack()
            try:
                claim.enter_context(part.claim(block, watch))
            except Taken:
                taken.append((part, block))
                continue
            claims.enter_context(claim)
            if part.lacks(block, sites):
                yield part, block, claim
            else:
                progress.advance(part.tokens(block).size)
                claim.close()
        # What others have claimed they may finish, or die of.
        watch = len(taken) == len(missing)
        if watch:
            time.sleep(LOOK_SECONDS)
        missing = taken


def _write(part: Part, block: int, activations: dict[Site, Tensor], claim: ExitStack) -> None:
    with claim:
        part.write_block(block, activations)


@torch.inference_mode()
def _gather(anatomy: Anatomy, part: Part, block: int, room: dict[Site, Tensor], batch_sequences: int, progress: Progress) -> None:
    """Fill block rows x D of each site in the block's shuffled order, and with zeros where it has fewer rows."""
    tokens = torch.from_numpy(part.tokens(block)).long()
    rows = torch.from_numpy(part.rows(block)).long()
    sequence, position = rows[:, 0] - block * part.block_sequences, rows[:, 1]
    device = next(anatomy.model.parameters()).device
    of_batch: dict[Site, Tensor] = {}
    source = target = rows
    pieces = range(torch.get_num_threads())

    def move_to_block(site: Site, x: Tensor) -> None:
        x_XD, block_BD = x.flatten(0, 1), room[site]
        if x.is_cpu and x.dtype in (block_BD.dtype, torch.float32):
            whole = bits_of(x_XD.contiguous()), bits_of(block_BD)
            for _ in pool.map(lambda n: move(whole[0], source[n :: len(pieces)].numpy(), whole[1], target[n :: len(pieces)].numpy()), pieces):
                pass
        else:
            block_BD[target] = x_XD[source.to(x.device)].to(block_BD.dtype).cpu()

    def keep(site: Site, x: Tensor) -> None:
        if x.is_cpu:
            # At once, while it is in the cache: then the model's next layer takes the memory of the last one.
            move_to_block(site, x)
        else:
            of_batch[site] = x  # the device goes on meanwhile

    for x_BD in room.values():
        x_BD[len(rows) :] = 0
    with ThreadPoolExecutor(len(pieces), thread_name_prefix="gather") as pool, anatomy.capture(list(room), keep):
        for first in range(0, len(tokens), batch_sequences):
            batch = tokens[first : first + batch_sequences]
            target = torch.nonzero((sequence >= first) & (sequence < first + len(batch)))[:, 0]
            source = (sequence[target] - first) * batch.shape[1] + position[target]
            anatomy.run_to(max(site.layer for site in room), batch.to(device))
            for site, x in of_batch.items():
                move_to_block(site, x)
            progress.advance(batch.numel())
