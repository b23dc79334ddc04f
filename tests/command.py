"""The command as its user runs it, in a process of its own or in this one, and what it leaves in a store."""

import hashlib
import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.main import main


def jumpsuite(*arguments: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=3_000, check=False, env=environment(**more))


def here(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command in this process, which has everything imported, and with the server of `prefect_server` if it needs one: for what does not
    ask how a process starts or ends."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([*map(str, arguments)])
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def environment(**more: str) -> dict[str, str]:
    plain = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    return plain | more


def write_suite(fields: dict[str, Any], folders: pytest.TempPathFactory) -> Path:
    """A suite file with these fields, in a folder of its own."""
    path = folders.mktemp("suite") / "tiny.yaml"
    path.write_text(yaml.safe_dump(fields))
    return path


def results(store: Path, suite: str = "tiny") -> dict[str, str]:
    """Everything a run leaves for use, by name, with its checksum. Prefect's database and remembered digests are not of it; nor is what says
    where and when a release's dictionaries were made, and its checksum."""
    paths = [path for part in ("harvests", "dictionaries", "explanations", suite) for path in sorted((store / part).rglob("*")) if path.is_file()]
    return {str(path.relative_to(store)): _checksum(path) for path in paths if path.name != "provenance.json"}


def _checksum(path: Path) -> str:
    data = path.read_bytes()
    if path.name == "SHA256SUMS":
        data = b"".join(line for line in data.splitlines(keepends=True) if not line.endswith(b"  provenance.json\n"))
    return hashlib.sha256(data).hexdigest()
