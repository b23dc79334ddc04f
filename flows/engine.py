"""Prefect's settings for a run from the command line. To be set before anything imports Prefect.

A user who has a Prefect server keeps every setting of their own; who has none gets a server for the length of the run, quiet,
with its data in a folder beside the suite's.
"""

import os
import shutil
from pathlib import Path

from core.errors import JumpsuiteError

ROOM = 4 * 10**6
"""Bytes that the server's database takes at its beginning; with less it would not start, and say so only after minutes."""


def settle(home: Path) -> None:
    """Put settings into the environment where the user has none.

    Raises:
        JumpsuiteError: there is no room for the server's data.
    """
    has_profile = (Path.home() / ".prefect" / "profiles.toml").exists()
    if not (has_profile or {"PREFECT_HOME", "PREFECT_API_URL", "PREFECT_PROFILES_PATH"} & os.environ.keys()):
        home.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(home).free) < ROOM:
            raise JumpsuiteError(f"{home} has {free / 1e6:.1f} MB left; expected {ROOM / 1e6:.0f} MB and more; make room and run again")
        os.environ["PREFECT_HOME"] = str(home)
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "core,storage,tasks,flows")
    os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
    # What went wrong is said by the command line in a sentence; tracebacks stay in the run's log on the server.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    # A busy machine takes longer than Prefect's 20 seconds to start it.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
