"""Keys: a name for work, derived from the configuration that made it, so that a name can never hold other work."""

import hashlib
import json
from typing import Any


def canonical(value: Any) -> bytes:
    """One spelling for equal values: sorted keys, no spaces, so that equal configurations have equal keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def key_of(*parts: Any) -> str:
    """Sixteen hexadecimal digits (64 bits) that name these JSON values."""
    return hashlib.sha256(canonical(parts)).hexdigest()[:16]
