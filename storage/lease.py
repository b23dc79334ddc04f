"""A lease: the right to work alone under a name in an object store, for as long as its holder shows that it lives.

The holder changes a small object every few seconds. Who finds one there watches it by a clock of their own: if it stays the same for
SILENCE seconds, its holder is gone, killed or cut off, and the name is free. No two clocks are compared, so a wrong one does no harm.
Object stores that create conditionally let only one create it; for those that do not, who wrote last has it, after a moment to settle.
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
from typing import Any

import obstore
import obstore.exceptions

log = logging.getLogger(__name__)

SILENCE = 60.0
BEATS = 6
"""In each such time, so that one or two may fail."""
SETTLE = 0.5


@contextmanager
def lease(objects: Any, name: str, taken: Callable[[], Exception], watch: bool = True) -> Iterator[None]:
    """Hold `name` while the block runs.

    Args:
        watch: find out whether a holder lives, which takes SILENCE seconds if not; without, whoever holds it is taken to live.

    Raises:
        What `taken` gives, if somebody else who lives holds it.
    """
    me = {"holder": uuid.uuid4().hex, "host": socket.gethostname(), "process": os.getpid()}
    _take(objects, name, me, taken, watch)
    ended = threading.Event()
    heart = threading.Thread(target=_beat, args=(objects, name, me, ended), daemon=True, name=f"lease {name}")
    heart.start()
    try:
        yield
    finally:
        ended.set()
        heart.join()
        if _is_mine(_read(objects, name), me):
            objects.delete(name)


def _take(objects: Any, name: str, me: dict[str, Any], taken: Callable[[], Exception], watch: bool) -> None:
    there = _read(objects, name)
    if there is not None and not watch:
        raise taken()
    if there is not None:
        log.info("%s is held by %s; watching for up to %.0f s whether it lives", name, _holder(there), SILENCE)
        silent_since = time.monotonic()
        while time.monotonic() - silent_since < SILENCE:
            time.sleep(SILENCE / BEATS / 4)
            now = _read(objects, name)
            if now is None:
                break
            if now != there:
                raise taken()
    try:
        # Whoever takes over from the dead overwrites; only a name that is free can be created.
        mode: Any = "create" if _read(objects, name) is None else "overwrite"
        _write(objects, name, me, 0, mode)
    except obstore.exceptions.AlreadyExistsError:
        raise taken() from None
    time.sleep(SETTLE)
    if not _is_mine(_read(objects, name), me):
        raise taken()


def _beat(objects: Any, name: str, me: dict[str, Any], ended: threading.Event) -> None:
    count = 0
    while not ended.wait(SILENCE / BEATS):
        count += 1
        try:
            there = _read(objects, name)
            if there is not None and not _is_mine(there, me):
                log.warning("%s was taken over by %s, to whom this run seemed dead; both make the same bytes", name, _holder(there))
                return
            _write(objects, name, me, count, "overwrite")
        except (OSError, obstore.exceptions.BaseError) as error:
            log.warning("%s could not be renewed (%s)", name, type(error).__name__)


def _write(objects: Any, name: str, me: dict[str, Any], beat: int, mode: Any) -> None:
    obstore.put(objects, name, json.dumps(me | {"beat": beat}).encode(), mode=mode)


def _read(objects: Any, name: str) -> bytes | None:
    try:
        return bytes(objects.get(name).bytes())
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
