"""Provenance: which code measured a number, and all that a released dictionary comes from."""

import hashlib
import json
import os
import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from storage.catalogue import Catalogue
from tasks.tables import Scored

LOCK = Path(__file__).parent.parent / "constraints.txt"


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


def provenance(catalogue: Catalogue, scored: Scored, description: dict[str, Any]) -> bytes:
    """What each released dictionary comes from, as JSON. Alone of a release it says where and when, so that it is another one for every run.

    Args:
        description: of the harvest.
    """
    suite = catalogue.suite
    dictionaries = {}
    for spec, card in scored:
        folder = catalogue.folder(spec)
        facts = folder.facts
        dictionaries[f"{spec.site}/{spec.name}"] = {
            "dictionary": folder.key,
            "harvest": facts["harvest"],
            "spec": spec.identity(),
            "training": facts["training"],
            "trained_by": facts["code"],
            "scored_by": card["code"],
            "start": facts.get("start"),
            **folder.pace,
        }
    told = {
        "model": {"source": suite.model.source, "revision": suite.model.revision, "dtype": suite.model.dtype, "identity": description["model"]},
        "tokenizer": description["model"],
        "text": {**suite.text.model_dump(), "identity": description["text"], "token_fingerprint": description["token_fingerprint"]},
        "released_by": code(),
        "python": platform.python_version(),
        "lock_sha256": hashlib.sha256(LOCK.read_bytes()).hexdigest() if LOCK.is_file() else None,
        "dictionaries": dictionaries,
    }
    return json.dumps(told, indent=2, sort_keys=True).encode() + b"\n"
