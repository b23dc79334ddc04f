"""Prefect's server, the database behind it, and workers, as somebody who runs suites on several machines has them: each a process."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from ports import free_port, until_answered

QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


class PrefectServer:
    """A server that can be killed and started again, with its data in a folder or in the database that `settings` name."""

    def __init__(self, home: Path, port: int | None = None, **settings: str) -> None:
        self.port = port or free_port()
        self.address = f"http://127.0.0.1:{self.port}/api"
        own = {"PREFECT_HOME": str(home), "PREFECT_API_URL": self.address}  # the address is what its pages ask
        self._environment = os.environ | own | settings

    def start(self) -> None:
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        self._process = subprocess.Popen(command, env=self._environment, start_new_session=True, **QUIET)  # type: ignore[call-overload]
        until_answered(self.port, tries=3_000)

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        os.killpg(self._process.pid, how)
        self._process.wait()


class Postgres:
    """A PostgreSQL server with an empty database. It refuses to be root, so it is `postgres`, Debian's user for it, where tests are."""

    def __init__(self) -> None:
        # Not where tests have their files: pytest lets nobody but its own user in there.
        self._folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self.port, self._data = free_port(), self._folder / "data"
        self.address = f"postgresql+asyncpg://prefect@127.0.0.1:{self.port}/postgres"
        self._as = {"user": "postgres", "group": "postgres"} if os.getuid() == 0 else {}
        if self._as:
            shutil.chown(self._folder, **self._as)
        self._run("initdb", "--auth", "trust", "--username", "prefect")
        self._run("pg_ctl", "start", "--wait", "--options", f"-p {self.port} -h 127.0.0.1 -k {self._folder} -c fsync=off -c max_connections=200")

    def stop(self) -> None:
        self._run("pg_ctl", "stop", "--mode", "immediate")
        shutil.rmtree(self._folder)

    def _run(self, program: str, *arguments: str) -> None:
        command = [_postgres_programs() / program, "--pgdata", self._data, *arguments]
        subprocess.run(command, check=True, cwd="/", **QUIET, **self._as)  # type: ignore[call-overload]


def _postgres_programs() -> Path:
    """Debian keeps them out of the PATH."""
    places = [Path(found).parent if (found := shutil.which("pg_ctl")) else None, *sorted(Path("/usr/lib/postgresql").glob("*/bin"))]
    found = [place for place in places if place and (place / "initdb").exists()]
    if not found:
        raise FileNotFoundError("these tests need PostgreSQL's server; install it, on Debian with apt-get install postgresql")
    return found[-1]


class Worker:
    """A worker of a pool, and what it runs, in a process group of their own: killed together, they are a machine that vanishes."""

    def __init__(self, server: PrefectServer, pool: str, name: str, limit: int | None = None) -> None:
        self.name = name
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process", "--name", name]
        self._command = command + (["--limit", str(limit)] if limit else [])
        self._environment = os.environ | {"PREFECT_API_URL": server.address, "PREFECT_WORKER_QUERY_SECONDS": "2"}
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, env=self._environment, start_new_session=True, **QUIET)  # type: ignore[call-overload]

    @property
    def is_busy(self) -> bool:
        """Whether it runs something at the moment."""
        return bool(_children(self._process.pid))

    def kill(self) -> None:
        """With all that it runs, which Prefect starts in sessions of their own."""
        family = [self._process.pid]
        for parent in family:
            family += _children(parent)
        for pid in family:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def kill_what_it_runs(self) -> None:
        for child in _children(self._process.pid):
            os.kill(child, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "--parent", str(pid)], capture_output=True, text=True, check=False).stdout
    return [int(child) for child in found.split()]
