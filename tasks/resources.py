"""What a machine gives to tasks: the model, dear to load and kept between tasks of one process, and the speed of its products."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch

from core.anatomy import Anatomy, device_of
from core.machine import bfloat16_slowdown, slow_bfloat16
from core.suite import Model
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
