"""One site a GPU, whatever workers do: one that was killed may leave a run behind for some seconds, and a new one start the next beside it."""

import fcntl
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from flows.workers import on_workers

log = logging.getLogger(__name__)


@contextmanager
def own_gpus() -> Iterator[None]:
    """Have the GPUs that this process sees for its run alone, among the runs that workers start on this machine."""
    with ExitStack() as held:
        if on_workers() and torch.cuda.is_available():
            for index in range(torch.cuda.device_count()):
                held.enter_context(alone(f"gpu-{torch.cuda.get_device_properties(index).uuid}"))
        yield


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Wait until no other process has this name, and have it while the block runs. The system takes it from who dies."""
    path = Path(tempfile.gettempdir()) / f"jumpsuite-{name}.lock"
    with open(os.open(path, os.O_CREAT | os.O_RDWR, 0o666), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("%s is used by another run; waiting until it ends", name)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
