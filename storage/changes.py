"""Changes: what a place that is elsewhere lacks of a release, and has too much."""

from dataclasses import dataclass
from pathlib import Path

from storage.release import SUMS, listed, not_a_release


@dataclass(frozen=True)
class Changes:
    added: list[str]
    """Files to send; the checksums last, if there are any."""
    removed: list[str]
    kept: int
    size: int
    """Bytes of what is added."""

    @property
    def some(self) -> bool:
        return bool(self.added or self.removed)

    def __str__(self) -> str:
        return f"{len(self.added):,} files to send ({self.size / 1e9:.2f} GB), {len(self.removed):,} to remove, {self.kept:,} there already"

    @classmethod
    def to(cls, folder: Path, found: set[str], sums: str, where: str) -> "Changes":
        """What makes a place the release of a folder.

        Args:
            found: what the place holds. sums: the checksums among it, or nothing.

        Raises:
            JumpsuiteError: it holds what is of neither release, so nothing may be put or removed.
        """
        here, there = listed((folder / SUMS).read_text()), listed(sums) if sums else {}
        if not found <= {*there, *here, SUMS}:
            raise not_a_release(where)
        added = sorted(name for name in here if name not in found or there.get(name) != here[name])
        removed = sorted(found - {*here, SUMS})
        kept = len(here) - len(added)
        if added or removed:
            added.append(SUMS)
        return cls(added, removed, kept, sum((folder / name).stat().st_size for name in added))
