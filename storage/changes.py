"""Changes: what a place that is elsewhere lacks of a release, and has too much."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from storage.release import SUMS, listed, not_a_release


@dataclass(frozen=True)
class Changes:
    added: list[str]
    """Files to send; the checksums last, if there are any."""
    removed: list[str]
    kept: list[str]
    size: int
    """Bytes of what is added."""

    @property
    def some(self) -> bool:
        return bool(self.added or self.removed)

    def __str__(self) -> str:
        return f"{len(self.added):,} files to send ({self.size / 1e9:.2f} GB), {len(self.removed):,} to remove, {len(self.kept):,} there already"

    @classmethod
    def to(cls, folder: Path, found: set[str], same: Callable[[str, str], bool], known: set[str], where: str) -> "Changes":
        """What makes a place the release of a folder.

        Args:
            found: what the place holds. same: whether what it has under a name has this SHA-256. known: names of the release that it was.

        Raises:
            JumpsuiteError: it holds what is of neither release, so nothing may be put or removed.
        """
        here = listed((folder / SUMS).read_text())
        kept = sorted(name for name, sha256 in here.items() if name in found and same(name, sha256))
        if not found <= {*kept, *known, SUMS}:
            raise not_a_release(where)
        added, removed = sorted(set(here) - set(kept)), sorted(found - {*here, SUMS})
        if added or removed or SUMS not in found:
            added.append(SUMS)
        return cls(added, removed, kept, sum((folder / name).stat().st_size for name in added))
