"""Compare: anybody's dictionaries, measured as a suite's own are, on the same text, beside them."""

import logging
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from core.dictionary import Dictionary
from core.errors import JumpsuiteError
from core.key import key_of
from core.site import Site
from core.slices import slices
from storage import release
from storage.catalogue import Catalogue
from storage.formats.found import Found, find, readable
from tasks.evaluate import measure, scorecards
from tasks.tables import compared_line
from tasks.train import site_inputs

log = logging.getLogger(__name__)

AT_ONCE = 8
"""Dictionaries of a site that are in memory, and for which the layers below it run once."""
HEAD = ("site", "from", "width", "L0", "FVU", "delta loss", "KL", "cosine", "relative norm", "dead %")


def by_site(catalogue: Catalogue, folder: Path) -> dict[Site, list[Found]]:
    """The dictionaries below a folder that belong to sites of the suite; others, and what cannot be read, are told of.

    Raises:
        JumpsuiteError: there is none of a site of the suite.
    """
    found, sites = find(folder), dict[Site, list[Found]]()
    for one in found:
        if (site := readable(one.site)) is None:
            continue
        if site in catalogue.sites:
            sites.setdefault(site, []).append(one)
        else:
            log.info("%s is of %s, which is no site of %s, and is left out", one.name, site, catalogue.suite.name)
    if not sites:
        names = ", ".join(map(str, catalogue.sites))
        raise JumpsuiteError(
            f"{folder.name} has no dictionary of {names}; expected one of a site of the suite; correct the place, or the suite's sites"
        )
    return sites


@task(task_run_name="compare {site}", cache_policy=NO_CACHE)
def compare_site(catalogue: Catalogue, site: Site, found: list[Found]) -> dict[str, dict[str, Any]]:
    """The scorecards of dictionaries of a site, by their names; those that were measured before are not again.

    Raises:
        JumpsuiteError: the held-out text is not harvested.
    """
    if not catalogue.harvest.has_tokens or catalogue.harvest.part("held_out").missing([site]):
        raise JumpsuiteError(f"{site} is not harvested; expected its held-out activations; run jumpsuite harvest first")
    limit, cards = site_inputs(catalogue, site)[1]["norm_limit"], dict[str, dict[str, Any]]()
    for some in slices(len(found), AT_ONCE):
        waiting = dict[str, tuple[str, Dictionary]]()
        for one in found[some]:
            if (dictionary := _load(one, site, catalogue.shape.width_of(site))) is None:
                continue
            key = f"compared/{site}/{release.digest(dictionary)[:16]}-{key_of(catalogue.suite.scorecard_key(catalogue.harvest.key), limit)}.json"
            if known := catalogue.store.get_record(key):
                cards[one.name] = known
            else:
                waiting[one.name] = (key, dictionary)
        if waiting:
            for name, scores in measure(catalogue, site, {name: dictionary for name, (_, dictionary) in waiting.items()}, limit):
                key, dictionary = waiting[name]
                cards[name] = scores | {"width": len(dictionary.b_enc)}
                catalogue.store.put_record(key, cards[name])
    return cards


def _load(one: Found, site: Site, width: int) -> Dictionary | None:
    """A dictionary that fits its site; None, which is told, where it does not or cannot be read."""
    dictionary = readable(one.load)
    if dictionary is not None and len(dictionary.b_dec) != width:
        log.warning("%s is of %s dimensions; expected the %s of %s; it is left out", one.name, len(dictionary.b_dec), width, site)
        return None
    return dictionary


def compared(catalogue: Catalogue, theirs: dict[Site, dict[str, dict[str, Any]]]) -> list[tuple[str, ...]]:
    """A table of these scorecards beside those of the suite's own dictionaries at the same sites, its head first."""
    lines: list[tuple[str, ...]] = [HEAD]
    own = list(scorecards(catalogue))
    for site, cards in theirs.items():
        lines += [compared_line(str(site), spec.name, spec.width, card) for spec, card in own if spec.site == site]
        lines += [compared_line(str(site), name, card["width"], card) for name, card in cards.items()]
    return lines
