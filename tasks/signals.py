"""Signals to end, of Ctrl-C, a cluster, or somebody who cancels a run: taken at a moment at which nothing is half done."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

TO_END = (signal.SIGTERM, signal.SIGINT)


def never() -> bool:
    return False


@contextmanager
def held_back() -> Iterator[Callable[[], bool]]:
    """Give a function that tells whether such a signal came while the block runs, which is to end soon then. It takes effect behind the block,
    or at once when it comes a second time. In a thread, which no signal reaches, there is none.
    """
    if threading.current_thread() is not threading.main_thread():
        yield never
        return
    came: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if came:
            restore()
            signal.raise_signal(number)
        came.append(number)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, note) for number in TO_END}
    try:
        yield lambda: bool(came)
    finally:
        restore()
    if came:
        signal.raise_signal(came[0])
