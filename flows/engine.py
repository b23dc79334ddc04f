"""Prefect's settings for a run from the command line. To be set before anything imports Prefect.

A user who has a Prefect server keeps every setting of their own; who has none gets a server for the length of the run, quiet,
with its data in the store.
"""

import os
from pathlib import Path


def settle(store: Path) -> None:
    """Put settings into the environment where the user has none."""
    os.environ.setdefault("PREFECT_HOME", str(store.resolve() / "prefect"))
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "core,storage,tasks,flows")
    # What went wrong is said by the command line in a sentence; tracebacks stay in the run's log on the server.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_CLI_PROMPT", "false")
