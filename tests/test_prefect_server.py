"""A Prefect server that somebody set up: what the command line says when it cannot be worked with."""

from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from command import jumpsuite, write_suite
from conftest import tiny_fields
from ports import free_port
from prefect_server import PrefectServer


@pytest.fixture(scope="module")
def suite_file(tiny_model: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_suite(tiny_fields(tiny_model, tiny_text), tmp_path_factory)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Prefect server that asks for credentials."""
    server = PrefectServer(tmp_path_factory.mktemp("guarded"), PREFECT_SERVER_API_AUTH_STRING="ada:engine")
    server.start()
    yield server.address
    server.stop()


@pytest.fixture(scope="module")
def something_else() -> Iterator[str]:
    """The address of a server that is not Prefect's."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/api"
    server.shutdown()
    server.server_close()


def said(suite_file: Path, store: Path, **prefect: str) -> str:
    """What a run says, in one line, that cannot begin for its Prefect server."""
    run = jumpsuite("run", suite_file, "--store", store, **prefect)
    assert run.returncode == 2, run.stdout + run.stderr
    assert not run.stdout
    (line,) = run.stderr.splitlines()
    return line


def test_a_server_that_is_down_is_named_before_anything_begins(suite_file: Path, tmp_path: Path) -> None:
    address = f"http://127.0.0.1:{free_port()}/api"
    line = said(suite_file, tmp_path, PREFECT_API_URL=address)
    assert f"PREFECT_API_URL is '{address}', which does not answer" in line
    assert "start one with prefect server start" in line


@pytest.mark.parametrize("address", ["nonsense", "localhost:4200/api", "http://no-such-host.invalid/api"])
def test_an_address_that_leads_nowhere_is_named(address: str, suite_file: Path, tmp_path: Path) -> None:
    line = said(suite_file, tmp_path, PREFECT_API_URL=address)
    assert f"PREFECT_API_URL is '{address}', which does not answer" in line
    assert "such as http://localhost:4200/api" in line


def test_an_address_where_something_else_answers_is_named(suite_file: Path, tmp_path: Path, something_else: str) -> None:
    assert "which answers, but not as Prefect does (HTTP 404)" in said(suite_file, tmp_path, PREFECT_API_URL=something_else)


@pytest.mark.parametrize("credentials", [{}, {"PREFECT_API_AUTH_STRING": "ada:loom"}])
def test_credentials_that_are_refused_are_named_and_not_repeated(credentials: dict[str, str], suite_file: Path, tmp_path: Path, guarded: str) -> None:
    line = said(suite_file, tmp_path, PREFECT_API_URL=guarded, **credentials)
    assert "refuses the credentials (HTTP 401)" in line
    assert "set PREFECT_API_AUTH_STRING=USER:PASSWORD" in line
    assert "loom" not in line


@pytest.mark.parametrize("command", ["plan", "status"])
def test_what_only_reads_the_store_needs_no_server(command: str, suite_file: Path, tmp_path: Path) -> None:
    run = jumpsuite(command, suite_file, "--store", tmp_path, PREFECT_API_URL=f"http://127.0.0.1:{free_port()}/api")
    assert run.returncode == 0, run.stderr
    assert "Traceback" not in run.stdout + run.stderr
