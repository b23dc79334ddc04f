"""SAELens's folder with a Gated SAE in it, for code that runs these and no JumpReLU (arXiv:2407.14435, section 2, says that it can)."""

from pathlib import Path

from core.dictionary import Dictionary
from core.forms import gated
from core.site import Site
from storage.formats import saelens
from storage.formats.released import ReleasedDictionary

MARK = saelens.MARK


def path(one: ReleasedDictionary) -> str | None:
    return one.place if one.dictionary.k is None else None


def files(one: ReleasedDictionary) -> dict[str, bytes]:
    return saelens.folder(one, {"architecture": "gated"}, gated(one.dictionary))


def read(folder: Path) -> Dictionary:
    return saelens.read(folder)


def site(folder: Path) -> Site:
    return saelens.site(folder)
