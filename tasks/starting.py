"""Starting points: the released dictionaries that others are trained on from."""

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.dictionary import Dictionary
from core.errors import ConfigError, JumpsuiteError
from core.spec import DictionarySpec
from storage import publishing, release
from storage.formats.found import Found, find

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    dictionary: Dictionary
    facts: dict[str, Any]
    """Where it is from, and a digest of its weights."""


def starting_points(place: str, specs: Sequence[DictionarySpec]) -> dict[DictionarySpec, Start]:
    """Of each dictionary to train, the one of its site and width in a place, and of several that whose L0 is nearest its target.

    Raises:
        ConfigError: there is none for one of them. JumpsuiteError: the place cannot be read.
    """
    if publishing.is_elsewhere(place):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch, publishing.name_of(place))
            publishing.fetch(place, folder)
            return _chosen(place, folder, specs)
    if not Path(place).is_dir():
        raise ConfigError(f"training.start is {place!r}, which is not a folder; expected one with released dictionaries; correct the path")
    return _chosen(place, Path(place), specs)


def _chosen(place: str, folder: Path, specs: Sequence[DictionarySpec]) -> dict[DictionarySpec, Start]:
    found, loaded, starts = find(folder), dict[Found, Dictionary](), {}
    sites = {one: _site(one) for one in found}
    for spec in specs:
        here = [one for one in found if sites[one] == str(spec.site)]
        for one in here:
            if one not in loaded:
                loaded[one] = one.load()
        fitting = [one for one in here if loaded[one].k is None and len(loaded[one].b_enc) == spec.width]
        if not fitting:
            widths = ", ".join(sorted({f"{len(loaded[one].b_enc):,}" for one in here})) or "none"
            raise ConfigError(
                f"training.start is {place!r}; expected a dictionary of {spec.site} with {spec.width:,} latents in it, that is no TopK; "
                f"widths of that site there: {widths}"
            )
        one = min(fitting, key=lambda each: (_off(each.l0, spec.target_l0), each.name))
        log.info("%s begins from %s", spec, one.name)
        starts[spec] = Start(loaded[one], {"place": place, "dictionary": one.name, "weights": release.digest(loaded[one])})
    return starts


def _site(one: Found) -> str | None:
    try:
        return str(one.site())
    except JumpsuiteError as error:
        log.warning("%s", error)
        return None


def _off(l0: float | None, target: float | None) -> float:
    return abs(l0 - target) if l0 is not None and target is not None else 0.0
