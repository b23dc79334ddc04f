"""Finding the dictionaries of a folder, whoever wrote it."""

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from core.dictionary import Dictionary
from core.errors import JumpsuiteError
from core.site import Site
from storage.formats import FORMATS, LOADING, read
from storage.release import CANONICAL, SUMS, places, read_scorecard, scorecard_paths

log = logging.getLogger(__name__)
T = TypeVar("T")

BY_MARK = {FORMATS[name].MARK: name for name in ("saelens", "gemma_scope", "gemma_scope_2", "dictionary_learning")}
"""The format of each file that tells a dictionary's folder."""


@dataclass(frozen=True)
class Found:
    format: str
    folder: Path
    name: str
    """Its folder, below where it was looked for."""
    measured_l0: float | None = None

    @property
    def l0(self) -> float | None:
        """As its maker measured it, or as its place says it, `average_l0_82`; None where neither does."""
        said = re.findall(r"l0_(\d+(?:\.\d+)?)", self.folder.name)
        return float(said[0]) if self.measured_l0 is None and said else self.measured_l0

    def site(self) -> Site:
        """Raises JumpsuiteError where it cannot be told."""
        try:
            return FORMATS[self.format].site(self.folder)
        except LOADING as error:
            raise self._fault("does not say where in the model it belongs", error) from None

    def load(self) -> Dictionary:
        """Raises JumpsuiteError where it is of a kind that cannot be read."""
        try:
            return read(self.format, self.folder)
        except LOADING as error:
            raise self._fault("cannot be read", error) from None

    def _fault(self, what: str, error: Exception) -> JumpsuiteError:
        said = " ".join(str(error).split())
        return JumpsuiteError(f"{self.name} {what} ({said}); expected a dictionary in one of the formats {', '.join(FORMATS)}; leave it out")


def readable(get: Callable[[], T]) -> T | None:
    """What `Found.site` or `Found.load` gives; None, which is told, of what cannot be read."""
    try:
        return get()
    except JumpsuiteError as error:
        log.warning("%s", error)
        return None


def find(root: Path) -> list[Found]:
    """Every dictionary below a folder, once: of a release of ours that has it in several formats, in the first.

    Raises:
        JumpsuiteError: there is none.
    """
    found = list(_of_ours(root)) if (root / SUMS).is_file() else []
    if not found:
        marked = [(path, name) for mark, name in BY_MARK.items() for path in sorted(root.rglob(mark))]
        folders = {path.parent.parent for path, _ in marked if path.parent.name != CANONICAL}
        again = {path for path, _ in marked if path.parent.name == CANONICAL and path.parent.parent in folders}
        found = [Found(name, path.parent, _below(root, path)) for path, name in marked if path not in again]
    if not found:
        raise JumpsuiteError(f"{root} holds no dictionary; expected {', '.join(BY_MARK)} somewhere below it; name another place")
    return found


def _of_ours(root: Path) -> Iterator[Found]:
    for path in scorecard_paths(root):
        try:
            card = read_scorecard(path)
            if "formats" not in card:
                return  # of before 2026-11-28; its dictionaries are found as anybody's are
            name, place = next(iter(places(card).items()))
            yield Found(name, root / place, place, float(card["l0"]))
        except LOADING as error:
            raise JumpsuiteError(f"{path.relative_to(root)} is damaged ({error}); expected a scorecard; get the release again") from None


def _below(root: Path, path: Path) -> str:
    return str(path.parent.relative_to(root)) if path.parent != root else root.name
