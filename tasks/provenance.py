"""Provenance: which code measured a number."""

import os
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path


@cache
def code() -> dict[str, str]:
    """The commit this checkout stands at (`-dirty` when files differ from it) and the libraries that numbers depend on."""
    return {"commit": _commit(), **{name: version(name) for name in ("torch", "transformers", "numpy")}}


def _commit() -> str:
    here = Path(__file__).parent
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(command, cwd=here, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("JUMPSUITE_COMMIT", "unknown")  # an image has no repository
