"""What a machine gives to tasks: the model, dear to load and kept between tasks of one process, and the speed of its products."""

import logging
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch

from core.anatomy import Anatomy, device_of
from core.errors import ConfigError
from core.forecast import forecast
from core.machine import bfloat16_slowdown, slow_bfloat16
from core.suite import Model, Suite
from storage.catalogue import Catalogue
from storage.models import ModelSource
from storage.objects import Store

log = logging.getLogger(__name__)


@lru_cache
def warn_of_slow_bfloat16(field: str, dtype: str, device: torch.device) -> None:
    """Tell a user whose machine would be quicker with another type in this field of the suite file: once a process, not once a site."""
    if dtype == "bfloat16" and (advice := slow_bfloat16([field], bfloat16_slowdown(device))):
        log.warning("%s is bfloat16: %s", field, advice)


@contextmanager
def borrowed_anatomy(catalogue: Catalogue) -> Iterator[Anatomy]:
    """The suite's model, loaded on its device, with its sites found; to one thread at a time, for whoever captures or splices changes it."""
    with _MODEL_IN_USE:
        yield Anatomy(_model(catalogue.store.address, catalogue.suite.model, str(device_of(catalogue.suite.device))))


_MODEL_IN_USE = threading.Lock()


@lru_cache(maxsize=1)
def _model(root: str, model: Model, device: str) -> Any:
    return ModelSource(Store(root), model).load(device_of(device))


def require_room(catalogue: Catalogue, devices: list[torch.device], at_all: bool = False) -> None:
    """See that the largest site, and the model, have room on each device, before anything is computed.

    Args:
        at_all: on the device when nobody else uses it, instead of now.

    Raises:
        ConfigError: they do not, with what would fit.
    """
    for device in devices:
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # which this process can use again
            need = forecast(catalogue.suite, catalogue.shape, catalogue.sites).device_bytes
            lack_of_room(catalogue.suite, need, total if at_all else free, str(device))


def lack_of_room(suite: Suite, need: int, free: int, device: str) -> None:
    """Raises ConfigError where `need` bytes are more than are free."""
    if need <= free:
        return
    shards = 2 ** math.ceil(math.log2(suite.training.shards * need / free))
    raise ConfigError(
        f"{device} has {free / 1e9:.1f} GB, and the largest site, or the model, needs {need / 1e9:.1f} GB; expected room for it; "
        f"set training.shards: {shards} on a machine with as many devices, lower training.batch_rows, train fewer dictionaries a site at once "
        "(a suite file each), or end what else uses the device"
    )
