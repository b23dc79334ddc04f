"""Every dictionary of a release in the library of each of its formats, held against ours: `python tests/loaders.py runs/NAME/release`."""

import importlib.util
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import torch

from storage.release import read_dictionary, read_sample, read_scorecard, scorecard_paths


def dictionary_learning() -> Any:
    """Its module of autoencoders alone: the package's others want libraries that do not fit ours."""
    path = Path(str(distribution("dictionary-learning").locate_file("dictionary_learning/dictionary.py")))
    spec = importlib.util.spec_from_file_location("autoencoders_of_dictionary_learning", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def in_dictionary_learning(folder: Path) -> Any:
    return dictionary_learning().JumpReluAutoEncoder.from_pretrained(str(folder / "ae.pt"))


class InNumPy:
    """What Gemma Scope's tutorial does with its arrays."""

    def __init__(self, folder: Path) -> None:
        self.p = np.load(folder / "params.npz", allow_pickle=False)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        z = x.numpy() @ self.p["W_enc"] + self.p["b_enc"]
        return torch.from_numpy(z * (z > self.p["threshold"]))

    def decode(self, f: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(f.numpy() @ self.p["W_dec"] + self.p["b_dec"])


def in_saelens(folder: Path) -> Any:
    from sae_lens import SAE

    return SAE.load_from_disk(str(folder))


LOADERS: dict[str, Any] = {
    "saelens": in_saelens,
    "saelens_gated": in_saelens,
    "gemma_scope": InNumPy,
    "dictionary_learning": in_dictionary_learning,
}


def in_each(release: Path, names: Iterable[str] = tuple(LOADERS)) -> Iterator[tuple[dict[str, Any], str, Any, float, float]]:
    """Scorecard, format, the other library's dictionary, and the relative errors of its encode and decode, for raw held-out rows of the samples."""
    for path in scorecard_paths(release):
        card = read_scorecard(path)
        ours, x = next(iter(read_dictionary(release, card).values())), read_sample(release, card["spec"]["site"])
        f = ours.encode(x)
        for name in names:
            if name in card["formats"]:
                theirs = LOADERS[name](release / card["formats"][name])
                f_theirs = theirs.encode(x)
                yield card, name, theirs, relative_error(f_theirs, f), relative_error(theirs.decode(f_theirs), ours.decode(f))


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    return float(((value - reference).norm() / reference.norm()).detach())


if __name__ == "__main__":
    for card, name, _, encode, decode in in_each(Path(sys.argv[1])):
        print(f"{card['spec']['site']:16} {card['name']:24} {name:20} encode {encode:.1e}  decode {decode:.1e}")
