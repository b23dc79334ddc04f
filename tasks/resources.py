"""What is dear to load and is kept between tasks of one process: the model."""

from functools import lru_cache
from typing import Any

from core.anatomy import Anatomy, device_of
from core.suite import Model
from storage.catalogue import Catalogue
from storage.models import ModelSource
from storage.objects import Store


def loaded_anatomy(catalogue: Catalogue) -> Anatomy:
    """The suite's model, loaded on its device, with its sites found."""
    return Anatomy(_model(str(catalogue.store.root), catalogue.suite.model, str(device_of(catalogue.suite.device))))


@lru_cache(maxsize=1)
def _model(root: str, model: Model, device: str) -> Any:
    return ModelSource(Store(root), model).load(device_of(device))
