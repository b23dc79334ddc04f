"""Large files written past the system's page cache.

A harvest writes more than the cache holds, beside a model that needs both memory and cores; a page of cache for every page written costs
the system's time, many times what the disk takes by itself where memory is given to a virtual machine page by page.
"""

import errno
import fcntl
import mmap
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

_LARGE = 2**20
"""Bytes from which a file is written so."""
_ROOM = 2**22
"""Bytes written at a time."""
_ALIGNED = 4_096
"""What disks ask of addresses and lengths that go by the cache."""

_local = threading.local()


def write(path: Path, pieces: Sequence[Any]) -> None:
    """Write a file of these buffers, one after another; on file systems that cannot go by the cache, in the usual way.

    Raises:
        OSError: as `open` and `write` do; the file is then incomplete.
    """
    if sum(memoryview(piece).nbytes for piece in pieces) >= _LARGE and _write_direct(path, pieces):
        return
    with path.open("wb") as file:
        file.writelines(pieces)


def _write_direct(path: Path, pieces: Sequence[Any]) -> bool:
    """Whether the file system could."""
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_DIRECT, 0o666)
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        return False  # neither macOS nor a disk in memory has it
    try:
        room, filled = _room(), 0
        for piece in pieces:
            rest = np.frombuffer(piece, np.uint8)
            while len(rest):
                taken, rest = rest[: _ROOM - filled], rest[_ROOM - filled :]
                room[filled : filled + len(taken)] = taken
                filled += len(taken)
                if filled == _ROOM:
                    _write_all(file, room)
                    filled = 0
        whole = filled - filled % _ALIGNED
        _write_all(file, room[:whole])
        fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) & ~os.O_DIRECT)
        _write_all(file, room[whole:filled])
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    finally:
        os.close(file)
    return True


def _write_all(file: int, data: Any) -> None:
    while len(data):
        data = data[os.write(file, data) :]


def _room() -> Any:
    """Memory that begins with a page, of this thread."""
    if not hasattr(_local, "room"):
        _local.room = np.frombuffer(mmap.mmap(-1, _ROOM), np.uint8)
    return _local.room
