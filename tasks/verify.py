"""Verify: a release's checksums, then every dictionary loaded and run against its scorecard."""

import math
from collections.abc import Iterator
from pathlib import Path

import torch

from core.errors import JumpsuiteError
from core.fidelity import row_fidelity
from core.statistics import Moments
from storage import release

TOLERANCE = 1e-3
"""Relative difference allowed to L0 and FVU measured again: another machine adds in another order."""


def verify_release(folder: Path, name: str | None = None) -> Iterator[str]:
    """Check a release, saying what was found right.

    Args:
        name: what to call it, if it is not the folder's path.

    Raises:
        JumpsuiteError: everything that is wrong with it, a sentence a line.
    """
    if faults := release.check_sums(folder):
        raise JumpsuiteError("\n".join(f"{name or folder}: {fault}; expected the file that was released; get the release again" for fault in faults))
    yield "checksums match"
    faults = []
    paths = release.scorecard_paths(folder)
    for path in paths:
        faults += _faults(folder, path)
    if faults or not paths:
        raise JumpsuiteError("\n".join(faults) or f"{name or folder} holds no scorecard; expected one for each dictionary; get the release again")
    yield f"{len(paths)} dictionaries load in every format and give the L0 and FVU of their scorecards"


def _faults(folder: Path, path: Path) -> Iterator[str]:
    card = release.read_scorecard(path)
    name, sample = f"{card['spec']['site']} {path.stem}", release.read_sample(folder, card["spec"]["site"])
    try:
        formats = release.read_dictionary(folder, card)
    except JumpsuiteError as error:
        yield str(error)
        return
    saelens = formats["saelens"].tensors()
    if not all(torch.equal(saelens[key], tensor) for other in formats.values() for key, tensor in other.tensors().items()):
        yield f"{name}: its two formats hold different weights; expected the same; get the release again"
    measured = row_fidelity(formats["saelens"], [sample], Moments.of(sample).mean)
    for what, value, noted in (("L0", measured.l0, card["sample"]["l0"]), ("FVU", measured.fvu, card["sample"]["fvu"])):
        if not math.isclose(value, noted, rel_tol=TOLERANCE):
            yield f"{name}: its {what} is {value:.4f}; expected {noted:.4f}, as its scorecard says; get the release again"
