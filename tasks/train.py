"""Train: every dictionary of a site that is not finished, in one run, on one read of its rows."""

import logging
import statistics
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from prefect import task
from prefect.cache_policies import NO_CACHE
from torch import Tensor

from core.anatomy import devices_of
from core.errors import JumpsuiteError, SickDictionary
from core.key import key_of
from core.machine import hardware
from core.order import TrainingOrder
from core.sharding import Shards
from core.site import Site
from core.statistics import Moments, Normaliser, norm_limit
from core.suite import Suite
from core.trainer import Trainer, train_together
from storage.catalogue import Catalogue
from storage.dictionaries import DictionaryFolder
from storage.harvest import Part
from tasks.processes import in_processes
from tasks.progress import Progress
from tasks.provenance import code
from tasks.resources import require_room, warn_of_slow_bfloat16
from tasks.signals import held_back, never
from tasks.starting import starting_points

log = logging.getLogger(__name__)


@task(task_run_name="train {site}", cache_policy=NO_CACHE)
def train_site(catalogue: Catalogue, site: Site, until: int | None = None) -> None:
    """Leave every dictionary of the site finished in the store; continue from checkpoints, do nothing for finished ones.

    Args:
        until: the turn after which to leave off, with a checkpoint: of a rolling harvest what follows need not be there yet. A dictionary
            that fell sick in an earlier turn is left.

    Raises:
        ConfigError: there are fewer devices than `training.shards`, or less memory on one than the site needs.
        JumpsuiteError: some dictionary fell sick, after all others are finished; or a process that trains a shard died.
    """
    folders = [catalogue.folder(spec) for spec in catalogue.sites[site]]
    for folder in folders:
        if folder.done:
            folder.tidy()
        elif until is None:
            folder.forget_failure()
    folders = [folder for folder in folders if not (folder.done or folder.failure)]
    if not folders:
        return
    devices = devices_of(catalogue.suite.device, catalogue.suite.training.shards)
    require_room(catalogue.of([site]), devices)
    if len(devices) == 1:
        warn_of_slow_bfloat16("training.encoder_product", catalogue.suite.training.encoder_product, devices[0])
        _train(catalogue, site, devices[0], until)
    else:
        in_processes(_train_shards, (catalogue.suite, catalogue.store.address, site, until), devices)
    sick = [failure for spec in catalogue.sites[site] if (failure := catalogue.folder(spec).failure)]
    if sick and all(folder.done or folder.failure for folder in folders):
        raise JumpsuiteError("; ".join(sick))


def _train_shards(shards: Shards, suite: Suite, store: str, site: Site, until: int | None) -> None:
    """One process's part of the training of a site. Each reads all rows for itself: which ones make a batch is no one's choice."""
    _train(Catalogue(suite, store, only=str(site)), site, shards.device, until, shards)


def _train(catalogue: Catalogue, site: Site, device: torch.device, until: int | None, shards: Shards | None = None) -> None:
    """Train what is not finished, on one device, or as one of several processes that do the same with a shard each."""
    folders = [folder for folder in map(catalogue.folder, catalogue.sites[site]) if not (folder.done or folder.failure)]
    training, stores = catalogue.suite.training, shards is None or shards.stores
    part, (normaliser, inputs) = catalogue.harvest.part("train"), site_inputs(catalogue, site)
    facts: dict[str, Any] = {"harvest": catalogue.harvest.key, "training": training.identity(), "inputs": inputs, "code": code()}

    trainers = {folder.spec: Trainer(folder.spec, training, normaliser, device, shards) for folder in folders}
    for folder in folders:
        trainer = trainers[folder.spec]
        checkpoint = folder.load_checkpoint() if stores else None
        if checkpoint := shards.agree(checkpoint) if shards else checkpoint:
            trainer.load_state(*checkpoint)
    for spec, begun in starting_points(catalogue, [spec for spec, trainer in trainers.items() if not trainer.step]).items():
        trainers[spec].begin_from(begun.dictionary, begun.facts)

    def on_sick(trainer: Trainer, sickness: SickDictionary) -> None:
        log.error("%s", sickness)
        if stores:
            catalogue.folder(trainer.spec).fail(str(sickness))

    order = training_order(catalogue, site)
    start, end = min(t.step for t in trainers.values()), max(t.num_steps for t in trainers.values())
    stop = end if until is None else min(end, order.steps(until))
    if not start:
        log.info("%s: %s", site, describe_filter(inputs))
    with (
        closing(Reader(part, site, order, stop, device)) as reader,
        Progress(f"train {site}", end * training.batch_rows, "rows", start * training.batch_rows, silent=not stores) as progress,
        nullcontext(never) if shards else held_back() as told_to_end,  # shards that end at different steps would wait for each other
    ):
        began = time.perf_counter()
        for steps in train_together(list(trainers.values()), reader.batch, on_sick, stop):
            progress.advance(training.batch_rows, _note(list(trainers.values())))
            for folder in folders:
                trainer = trainers[folder.spec]
                if trainer.step == steps and not trainer.sick:
                    due = steps == stop or steps % training.checkpoint_steps == 0 or told_to_end()
                    _keep(folder, trainer, due, facts, stores)
            if told_to_end():
                break
        seconds = time.perf_counter() - began
        if reader.waited > 0.05 * seconds:
            log.info("%s: of %.1f s of training, %.1f s were spent waiting for rows", site, seconds, reader.waited)


def training_order(catalogue: Catalogue, site: Site) -> TrainingOrder:
    """Which rows of a site make which batch. Of each window it asks for, the statistics must be there."""
    suite, part = catalogue.suite, catalogue.harvest.part("train")
    limit = site_inputs(catalogue, site)[1]["norm_limit"]
    return TrainingOrder(
        lambda window: rows_within(part, site, limit, suite.window(window)),
        suite.num_windows,
        suite.window_blocks * part.block_rows,
        batch_rows=suite.training.batch_rows,
        chunk_rows=part.chunk_rows,
        shuffle_rows=suite.training.shuffle_rows,
        seed=suite.training.order_seed,
        known_rows=_known_rows(catalogue, site),
    )


def site_inputs(catalogue: Catalogue, site: Site) -> tuple[Normaliser, dict[str, Any]]:
    """How training takes a site's rows, from the first window: what they are normalised by, and the norm above which they are left out.

    Worked out once and kept, for of a rolling harvest that window is not always there.
    """
    known = catalogue.harvest.inputs(site, _inputs_key(catalogue.suite))
    if known is None:
        normaliser, facts = _work_out_inputs(catalogue, site)
        known = {"mean": normaliser.mean.tolist(), "scale": normaliser.scale, "facts": facts}
        catalogue.harvest.save_inputs(site, _inputs_key(catalogue.suite), known)
    return Normaliser(torch.tensor(known["mean"], dtype=torch.float32), known["scale"]), known["facts"]


def _inputs_key(suite: Suite) -> str:
    return key_of(suite.training.inputs, suite.training.max_norm, suite.window_blocks)


def been_through(catalogue: Catalogue, site: Site, turn: int) -> bool:
    """Whether every dictionary of a site that is still to be trained has a checkpoint from after a turn, which `enter` was called of."""
    if len(_known_rows(catalogue, site)) <= min(turn, catalogue.suite.num_windows - 1):
        return False  # nobody has been through what was never harvested
    steps = training_order(catalogue, site).steps(turn)
    return all(folder.progress >= steps for folder in map(catalogue.folder, catalogue.sites[site]) if not (folder.done or folder.failure))


def enter(catalogue: Catalogue, site: Site, turn: int) -> bool:
    """Note what a turn's window, which must be there, holds for a site; gives whether a dictionary of it is trained on more than that.

    From then on no one need read a window's statistics to know which steps are its own.
    """
    order, window = training_order(catalogue, site), turn % catalogue.suite.num_windows
    known = _known_rows(catalogue, site)
    if len(known) == window:
        catalogue.harvest.save_inputs(site, _windows_key(catalogue.suite), {"kept_rows": [*known, order.kept_rows(window)]})
    return any(catalogue.suite.training.num_steps(spec.tokens) > order.steps(turn) for spec in catalogue.sites[site])


def _known_rows(catalogue: Catalogue, site: Site) -> list[int]:
    """How many rows are kept of each window that a rolling harvest has had so far."""
    record = catalogue.harvest.inputs(site, _windows_key(catalogue.suite))
    return list(record["kept_rows"]) if record else []


def _windows_key(suite: Suite) -> str:
    return f"windows-{_inputs_key(suite)}-{suite.num_blocks}"


def _work_out_inputs(catalogue: Catalogue, site: Site) -> tuple[Normaliser, dict[str, Any]]:
    part, training, first = catalogue.harvest.part("train"), catalogue.suite.training, catalogue.suite.window(0)
    limit = None
    if training.max_norm is not None:
        limit = norm_limit(part.norms(site, first)[part.valid(first)], training.max_norm)
    kept = rows_within(part, site, limit, first)
    every = part.moments(site, first)
    moments = moments_of(part, site, kept, every)
    return moments.normaliser(training.inputs), {
        "rows": every.rows,
        "rows_left_out": every.rows - moments.rows,
        "square_left_out": 1 - moments.total_square / every.total_square,
        "norm_limit": limit,
        "mean_square": moments.mean_square,
        "share_of_mean": float(moments.mean @ moments.mean) / moments.mean_square,
    }


def rows_within(part: Part, site: Site, limit: float | None, blocks: range | None = None) -> npt.NDArray[np.bool_]:
    """Which rows of some blocks, or of all, have a norm of at most the limit."""
    valid = part.valid(blocks)
    return valid if limit is None else valid & (part.norms(site, blocks) <= limit)


def moments_of(part: Part, site: Site, kept: npt.NDArray[np.bool_], every: Moments) -> Moments:
    """Sums over some rows, which are read for it unless they are all that `every` is of."""
    if kept.sum() == every.rows:
        return every
    pieces = [Moments.of(batch) for batch in part.batches(site, kept)]
    return sum(pieces[1:], start=pieces[0])


def describe_filter(inputs: dict[str, Any]) -> str:
    """What the maximum norm left out of a site, in a sentence."""
    if not inputs["rows_left_out"]:
        return f"{inputs['rows']:,} rows, none left out"
    share = inputs["rows_left_out"] / inputs["rows"]
    return (
        f"{inputs['rows']:,} rows; {inputs['rows_left_out']:,} ({share:.3%}) have a norm above {inputs['norm_limit']:,.0f} and are left out, "
        f"and with them {inputs['square_left_out']:.0%} of the squared norm"
    )


class Reader:
    """Batches of a site, each group of rows read once for all its dictionaries, and the next one while the present one is trained on.

    A batch may lie in memory that the next but one is read into, so it is to be used before another is asked for.
    """

    def __init__(self, part: Part, site: Site, order: TrainingOrder, num_steps: int, device: torch.device) -> None:
        self.part, self.site, self.order, self.device = part, site, order, device
        self.num_rows = num_steps * order.batch_rows
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="read")
        self.groups: dict[tuple[int, int], Future[Tensor]] = {}
        self.used: list[Future[Tensor]] = []
        """Groups that are done with, but for the batch that is trained on."""
        self.free: list[Tensor] = []
        """Memory to read into: what is taken from the system, and pinned, anew for each group costs more than reading does."""
        self.waited = 0.0
        """Seconds that training stood still for rows that had been asked for ahead."""

    def batch(self, t: int) -> Tensor:
        if self.used:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)  # the last batches may still be on their way to it
            self.free += [group.result() for group in self.used]
            self.used = []
        return self.order.batch(t, self._group).to(self.device, non_blocking=True)

    def _group(self, turn: int, group: int) -> Tensor:
        present, wanted = (turn, group), [(turn, group)]
        if self.order.group_end(turn, group) < self.num_rows:
            wanted.append(self.order.group_after(turn, group))
        ahead = present in self.groups
        self.used += [read for key, read in self.groups.items() if key not in wanted]
        self.groups = {key: self.groups.get(key) or self.thread.submit(self._read, *key) for key in wanted}
        start = time.perf_counter()
        rows = self.groups[present].result()
        self.waited += (time.perf_counter() - start) * ahead
        return rows

    def _read(self, turn: int, group: int) -> Tensor:
        """A group's rows, with room behind them."""
        chunks, rows = self.order.group(turn, group)
        fitting = [index for index, room in enumerate(self.free) if len(room) >= len(rows)]
        room = self.free.pop(fitting[0]) if fitting else self.part.room(self.site, len(chunks), pinned=self.device.type == "cuda")
        self.part.read(self.site, chunks, rows, room)
        return room

    def close(self) -> None:
        self.thread.shutdown(cancel_futures=True)


def _note(trainers: list[Trainer]) -> str:
    """How dictionaries fare: of a few each one, of many the least and the most, in a line that a terminal can hold."""
    points = [trainer.history[-1] for trainer in trainers if trainer.history]
    if len(points) <= 3:
        return " | ".join(f"error {point['error']:.3f} L0 {point['l0']:.0f}" for point in points)
    errors, l0s = sorted(point["error"] for point in points), sorted(point["l0"] for point in points)
    return f"{len(points)} dictionaries: error {errors[0]:.3f} to {errors[-1]:.3f}, L0 {l0s[0]:.0f} to {l0s[-1]:.0f}"


def _keep(folder: DictionaryFolder, trainer: Trainer, due: bool, facts: dict[str, Any], stores: bool) -> None:
    """Store a trainer after a step: finished, or as a checkpoint when one is due. Shards give what they have to the one that stores."""
    if trainer.done:
        dictionary = trainer.fold()
        if stores:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            folder.note_pace(seconds_a_step=statistics.fmean(trainer.seconds), hardware=hardware(trainer.dictionary.b_dec.device), finished=now)
            begun = {"start": trainer.begun_from} if trainer.begun_from else {}
            folder.finish(dictionary, facts | begun | {"spec": folder.spec.identity(), "history": trainer.history})
    elif due:
        state = trainer.state()
        if stores:
            folder.save_checkpoint(*state)
