"""Every dictionary of a release as SAELens loads it, held against ours: `python tests/in_saelens.py runs/NAME/release`."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from safetensors.torch import load_file

from storage.release import read_dictionary, read_scorecard, scorecard_paths


def both_ways(release: Path) -> Iterator[tuple[dict[str, Any], Any, float, float]]:
    """Scorecard, SAELens's dictionary, and the relative errors of its encode and decode, for raw held-out rows of the release's samples."""
    for path in scorecard_paths(release):
        card = read_scorecard(path)
        ours, theirs = read_dictionary(release, card)["saelens"], SAE.load_from_disk(str(release / card["formats"]["saelens"]))
        x = load_file(release / f"samples/{card['spec']['site']}.safetensors")["rows"]
        f, f_theirs = ours.encode(x), theirs.encode(x)
        yield card, theirs, relative_error(f_theirs, f), relative_error(theirs.decode(f_theirs), ours.decode(f))


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    return float(((value - reference).norm() / reference.norm()).detach())


if __name__ == "__main__":
    for card, _, encode, decode in both_ways(Path(sys.argv[1])):
        print(f"{card['dictionary']}  {card['spec']['site']:16} encode {encode:.1e}  decode {decode:.1e}")
