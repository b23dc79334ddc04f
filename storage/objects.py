"""A store: named objects that are absent or complete, in a local folder or a bucket (`storage/places.py`).

Every object is put whole, and every record carries a checksum that is verified on read.
"""

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import obstore
import obstore.exceptions

from core.errors import JumpsuiteError
from core.key import canonical
from storage.places import FAULTS, Taken, cause_of, place_of

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
"""Between two looks at what another process has."""


class Corrupt(JumpsuiteError):
    """An object is not what was written."""


class Store:
    """Objects under one root.

    Args:
        root: a local folder, made when something is first put there; or `s3://BUCKET/PREFIX`, `gs://…`, `az://…`.

    Raises:
        ConfigError: no store of ours can lie there.
    """

    def __init__(self, root: str | Path) -> None:
        self._place = place_of(root)
        self.address = self._place.address
        """What opens the same store again, in another process too."""

    @property
    def exists(self) -> bool:
        return self._place.exists

    @property
    def at_once(self) -> int:
        """How many objects are best read or written beside each other."""
        return self._place.at_once

    def make(self) -> None:
        """Make a folder that is not there; find out that a bucket is.

        Raises:
            ConfigError: it cannot be made, or reached.
        """
        self._place.make()

    @property
    def _objects(self) -> Any:
        return self._place.objects

    def has(self, key: str) -> bool:
        if not self.exists:
            return False
        try:
            with self._explained(key, "read"):
                self._objects.head(key)
        except FileNotFoundError:
            return False
        return True

    def get(self, key: str) -> bytes:
        """Raises FileNotFoundError when the object is absent."""
        if not self.exists:
            raise FileNotFoundError(key)
        with self._explained(key, "read"):
            return bytes(self._objects.get(key).bytes())

    def put(self, key: str, data: bytes) -> str:
        """Store an object whole, replacing what was there, and give its SHA-256."""
        with self._explained(key, "written"):
            obstore.put(self._objects, key, data)
        return hashlib.sha256(data).hexdigest()

    def put_pieces(self, key: str, pieces: list[Any]) -> None:
        """Store an object whole that lies in several buffers."""
        with self._explained(key, "written"):
            self._place.put_pieces(key, pieces)

    def get_range(self, key: str, start: int, length: int, room: Any = None) -> Any:
        """A part of an object, as a buffer.

        Args:
            room: a buffer of at least that length, which a folder reads into and gives back a part of: memory that is used again is not
                taken from the system each time.

        Raises FileNotFoundError when the object is absent, ValueError when it has no such part.
        """
        with self._explained(key, "read"):
            data = self._place.get_range(key, start, length, room)
        return _whole(data, length)

    def get_end(self, key: str, length: int) -> Any:
        """The last bytes of an object, as a buffer. Raises as `get_range` does."""
        with self._explained(key, "read"):
            data = self._place.get_end(key, length)
        return _whole(data, length)

    def put_file(self, key: str, path: Path) -> None:
        """Store a file of this machine as an object, a piece at a time."""
        with self._explained(key, "written"):
            obstore.put(self._objects, key, path)

    def get_file(self, key: str, path: Path) -> None:
        """Write an object into a file of this machine, a piece at a time."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._explained(key, "read"), path.open("wb") as file:
            for piece in self._objects.get(key).stream():
                file.write(piece)

    @contextmanager
    def _explained(self, key: str, what: str) -> Iterator[None]:
        """What a disk or an object store says when it fails, in a sentence. FileNotFoundError is left, where something was to be read."""
        try:
            yield
        except FAULTS as error:
            if what == "read" and isinstance(error, FileNotFoundError):
                raise
            if what == "read" and _is_under_a_file(error):
                raise FileNotFoundError(key) from None
            raise JumpsuiteError(
                f"{self.where(key)} cannot be {what} ({cause_of(error)}); expected room and rights there; see to it and run again"
            ) from None

    def delete(self, key: str) -> None:
        if self.has(key):
            with self._explained(key, "deleted"):
                self._objects.delete(key)

    def keys(self, prefix: str) -> list[str]:
        """Every object under a prefix (a whole number of path parts), sorted."""
        if not self.exists:
            return []
        with self._explained(prefix, "listed"):
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
                f"{self.where(key)} is missing; expected the file that was written there; restore it, or delete its folder and run again"
            ) from None
        if hashlib.sha256(data).hexdigest() != sha256:
            raise Corrupt(
                f"{self.where(key)} was changed since it was written; expected SHA-256 {sha256[:12]}…; restore it, or delete its folder and run again"
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
            raise Corrupt(f"{self.where(key)} is not a record; expected JSON with a checksum; delete it and run again") from None
        if found != checksum:
            raise Corrupt(f"{self.where(key)} was changed since it was written; expected its checksum to match; delete it and run again")
        return dict(record)

    def lock(self, name: str, owns: Sequence[str] | None = None, watch: bool = True) -> AbstractContextManager[None]:
        """Work under a name alone; whatever becomes of the process that holds it, the lock is lifted.

        Args:
            owns: globs of the keys that are written under this name only, which are swept of what a killed holder left half written;
                by default all that begin with the name.
            watch: find out whether a holder lives, if that takes time; without, it is taken to live.

        Raises (when entered):
            Taken: another process works there.
        """
        return self._place.lock(name, [f"{name}/**/*"] if owns is None else owns, watch)

    @contextmanager
    def turn(self, name: str, owns: Sequence[str] | None = None) -> Iterator[None]:
        """`lock`, but after whoever holds it, however long that takes."""
        waits = False
        while True:
            with ExitStack() as held:
                try:
                    held.enter_context(self.lock(name, owns))
                except Taken as taken:
                    if not waits:
                        log.info("Waiting: %s", str(taken).partition(";")[0])
                    waits = True
                    time.sleep(LOOK_SECONDS)
                    continue
                yield
                return

    def where(self, key: str) -> str:
        """Where an object lies, for messages."""
        return self._place.where(key)

    def local(self, key: str) -> Path:
        """A path of this machine, for what libraries read and write as files: in the store itself if it is a folder, else in a cache."""
        return self._place.files / key


def _whole(data: Any, length: int) -> Any:
    if len(data) != length:
        raise ValueError("it is too short")
    return data


def _is_under_a_file(error: Exception) -> bool:
    """Whether a key is absent because a part of its path is a file."""
    return "Not a directory" in str(error) or "NotADirectory" in str(error)
