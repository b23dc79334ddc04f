"""Publishing: how a release gets from a folder into a bucket or onto a hub, and back."""

from collections.abc import Iterator
from pathlib import Path

from core.errors import JumpsuiteError
from storage.changes import Changes
from storage.hub import Hub
from storage.objects import Store
from storage.release import SUMS, listed

HUB = "hf://"
UNDER_WAY = "release.under-way"
"""In a bucket, while a release is put there: what is there of the new one, and without a checksum what may be of either."""


def is_elsewhere(place: str) -> bool:
    """Whether a place is a bucket or a hub, not a folder."""
    return "://" in place


def name_of(place: str) -> str:
    """What a place elsewhere is called: of a hub's, its repository without the organisation."""
    parts = [part for part in place.partition("://")[2].split("/") if part]
    named = parts[1] if place.startswith(HUB) and len(parts) > 1 else parts[-1] if parts else "release"
    return named.partition("@")[0]


def changes(folder: Path, place: str) -> Changes:
    """What publishing there would change.

    Raises:
        JumpsuiteError: the place holds what is of no release.
    """
    return Hub(place).changes(folder) if place.startswith(HUB) else _of_bucket(folder, Store(place))


def publish(folder: Path, place: str, message: str) -> Iterator[str]:
    """Make a bucket or a repository of the hub the release that a folder is, saying how far it is. Raises as `changes`."""
    if place.startswith(HUB):
        yield from Hub(place).publish(folder, message)
    else:
        yield from _into_bucket(folder, Store(place))


def fetch(place: str, folder: Path) -> Path:
    """Every file of a release, as a folder: the given one, or for the hub its own cache, in which a download goes on that broke off.

    Raises:
        JumpsuiteError: there is none.
    """
    if place.startswith(HUB):
        return Hub(place).fetch()
    _from_bucket(Store(place), folder)
    return folder


def _of_bucket(folder: Path, store: Store) -> Changes:
    """What is there is told by its checksums; while a release is put there, by a list of what is being changed in their place."""
    found, before = set(store.keys("")), dict[str, str]()
    for name in (SUMS, UNDER_WAY):
        if name in found:
            before |= listed(store.get(name).decode(errors="replace"))
    return Changes.to(folder, found - {UNDER_WAY}, lambda name, sha256: before.get(name) == sha256, set(before), store.address)


def _into_bucket(folder: Path, store: Store) -> Iterator[str]:
    """Until the checksums are there, which are put last, there is no release, but a list of the files that may be of either."""
    changes, here = _of_bucket(folder, store), listed((folder / SUMS).read_text())
    yield str(changes)
    if not changes.some:
        store.delete(UNDER_WAY)
        return
    unsure = [*changes.added, *changes.removed]
    lines = [*(f"{here[name]}  {name}\n" for name in changes.kept), *(f"-  {name}\n" for name in unsure if name != SUMS)]
    store.put(UNDER_WAY, "".join(lines).encode())
    store.delete(SUMS)
    for name in changes.removed:
        store.delete(name)
    for name in changes.added:
        store.put_file(name, folder / name)
    store.delete(UNDER_WAY)


def _from_bucket(store: Store, folder: Path) -> None:
    names = store.keys("")
    if not names:
        raise JumpsuiteError(f"{store.address} holds nothing; expected a release; name what jumpsuite release wrote")
    if UNDER_WAY in names:
        raise JumpsuiteError(
            f"{store.address} is being made a release, or that broke off; expected a whole one; wait, or run jumpsuite release again"
        )
    for name in names:
        if ".." in name.split("/"):
            raise JumpsuiteError(f"{store.where(name)} leads out of the release; expected files below it; do not trust this release")
        store.get_file(name, folder / name)
