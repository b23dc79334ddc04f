"""Prefect's settings for a run from the command line. To be set before anything imports Prefect.

A user who has a Prefect server keeps every setting of their own; who has none gets a server for the length of the run, quiet,
with its data in a folder beside the suite's.
"""

import os
import shutil
import traceback
from pathlib import Path

from core.errors import ConfigError, JumpsuiteError
from flows import PACKAGES

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
    quiet()


def quiet() -> None:
    """Keep what Prefect says to developers from users, also of commands that run no flow."""
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", ",".join(PACKAGES))
    os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
    # What went wrong is said by the command line in a sentence; tracebacks stay in the run's log on the server.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    # A busy machine takes longer than Prefect's 20 seconds to start it.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")


def reach(needed: bool = False) -> None:
    """See that the Prefect server that is configured, if one is, can be worked with.

    Raises:
        ConfigError: it does not answer, is not a Prefect server, or refuses the credentials; or is needed and none is configured.
    """
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    expected = "expected the address of a Prefect server, such as http://localhost:4200/api; start one with prefect server start, correct it"
    expected += "" if needed else ", or unset it to run with a server of the run's own"
    if not (address := PREFECT_API_URL.value()):
        if needed:
            raise ConfigError(f"PREFECT_API_URL is not set; {expected}")
        return
    try:
        with get_client(sync_client=True) as client:
            client._client.get("/admin/version")  # of all questions the quickest that asks for credentials; the client has no name for it
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise ConfigError(
                f"PREFECT_API_URL is {address!r}, which refuses the credentials (HTTP {status}); expected those that the server was started with; "
                "set PREFECT_API_AUTH_STRING=USER:PASSWORD, or PREFECT_API_KEY for Prefect Cloud"
            ) from None
        raise ConfigError(f"PREFECT_API_URL is {address!r}, which answers, but not as Prefect does (HTTP {status}); {expected}") from None
    except (httpx.HTTPError, ValueError) as error:
        raise ConfigError(f"PREFECT_API_URL is {address!r}, which does not answer ({_cause(error)}); {expected}") from None


def fault_of(error: BaseException) -> str | None:
    """What to tell a user when the Prefect server fails during a run; None of an error that did not come from there."""
    import httpx

    met: BaseException | None = error
    while met and not (isinstance(met, httpx.HTTPError) and _came_through_prefect(met)):
        met = met.__cause__ or met.__context__
    if met is None:
        return None
    return (
        f"the Prefect server failed ({_cause(met)}); expected it to answer, and room for its database; see to it and run again, "
        "which goes on from what is committed"
    )


def _came_through_prefect(error: BaseException) -> bool:
    """Whether its client raised it; a model hub's is built on the same library."""
    return any(frame.f_globals["__name__"].startswith("prefect.client") for frame, _ in traceback.walk_tb(error.__traceback__))


def _cause(error: BaseException) -> str:
    import httpx

    if isinstance(error, httpx.HTTPStatusError):
        return f"HTTP {error.response.status_code}"
    return " ".join(str(error).split()) or type(error).__name__
