"""SAELens's folder with a Gated SAE in it, for code that runs these and no JumpReLU (arXiv:2407.14435, section 2, says that it can)."""

from core.forms import gated
from storage.formats import saelens
from storage.formats.released import ReleasedDictionary

MARK, read, site = saelens.MARK, saelens.read, saelens.site


def path(one: ReleasedDictionary) -> str | None:
    return one.place if one.dictionary.k is None else None


def files(one: ReleasedDictionary) -> dict[str, bytes]:
    return saelens.folder(one, {"architecture": "gated"}, gated(one.dictionary))
