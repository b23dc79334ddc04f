"""A harvest by any number of processes, killed at any moment: always the same bytes."""

import hashlib
import multiprocessing
import os
import random
import signal
import time
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from s3_server import S3Server
from torch import Tensor

from core.site import Site
from core.suite import Suite
from storage import lease
from storage.catalogue import Catalogue
from storage.harvest import Part
from storage.places import Taken
from tasks.harvest import harvest_blocks
from tasks.tokenise import tokenise

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tasks.harvest", "tasks.tokenise", "transformers.models.gemma3.modeling_gemma3"])


def work(suite: Suite, store: str, environment: dict[str, str]) -> None:
    """All that a worker does: what is missing and no other has claimed."""
    os.environ.update(environment)
    lease.SILENCE = 6.0
    torch.set_num_threads(1)
    catalogue = Catalogue(suite, store)
    tokenise.fn(catalogue)
    harvest_blocks.fn(catalogue)


def start(suite: Suite, store: str | Path) -> BaseProcess:
    process = PROCESSES.Process(target=work, args=(suite, str(store), dict(os.environ)))
    process.start()
    return process


@pytest.fixture
def suite(tiny_suite: dict[str, Any]) -> Suite:
    return Suite.model_validate(tiny_suite)


@pytest.fixture
def alone(suite: Suite, tmp_path: Path) -> dict[str, str]:
    """What one worker makes that nobody disturbs."""
    worker = start(suite, tmp_path / "alone")
    worker.join()
    assert worker.exitcode == 0
    made = checksums(tmp_path / "alone")
    assert len([name for name in made if "/activations/" in name and "/c/" in name]) == 6 * 40
    return made


def checksums(store: Path) -> dict[str, str]:
    files = [path for folder in ("harvests", "locks") for path in (store / folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)}


@pytest.mark.long
@pytest.mark.parametrize("workers", [2, 4])
def test_any_number_of_workers_make_the_same_bytes_and_share_the_work(workers: int, alone: dict[str, str], suite: Suite, tmp_path: Path) -> None:
    together = [start(suite, tmp_path / "together") for _ in range(workers)]
    for worker in together:
        worker.join()
    assert [worker.exitcode for worker in together] == [0] * workers
    assert checksums(tmp_path / "together") == alone


def test_every_block_is_claimed_until_it_is_written(suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue, write, seen = Catalogue(suite, tmp_path / "runs"), Part.write_block, []

    def write_late(part: Part, block: int, activations: dict[Site, Tensor]) -> None:
        time.sleep(0.05)  # for whoever may let go of the claim meanwhile
        with pytest.raises(Taken), part.claim(block, watch=False):
            pass
        seen.append((part.name, block))
        write(part, block, activations)

    monkeypatch.setattr(Part, "write_block", write_late)
    tokenise.fn(catalogue)
    harvest_blocks.fn(catalogue)
    assert len(seen) == 40
    assert not list((tmp_path / "runs/locks").iterdir())


@pytest.mark.long
def test_workers_share_a_bucket_and_take_over_from_the_dead(alone: dict[str, str], suite: Suite, s3: S3Server) -> None:
    workers = [start(suite, "s3://bucket/runs") for _ in range(2)]
    store = s3.root / "bucket/runs"
    # Both are at work: what the first holds when it dies is then among what the second found missing, and it looks after it.
    while (len(list(store.glob("harvests/*/commits/train/*"))) < 10 or not holds_a_block(store, workers[1])) and workers[0].is_alive():
        time.sleep(0.05)
    assert workers[0].is_alive()
    os.kill(workers[0].pid or 0, signal.SIGKILL)
    workers[1].join()
    assert workers[1].exitcode == 0
    assert checksums(store) == alone


def holds_a_block(store: Path, worker: BaseProcess) -> bool:
    """Whether a worker has a lease; leases come and go while they are looked for."""
    for path in store.glob("locks/*-train-*.json"):
        with suppress(FileNotFoundError):
            if f'"process": {worker.pid},'.encode() in path.read_bytes():
                return True
    return False


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 3])
def test_a_harvest_killed_at_random_moments_ends_in_the_same_bytes(workers: int, alone: dict[str, str], suite: Suite, tmp_path: Path) -> None:
    assert killed(4, workers, alone, suite, tmp_path) == 4


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_a_harvest_killed_at_fifty_random_moments_ends_in_the_same_bytes(workers: int, alone: dict[str, str], suite: Suite, tmp_path: Path) -> None:
    assert killed(50, workers, alone, suite, tmp_path) == 50


def killed(kills: int, workers: int, expected: dict[str, str], suite: Suite, folder: Path) -> int:
    """Harvest again and again, killing one worker, and another one, until so many were; gives how many were killed at work."""
    chance, done, harvests = random.Random(workers), 0, 0  # noqa: S311
    moments = []
    while done < kills:
        store, harvests = folder / f"harvest {harvests}", harvests + 1
        running = [start(suite, store) for _ in range(workers)]
        for moment in sorted(chance.randrange(len(expected)) for _ in range(min(4, kills - done))):
            while len(files(store)) < moment and any(worker.is_alive() for worker in running):
                time.sleep(0.005)
            time.sleep(chance.uniform(0, 0.05))
            victim = chance.choice(running)
            victim.kill()
            victim.join()
            if victim.exitcode == -signal.SIGKILL:
                done += 1
                moments.append(len(files(store)))
            running.remove(victim)
            running.append(start(suite, store))
        for worker in running:
            worker.join()
            assert worker.exitcode == 0
        assert checksums(store) == expected
    print(f"\n{workers} workers: {done} killed in {harvests} harvests, at {sorted(moments)} of {len(expected)} files")
    return done


def files(store: Path) -> list[Path]:
    return list((store / "harvests").rglob("*"))
