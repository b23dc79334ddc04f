"""Publishing: how a release gets from a folder into a bucket or onto a hub, and back."""

from collections.abc import Iterator
from pathlib import Path

from core.errors import JumpsuiteError
from storage.changes import Changes
from storage.hub import Hub
from storage.objects import Store
from storage.release import SUMS

HUB = "hf://"


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


def fetch(place: str, folder: Path) -> None:
    """Get every file of a release. Raises JumpsuiteError where there is none."""
    if place.startswith(HUB):
        Hub(place).fetch(folder)
    else:
        _from_bucket(Store(place), folder)


def _of_bucket(folder: Path, store: Store) -> Changes:
    sums = store.get(SUMS).decode(errors="replace") if store.has(SUMS) else ""
    return Changes.to(folder, set(store.keys("")), sums, store.address)


def _into_bucket(folder: Path, store: Store) -> Iterator[str]:
    """Its files are put there, its checksums last. What is there is not sent again; what is of a release that was there before is removed after."""
    changes = _of_bucket(folder, store)
    yield str(changes)
    for name in changes.added:
        store.put_file(name, folder / name)
    for name in changes.removed:
        store.delete(name)


def _from_bucket(store: Store, folder: Path) -> None:
    names = store.keys("")
    if not names:
        raise JumpsuiteError(f"{store.address} holds nothing; expected a release; name what jumpsuite release wrote")
    for name in names:
        if ".." in name.split("/"):
            raise JumpsuiteError(f"{store.where(name)} leads out of the release; expected files below it; do not trust this release")
        store.get_file(name, folder / name)
