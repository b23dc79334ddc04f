"""A store: named objects that are absent or complete, in a local folder (object stores are to follow behind the same calls).

Every object is put whole (written beside, then renamed), and every record carries a checksum that is verified on read.
"""

import fcntl
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import obstore
import obstore.exceptions
import zarr.storage
from obstore.store import LocalStore

from core.errors import ConfigError, JumpsuiteError
from core.key import canonical


class Corrupt(JumpsuiteError):
    """An object is not what was written."""


STORE_FAULTS = (OSError, obstore.exceptions.BaseError)
"""What a disk or an object store raises when it cannot do what it was asked."""


class Store:
    """Objects under one root.

    Args:
        root: a local folder, made when something is first put there.

    Raises:
        ConfigError: the root cannot be a folder of ours.
    """

    def __init__(self, root: str | Path) -> None:
        if "://" in str(root):
            raise ConfigError(f"--store is {str(root)!r}; expected a local folder; object stores are not supported yet, write for example runs")
        self.root = Path(root).resolve()
        if self.root.exists() and not self.root.is_dir():
            raise ConfigError(f"--store is {str(root)!r}, which is a file; expected a folder; choose another")

    @property
    def exists(self) -> bool:
        return self.root.is_dir()

    def make(self) -> Path:
        """The root, made when it is not there.

        Raises:
            ConfigError: it cannot be made.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--store is {str(self.root)!r}, which cannot be made ({error.strerror}); expected a folder; choose another") from None
        return self.root

    @cached_property
    def _objects(self) -> LocalStore:
        return LocalStore(str(self.make()))

    def has(self, key: str) -> bool:
        if not self.exists:
            return False
        try:
            self._objects.head(key)
        except FileNotFoundError:
            return False
        except obstore.exceptions.GenericError as error:
            if _is_under_a_file(error):
                return False
            raise
        return True

    def get(self, key: str) -> bytes:
        """Raises FileNotFoundError when the object is absent."""
        if not self.exists:
            raise FileNotFoundError(key)
        try:
            return bytes(self._objects.get(key).bytes())
        except obstore.exceptions.GenericError as error:
            if _is_under_a_file(error):
                raise FileNotFoundError(key) from None
            raise

    def put(self, key: str, data: bytes) -> str:
        """Store an object whole, replacing what was there, and give its SHA-256."""
        try:
            obstore.put(self._objects, key, data)
        except STORE_FAULTS as error:
            raise JumpsuiteError(
                f"{self.path(key)} cannot be written ({cause_of(error)}); expected room and rights there; see to it and run again"
            ) from None
        return hashlib.sha256(data).hexdigest()

    def delete(self, key: str) -> None:
        if self.has(key):
            self._objects.delete(key)

    def keys(self, prefix: str) -> list[str]:
        """Every object under a prefix (a whole number of path parts), sorted."""
        if not self.exists:
            return []
        return sorted(str(meta["path"]) for batch in obstore.list(self._objects, prefix) for meta in batch)

    def get_checked(self, key: str, sha256: str) -> bytes:
        """An object whose checksum is known.

        Raises:
            Corrupt: it is gone, or its bytes are not those that were written.
        """
        try:
            data = self.get(key)
        except FileNotFoundError:
            raise Corrupt(
                f"{self.path(key)} is missing; expected the file that was written there; restore it, or delete its folder and run again"
            ) from None
        if hashlib.sha256(data).hexdigest() != sha256:
            raise Corrupt(
                f"{self.path(key)} was changed since it was written; expected SHA-256 {sha256[:12]}…; restore it, or delete its folder and run again"
            )
        return data

    def put_record(self, key: str, record: dict[str, Any]) -> None:
        """Store a JSON record with a checksum of its contents."""
        checked = record | {"checksum": hashlib.sha256(canonical(record)).hexdigest()}
        self.put(key, json.dumps(checked, indent=2, sort_keys=True, allow_nan=False).encode() + b"\n")

    def get_record(self, key: str) -> dict[str, Any] | None:
        """A record, or None when there is none.

        Raises:
            Corrupt: it is not what was written.
        """
        try:
            data = self.get(key)
        except FileNotFoundError:
            return None
        try:
            record = json.loads(data)
            checksum = record.pop("checksum")
            found = hashlib.sha256(canonical(record)).hexdigest()
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            raise Corrupt(f"{self.path(key)} is not a record; expected JSON with a checksum; delete it and run again") from None
        if found != checksum:
            raise Corrupt(f"{self.path(key)} was changed since it was written; expected its checksum to match; delete it and run again")
        return dict(record)

    @contextmanager
    def lock(self, prefix: str) -> Iterator[None]:
        """Work under a prefix alone. The system lifts the lock when its process ends, however it ends.

        What a killed process was writing (obstore writes `NAME#1` beside, then renames) is swept away.

        Raises:
            JumpsuiteError: another process works there.
        """
        path = self.root / "locks" / prefix.replace("/", "-")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise JumpsuiteError(f"{self.path(prefix)} is being worked on by another run; expected one at a time; wait for it to end") from None
            for left in self.path(prefix).rglob("*#[0-9]*"):
                left.unlink()
            yield

    def zarr(self, prefix: str) -> zarr.storage.StoreLike:
        """The same objects, under a prefix, as zarr-python takes them."""
        self.path(prefix).mkdir(parents=True, exist_ok=True)
        return zarr.storage.ObjectStore(LocalStore(str(self.path(prefix))))

    def path(self, key: str) -> Path:
        """Where an object lies, for libraries that read folders themselves, and for messages."""
        return self.root / key


def cause_of(error: Exception) -> str:
    """The innermost reason of a store's error: obstore wraps what the system said in its own words."""
    found = re.search(r'message: "([^"]+)"', str(error))
    return found[1] if found else " ".join(str(error).split())[:160]


def _is_under_a_file(error: Exception) -> bool:
    """Whether a key is absent because a part of its path is a file."""
    return "Not a directory" in str(error) or "NotADirectory" in str(error)
