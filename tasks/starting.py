"""Starting points: the released dictionaries that others are trained on from."""

import logging
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.dictionary import Dictionary
from core.errors import ConfigError
from core.spec import DictionarySpec
from storage import publishing, release
from storage.catalogue import Catalogue
from storage.formats.found import Found, find, readable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    dictionary: Dictionary
    facts: dict[str, Any]
    """Where it is from, and a digest of its weights."""


def starting_points(catalogue: Catalogue, specs: Sequence[DictionarySpec]) -> dict[DictionarySpec, Start]:
    """Of each dictionary to train, the one of its site and width in `training.start`, and of several that whose L0 is nearest its target.

    Raises:
        ConfigError: there is none for one of them. JumpsuiteError: the place cannot be read.
    """
    place = catalogue.suite.training.start
    if place is None or not specs:
        return {}
    if publishing.is_elsewhere(place):
        with tempfile.TemporaryDirectory() as scratch:
            return _chosen(catalogue, publishing.fetch(place, Path(scratch, publishing.name_of(place))), specs)
    if not Path(place).is_dir():
        raise ConfigError(f"training.start is {place!r}, which is not a folder; expected one with released dictionaries; correct the path")
    return _chosen(catalogue, Path(place), specs)


def _chosen(catalogue: Catalogue, folder: Path, specs: Sequence[DictionarySpec]) -> dict[DictionarySpec, Start]:
    place, starts = catalogue.suite.training.start, dict[DictionarySpec, Start]()
    by_site: dict[str, list[Found]] = {}
    for one in find(folder):
        if site := readable(one.site):
            by_site.setdefault(str(site), []).append(one)
    for spec in specs:
        here = by_site.get(str(spec.site), [])
        others: set[str] = set()
        for one in sorted(here, key=lambda each: (_off(each.l0, spec.target_l0), each.name)):
            dictionary = readable(one.load)
            if dictionary is None:
                continue
            D, L = dictionary.W_enc.shape
            if (D, L, dictionary.k) == (catalogue.shape.width_of(spec.site), spec.width, None):
                log.info("%s begins from %s", spec, one.name)
                starts[spec] = Start(dictionary, {"place": place, "dictionary": one.name, "weights": release.digest(dictionary)})
                break
            others.add(f"{L:,} of {D:,}" + (" (TopK)" if dictionary.k else ""))
        else:
            there = ", ".join(sorted(others)) or "none"
            raise ConfigError(
                f"training.start is {place!r}; expected a dictionary of {spec.site} with {spec.width:,} latents of "
                f"{catalogue.shape.width_of(spec.site):,} dimensions in it, that is no TopK; of that site it has {there}"
            )
    return starts


def _off(l0: float | None, target: float | None) -> float:
    return math.inf if l0 is None else abs(l0 - target) if target is not None else 0.0
