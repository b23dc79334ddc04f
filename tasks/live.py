"""Progress in the Prefect UI. It neither stops the work nor slows it: a thread of its own sends it, and what no server takes is not shown."""

import contextvars
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import FlowRunContext, TaskRunContext

log = logging.getLogger(__name__)

SECONDS = 10.0
"""Between two looks at a progress; what ends sooner shows none."""
LAST_SECONDS = 2.0
"""That the last look may take at the end."""


@contextmanager
def shown(look: Callable[[], tuple[float, str]]) -> Iterator[None]:
    """Show a progress, as `look` gives it in percent and in words, while the block runs. Outside of Prefect's runs, nothing."""
    if not in_a_run():
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=contextvars.copy_context().run, args=(_keep_showing, look, ended), daemon=True, name="progress")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(LAST_SECONDS)


def _keep_showing(look: Callable[[], tuple[float, str]], ended: threading.Event) -> None:
    artifact: UUID | None = None
    while not ended.wait(SECONDS):
        artifact = _show(artifact, *look())
    if artifact:
        _show(artifact, *look())


def _show(artifact: UUID | None, percent: float, words: str) -> UUID | None:
    try:
        if artifact is None:
            return cast("UUID", create_progress_artifact(percent, description=words))
        update_progress_artifact(artifact, percent, description=words)
    except Exception:  # the work is what counts
        log.debug("progress was not taken by the server", exc_info=True)
    return artifact


def in_a_run() -> bool:
    """Whether Prefect runs this, so that it has where to show something."""
    return bool(FlowRunContext.get() or TaskRunContext.get())
