"""Train: every dictionary of a site that is not finished, in one run, on one read of its rows."""

import logging
import statistics
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any

import torch
from prefect import task
from prefect.cache_policies import NO_CACHE
from torch import Tensor

from core.anatomy import devices_of
from core.errors import JumpsuiteError, SickDictionary
from core.order import TrainingOrder
from core.sharding import Shards
from core.site import Site
from core.statistics import Moments, norm_limit
from core.suite import Suite
from core.trainer import Trainer, train_together
from storage.catalogue import Catalogue
from storage.dictionaries import DictionaryFolder
from storage.harvest import Part
from tasks.processes import in_processes
from tasks.progress import Progress
from tasks.provenance import code
from tasks.resources import warn_of_slow_bfloat16

log = logging.getLogger(__name__)


@task(task_run_name="train {site}", cache_policy=NO_CACHE)
def train_site(catalogue: Catalogue, site: Site) -> None:
    """Leave every dictionary of the site finished in the store; continue from checkpoints, do nothing for finished ones.

    Raises:
        ConfigError: there are fewer devices than `training.shards`.
        JumpsuiteError: some dictionary fell sick, after all others are finished; or a process that trains a shard died.
    """
    folders = [catalogue.folder(spec) for spec in catalogue.sites[site]]
    for folder in folders:
        (folder.tidy if folder.done else folder.forget_failure)()
    folders = [folder for folder in folders if not folder.done]
    if not folders:
        return
    devices = devices_of(catalogue.suite.device, catalogue.suite.training.shards)
    if len(devices) == 1:
        warn_of_slow_bfloat16("training.encoder_product", catalogue.suite.training.encoder_product, devices[0])
        _train(catalogue, site, devices[0])
    else:
        in_processes(_train_shards, (catalogue.suite, catalogue.store.address, site), devices)
    if sick := [failure for folder in folders if (failure := folder.failure)]:
        raise JumpsuiteError("; ".join(sick))


def _train_shards(shards: Shards, suite: Suite, store: str, site: Site) -> None:
    """One process's part of the training of a site. Each reads all rows for itself: which ones make a batch is no one's choice."""
    _train(Catalogue(suite, store), site, shards.device, shards)


def _train(catalogue: Catalogue, site: Site, device: torch.device, shards: Shards | None = None) -> None:
    """Train what is not finished, on one device, or as one of several processes that do the same with a shard each."""
    folders = [folder for folder in map(catalogue.folder, catalogue.sites[site]) if not folder.done]
    training, stores = catalogue.suite.training, shards is None or shards.stores
    part = catalogue.harvest.part("train")
    limit, kept = rows_within_norm(part, site, training.max_norm)
    moments = part.moments(site) if kept.all() else _moments(part, site, kept)
    normaliser = moments.normaliser(training.inputs)
    inputs = _input_facts(part, site, moments, limit)
    facts: dict[str, Any] = {"harvest": catalogue.harvest.key, "training": training.identity(), "inputs": inputs, "code": code()}
    log.info("%s: %s", site, describe_filter(inputs))

    trainers = {folder.spec: Trainer(folder.spec, training, normaliser, device, shards) for folder in folders}
    for folder in folders:
        trainer = trainers[folder.spec]
        checkpoint = folder.load_checkpoint() if stores else None
        if checkpoint := shards.agree(checkpoint) if shards else checkpoint:
            trainer.load_state(*checkpoint)

    def on_sick(trainer: Trainer, sickness: SickDictionary) -> None:
        log.error("%s", sickness)
        if stores:
            catalogue.folder(trainer.spec).fail(str(sickness))

    order = TrainingOrder(kept, chunk_rows=part.chunk_rows, shuffle_rows=training.shuffle_rows, seed=training.order_seed)
    start, end = min(t.step for t in trainers.values()), max(t.num_steps for t in trainers.values())
    with (
        closing(_Reader(part, site, order, training.batch_rows, end, device)) as reader,
        Progress(f"train {site}", end * training.batch_rows, "rows", start * training.batch_rows, silent=not stores) as progress,
    ):
        began = time.perf_counter()
        for steps in train_together(list(trainers.values()), reader.batch, on_sick):
            progress.advance(training.batch_rows, _note(list(trainers.values())))
            for folder in folders:
                trainer = trainers[folder.spec]
                if trainer.step == steps and not trainer.sick:
                    _keep(folder, trainer, training.checkpoint_steps, facts, stores)
        seconds = time.perf_counter() - began
        if reader.waited > 0.05 * seconds:
            log.info("%s: of %.1f s of training, %.1f s were spent waiting for rows", site, seconds, reader.waited)


def rows_within_norm(part: Part, site: Site, max_norm: float | None, limit: float | None = None) -> tuple[float, Any]:
    """The norm limit of a site, and which rows of the part are within it."""
    norms, valid = part.norms(site), part.valid
    limit = norm_limit(norms[valid], max_norm) if limit is None else limit
    return limit, valid & (norms <= limit)


def _moments(part: Part, site: Site, kept: Any) -> Moments:
    pieces = [Moments.of(batch) for batch in part.batches(site, kept)]
    return sum(pieces[1:], start=pieces[0])


def _input_facts(part: Part, site: Site, moments: Moments, limit: float) -> dict[str, Any]:
    every = part.moments(site)
    return {
        "rows": every.rows,
        "rows_left_out": every.rows - moments.rows,
        "square_left_out": 1 - moments.total_square / every.total_square,
        "norm_limit": limit if limit != float("inf") else None,
        "mean_square": moments.mean_square,
        "share_of_mean": float(moments.mean @ moments.mean) / moments.mean_square,
    }


def describe_filter(inputs: dict[str, Any]) -> str:
    """What the maximum norm left out of a site, in a sentence."""
    if not inputs["rows_left_out"]:
        return f"{inputs['rows']:,} rows, none left out"
    share = inputs["rows_left_out"] / inputs["rows"]
    return (
        f"{inputs['rows']:,} rows; {inputs['rows_left_out']:,} ({share:.3%}) have a norm above {inputs['norm_limit']:,.0f} and are left out, "
        f"and with them {inputs['square_left_out']:.0%} of the squared norm"
    )


class _Reader:
    """Batches of a site, each group of rows read once for all its dictionaries, and the next one while the present one is trained on."""

    def __init__(self, part: Part, site: Site, order: TrainingOrder, batch_rows: int, num_steps: int, device: torch.device) -> None:
        self.part, self.site, self.order, self.batch_rows, self.device = part, site, order, batch_rows, device
        self.num_rows = num_steps * batch_rows
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="read")
        self.groups: dict[tuple[int, int], Future[Tensor]] = {}
        self.waited = 0.0
        """Seconds that training stood still for rows that had been asked for ahead."""

    def batch(self, t: int) -> Tensor:
        return self.order.batch(t, self.batch_rows, self._group).to(self.device, non_blocking=True)

    def _group(self, epoch: int, group: int) -> Tensor:
        present, following = (epoch, group), self.order.group_after(epoch, group)
        wanted = [present] + [following] * (self.order.group_start(*following) < self.num_rows)
        ahead = present in self.groups
        self.groups = {key: self.groups.get(key) or self.thread.submit(self._read, *key) for key in wanted}
        start = time.perf_counter()
        rows = self.groups[present].result()
        self.waited += (time.perf_counter() - start) * ahead
        return rows

    def _read(self, epoch: int, group: int) -> Tensor:
        rows = self.part.read(self.site, *self.order.group(epoch, group))
        # Pinned here, once a group, so that a batch goes to the device while the host and the device do other things.
        return rows.pin_memory() if self.device.type == "cuda" else rows

    def close(self) -> None:
        self.thread.shutdown(cancel_futures=True)


def _note(trainers: list[Trainer]) -> str:
    """How dictionaries fare: of a few each one, of many the least and the most, in a line that a terminal can hold."""
    points = [trainer.history[-1] for trainer in trainers if trainer.history]
    if len(points) <= 3:
        return " | ".join(f"error {point['error']:.3f} L0 {point['l0']:.0f}" for point in points)
    errors, l0s = sorted(point["error"] for point in points), sorted(point["l0"] for point in points)
    return f"{len(points)} dictionaries: error {errors[0]:.3f} to {errors[-1]:.3f}, L0 {l0s[0]:.0f} to {l0s[-1]:.0f}"


def _keep(folder: DictionaryFolder, trainer: Trainer, checkpoint_steps: int, facts: dict[str, Any], stores: bool) -> None:
    """Store a trainer after a step: finished, or as a checkpoint when one is due. Shards give what they have to the one that stores."""
    if trainer.done:
        dictionary = trainer.fold()
        if stores:
            folder.note_pace(statistics.fmean(trainer.seconds))
            folder.finish(dictionary, facts | {"spec": folder.spec.identity(), "history": trainer.history})
    elif trainer.step % checkpoint_steps == 0:
        state = trainer.state()
        if stores:
            folder.save_checkpoint(*state)
