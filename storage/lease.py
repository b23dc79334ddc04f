"""Leases: the right to work alone under a name in an object store, for as long as its holder shows that it lives.

The holder changes a small object every few seconds. Who finds one there watches it by a clock of their own: if it stays the same for
SILENCE seconds, its holder is gone, killed or cut off, and the name is free. No two clocks are compared, so a wrong one does no harm.
Object stores that create conditionally, as all large ones do, let only one create it. Where one does not, or the dead are followed, who wrote
last has it, after a time in which the others have written too.
What the dead left of other names is swept away by those who hold one, who look at the others as often as they show that they live.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import obstore
import obstore.exceptions

log = logging.getLogger(__name__)

SILENCE = 60.0
BEATS = 6
"""In each such time, so that one or two may fail."""
SETTLE = 2.0
"""Seconds, and more than anybody takes from finding a name free to having written there."""

State = tuple[Any, ...]
"""What differs when a lease was renewed between two looks at it."""


class Leases:
    """All leases under a prefix, as one process sees them.

    Args:
        objects: as obstore has them.
        prefix: holds the leases and nothing else.
    """

    def __init__(self, objects: Any, prefix: str) -> None:
        self._objects, self._prefix = objects, prefix
        self._seen: dict[str, tuple[State, float]] = {}
        """Every lease, and since when, by our clock, it is the same."""
        self._looks = threading.Lock()
        self._looked = -SILENCE
        self._conditional: bool | None = None

    @contextmanager
    def hold(self, name: str, taken: Callable[[], Exception], watch: bool = True) -> Iterator[None]:
        """Hold `name` while the block runs.

        Args:
            watch: find out whether a holder lives, which takes SILENCE seconds if not; without, whoever holds it is taken to live.

        Raises:
            What `taken` gives, if somebody else who lives holds it.
        """
        key = f"{self._prefix}/{name}.json"
        me = {"holder": uuid.uuid4().hex, "host": socket.gethostname(), "process": os.getpid()}
        self._take(key, me, taken, watch)
        ended = threading.Event()
        heart = threading.Thread(target=self._beat, args=(key, me, ended), daemon=True, name=f"lease {name}")
        heart.start()
        try:
            yield
        finally:
            ended.set()
            heart.join()
            if _is_mine(self._read(key), me):
                self._objects.delete(key)

    def _take(self, key: str, me: dict[str, Any], taken: Callable[[], Exception], watch: bool) -> None:
        there = self._read(key)
        if there is not None and not watch:
            raise taken()
        dead = there is not None and self._is_dead(key, _holder(there), taken)
        if not self._write(key, me, 0, "overwrite" if dead else "create"):
            raise taken()
        if not dead and self._creates_conditionally(key, me):
            return
        time.sleep(SETTLE)
        if not _is_mine(self._read(key), me):
            raise taken()

    def _creates_conditionally(self, key: str, me: dict[str, Any]) -> bool:
        """Whether the store refuses to create what there is: found out once, with a lease that has just been created."""
        if self._conditional is None:
            self._conditional = not self._write(key, me, 0, "create")
        return self._conditional

    def _is_dead(self, key: str, holder: str, taken: Callable[[], Exception]) -> bool:
        """Watch until the holder has been silent for long, and so is dead, or has let go; raise as soon as it shows that it lives."""
        first = self._look().get(key)
        if first and time.monotonic() - first[1] < SILENCE:
            log.info("%s is held by %s; watching for up to %.0f s whether it lives", key, holder, SILENCE)
        while now := self._look().get(key):
            if first is None or now[0] != first[0]:
                raise taken()
            if time.monotonic() - now[1] >= SILENCE:
                return True
            time.sleep(SILENCE / BEATS / 4)
        return False

    def _look(self) -> dict[str, tuple[State, float]]:
        """See which leases there are, and since when each is the same."""
        with self._looks:
            states = {
                str(meta["path"]): (meta["e_tag"], meta["last_modified"]) for batch in obstore.list(self._objects, self._prefix) for meta in batch
            }
            self._looked = now = time.monotonic()
            same = {key: since for key, (state, since) in self._seen.items() if states.get(key) == state}
            self._seen = {key: (state, same.get(key, now)) for key, state in states.items()}
            return self._seen

    def _sweep(self) -> None:
        """Remove what the dead left. One who only seemed dead puts its lease back with its next beat."""
        if time.monotonic() - self._looked < SILENCE / BEATS / 2:
            return  # another lease of this process has just looked
        for key, (_, since) in self._look().items():
            if self._looked - since >= SILENCE:
                log.info("%s was left by a run that is gone; it is removed", key)
                self._objects.delete(key)

    def _beat(self, key: str, me: dict[str, Any], ended: threading.Event) -> None:
        count = 0
        while not ended.wait(SILENCE / BEATS):
            count += 1
            try:
                there = self._read(key)
                if there is not None and not _is_mine(there, me):
                    log.warning("%s was taken over by %s, to whom this run seemed dead; both make the same bytes", key, _holder(there))
                    return
                self._write(key, me, count, "overwrite")
                self._sweep()
            except (OSError, obstore.exceptions.BaseError) as error:
                log.warning("%s could not be renewed (%s)", key, type(error).__name__)

    def _write(self, key: str, me: dict[str, Any], beat: int, mode: Literal["create", "overwrite"]) -> bool:
        """Whether it is written, and not there already."""
        try:
            obstore.put(self._objects, key, json.dumps(me | {"beat": beat}).encode(), mode=mode)
        except obstore.exceptions.AlreadyExistsError:
            return False
        return True

    def _read(self, key: str) -> bytes | None:
        try:
            return bytes(self._objects.get(key).bytes())
        except FileNotFoundError:
            return None


def _is_mine(there: bytes | None, me: dict[str, Any]) -> bool:
    return there is not None and me["holder"].encode() in there


def _holder(there: bytes) -> str:
    try:
        holder = json.loads(there)
        return f"process {holder['process']} on {holder['host']}"
    except (ValueError, KeyError, TypeError):
        return "another"
