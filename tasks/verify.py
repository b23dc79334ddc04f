"""Verify: a release's checksums, then every dictionary loaded and run against its scorecard."""

import itertools
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.anatomy import Anatomy, device_of
from core.dictionary import Dictionary
from core.errors import ConfigError, JumpsuiteError
from core.fidelity import row_fidelity
from core.site import Site
from core.slices import slices
from core.splice import spliced_predictions
from core.statistics import Moments
from core.suite_file import parse_suite
from storage import release
from storage.formats import FORMATS, LOADING
from storage.models import ModelSource
from storage.objects import Store
from tasks.progress import Progress

TOLERANCE = 1e-3
"""Relative difference allowed to L0 and FVU measured again: another machine adds in another order."""
LOSS_TOLERANCE = 2e-3
"""Nats a token allowed to a delta loss beside that: in bfloat16 another machine rounds otherwise."""
SPLICED_AT_ONCE = 8
"""Dictionaries of a site for which the layers below it run once."""


def verify_release(folder: Path, name: str | None = None, loss: bool = False) -> Iterator[str]:
    """Check a release: its checksums, then as `verify_dictionaries`. Says what was found right.

    Args:
        name: what to call it, if it is not the folder's path. loss: whether delta losses are measured again, by running the model.

    Raises:
        JumpsuiteError: everything that is wrong with it, a sentence a line.
        ConfigError: the model is not to be had.
    """
    if faults := release.check_sums(folder):
        raise JumpsuiteError("\n".join(f"{name or folder}: {fault}; expected the file that was released; get the release again" for fault in faults))
    yield "checksums match"
    verify_dictionaries(folder, name)
    paths = release.scorecard_paths(folder)
    yield f"{len(paths)} dictionaries load in every format and give the L0 and FVU of their scorecards"
    if not loss:
        return
    try:
        faults = list(_loss_faults(folder, paths))
    except LOADING as error:
        faults = [f"{name or folder}: its delta losses cannot be checked ({type(error).__name__}: {error}); expected a release; get it again"]
    if faults:
        raise JumpsuiteError("\n".join(faults))
    yield f"{len(paths)} dictionaries give the delta loss of their scorecards when they are spliced into the model"


def verify_dictionaries(folder: Path, name: str | None = None) -> None:
    """Load every dictionary of a release, in every format, and hold it against its scorecard. Raises JumpsuiteError as `verify_release`."""
    paths = release.scorecard_paths(folder)
    faults = _not_named(folder, paths)
    with Progress("verify", len(paths), "dictionaries") as progress:
        for path in paths:
            faults += _faults(folder, path)
            progress.advance(1)
    if faults or not paths:
        raise JumpsuiteError("\n".join(faults) or f"{name or folder} holds no scorecard; expected one for each dictionary; get the release again")


def _faults(folder: Path, path: Path) -> Iterator[str]:
    """A sentence for whatever is wrong with one dictionary."""
    try:
        yield from _checked(folder, path)
    except JumpsuiteError as error:
        yield str(error)
    except LOADING as error:
        yield f"{path.parent.name} {path.stem}: it cannot be checked ({type(error).__name__}: {error}); expected a release; get it again"


def _checked(folder: Path, path: Path) -> Iterator[str]:
    card = release.read_scorecard(path)
    name, sample, measured = f"{path.parent.name} {path.stem}", release.read_sample(folder, path.parent.name), None
    if (card["spec"]["site"], card["name"]) != (path.parent.name, path.stem):
        yield f"{name}: its scorecard is that of {card['spec']['site']} {card['name']}; expected its own; get the release again"
        return
    for format_name, dictionary in release.read_dictionaries(folder, card):
        if release.digest(dictionary) != card["weights"][format_name]:
            yield f"{name}: {card['formats'][format_name]} holds other weights; expected those that were scored; get the release again"
        measured = measured or row_fidelity(dictionary, [sample], Moments.of(sample).mean)
    canonical = release.read_canonical(folder, card)
    if canonical and release.digest(canonical) != card["weights"]["gemma_scope"]:
        yield f"{name}: the canonical one of its width holds other weights; expected this dictionary's; get the release again"
    assert measured is not None
    noted = card["sample"]
    # In another order of adding a latent at its threshold may fire on a row where it did not.
    for what, value, of_card, one_flip in (("L0", measured.l0, noted["l0"], 2 / len(sample)), ("FVU", measured.fvu, noted["fvu"], 0.0)):
        if not math.isclose(value, of_card, rel_tol=TOLERANCE, abs_tol=one_flip):
            yield f"{name}: its {what} is {value:.4f}; expected {of_card:.4f}, as its scorecard says; get the release again"


def _not_named(folder: Path, paths: list[Path]) -> list[str]:
    """A sentence for each dictionary that no scorecard knows of."""
    try:
        named = {place for path in paths for place in release.places(release.read_scorecard(path)).values()}
    except (JumpsuiteError, *LOADING):
        return []  # which is said of the scorecard itself
    marked = {
        str(path.parent.relative_to(folder)) for form in FORMATS.values() for path in folder.rglob(form.MARK) if path.parent.name != release.CANONICAL
    }
    return [f"{place}: no scorecard knows of it; expected one for each dictionary; get the release again" for place in sorted(marked - named)]


def _loss_faults(folder: Path, paths: list[Path]) -> Iterator[str]:
    """Splice every dictionary into the model, site by site, on the sequences that the release carries."""
    suite = parse_suite((folder / "suite.yaml").read_text(encoding="utf-8"), [])
    device = device_of("auto")
    tokens_SC, is_text_SC = (each.to(device) for each in release.read_sequences(folder))
    cards = {path: release.read_scorecard(path) for path in paths}
    if not all(card["loss"]["sample"]["predictions"] for card in cards.values()):
        raise ConfigError("--loss needs sequences with text in them; the sample of this release has none; leave --loss out")
    with tempfile.TemporaryDirectory() as scratch, Progress("splice", len(cards), "dictionaries") as progress:
        anatomy = Anatomy(ModelSource(Store(scratch), suite.model).load(device))
        for site, of_site in itertools.groupby(sorted(paths), key=lambda path: path.parent.name):
            of_this = list(of_site)
            for some in (of_this[part] for part in slices(len(of_this), SPLICED_AT_ONCE)):
                deltas = _deltas(anatomy, Site.parse(site), {path.stem: _any_format(folder, cards[path]) for path in some}, tokens_SC, is_text_SC)
                for path in some:
                    delta, noted = deltas[path.stem], cards[path]["loss"]["sample"]["delta"]
                    if not math.isclose(delta, noted, rel_tol=TOLERANCE, abs_tol=LOSS_TOLERANCE):
                        yield f"{site} {path.stem}: its delta loss is {delta:.4f}; expected {noted:.4f}, as its scorecard says; get the release again"
                progress.advance(len(some))


def _any_format(folder: Path, card: dict[str, Any]) -> Dictionary:
    return next(release.read_dictionaries(folder, card))[1]


def _deltas(anatomy: Anatomy, site: Site, dictionaries: dict[str, Dictionary], tokens_SC: Tensor, is_text_SC: Tensor) -> dict[str, float]:
    """What each adds to the loss of the sequences, in nats a predicted token."""
    replacements = {name: dictionary.to(tokens_SC.device).reconstruct for name, dictionary in dictionaries.items()}
    found: dict[str, list[Tensor]] = {name: [] for name in dictionaries}
    for tokens, text in zip(tokens_SC, is_text_SC, strict=True):
        intact, others = spliced_predictions(anatomy, site, replacements, tokens[None], text[None])
        for name, other in others.items():
            found[name].append(other.loss_P.double() - intact.loss_P.double())
    return {name: float(torch.cat(pieces).mean()) for name, pieces in found.items()}
