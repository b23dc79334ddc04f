"""The command as its user runs it, in a process of its own, and what it leaves in a store."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml


def jumpsuite(*arguments: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, env=environment(**more))


def environment(**more: str) -> dict[str, str]:
    plain = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    return plain | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | more


def write_suite(fields: dict[str, Any], folders: pytest.TempPathFactory) -> Path:
    """A suite file with these fields, in a folder of its own."""
    path = folders.mktemp("suite") / "tiny.yaml"
    path.write_text(yaml.safe_dump(fields))
    return path


def results(store: Path, suite: str = "tiny") -> dict[str, str]:
    """Everything a run leaves for use, by name, with its checksum; Prefect's database and remembered digests are not."""
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for part in ("harvests", "dictionaries", suite)
        for path in sorted((store / part).rglob("*"))
        if path.is_file()
    }
