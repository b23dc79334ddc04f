"""Processes: one piece of work done by several processes of this machine together, each on a device of its own.

They meet as a process group: nccl between GPUs, gloo in main memory. None can go on without the others, so they end together. What the
first one logs, and the error that one of them ends with, come out here, as if the work had been done in this process.
"""

import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from logging.handlers import QueueHandler
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessContext, ProcessException, ProcessExitedException, start_processes

from core.errors import JumpsuiteError
from core.sharding import Shards

PATIENCE = timedelta(days=1)
"""Longest wait for another process, such as the first while it stores a checkpoint. One that dies is noticed here, at once."""

LOOK_SECONDS = 0.1


def in_processes(work: Callable[..., None], arguments: tuple[Any, ...], devices: list[torch.device]) -> None:
    """Call `work(shards, *arguments)` once for each device, in a process of its own; returns when all have.

    Args:
        work: a function of a module, which the new processes import.

    Raises:
        JumpsuiteError: a process died.
        Exception: what one of them raised first.
    """
    messages = get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        meeting = (Path(folder) / "meeting").as_uri()
        given = (work, arguments, devices, meeting, messages)
        context: ProcessContext = start_processes(_process, given, len(devices), join=False, daemon=True)  # type: ignore[no-untyped-call]
        errors: list[Exception] = []
        try:
            while not context.join(timeout=LOOK_SECONDS):
                errors += _heard(messages)
            errors += _heard(messages)
        except ProcessException as ended:
            errors += _heard(messages)
            raise _death(context, ended) or (errors[0] if errors else ended) from ended  # those of the others follow from the first
        finally:
            for process in context.processes:
                process.kill()
                process.join()


def _process(rank: int, work: Callable[..., None], arguments: tuple[Any, ...], devices: list[torch.device], meeting: str, messages: Any) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    handler = _Told(messages) if rank == 0 else logging.NullHandler()
    for name in ("core", "storage", "tasks"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
    device = devices[rank]
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // len(devices)))
    try:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=len(devices), timeout=PATIENCE)
        work(Shards(device), *arguments)
        dist.destroy_process_group()
    except Exception as error:
        messages.put(error)
        raise


def _end_with_parent() -> None:
    """A parent that is killed lets go of its lock on the store: nothing may be written there afterwards."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)


class _Told(QueueHandler):
    """Sends what is logged to the process that started this one."""

    def __init__(self, messages: Any) -> None:
        super().__init__(messages)
        self.messages = messages

    def enqueue(self, record: logging.LogRecord) -> None:
        self.messages.put(record)


def _heard(messages: Any) -> Iterator[Exception]:
    """Log what was logged there; gives the errors."""
    while not messages.empty():
        message = messages.get()
        if not isinstance(message, logging.LogRecord):
            yield message
        elif (logger := logging.getLogger(message.name)).isEnabledFor(message.levelno):
            logger.handle(message)


def _death(context: ProcessContext, ended: ProcessException) -> JumpsuiteError | None:
    """What to say of a process that could not say anything itself; None where one did."""
    if isinstance(ended, ProcessExitedException):
        dead, how = ended.error_index, ended.signal_name or f"exit code {ended.exit_code}"
    else:  # another may have died of a signal before, other than the SIGTERM that all are sent now, and taken this one's connection with it
        codes = {index: process.exitcode for index, process in enumerate(context.processes) if process.exitcode < 0}
        killed = {index: signal.Signals(-code).name for index, code in codes.items() if code != -signal.SIGTERM}
        if not killed:
            return None
        dead, how = next(iter(killed.items()))
    return JumpsuiteError(
        f"process {dead + 1} of the {len(context.processes)} that share a dictionary was ended by {how}; expected all to work to the end, for "
        "which main memory must suffice too; see to it and run again, which goes on from the latest checkpoint"
    )
