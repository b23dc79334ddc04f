"""What local files hold, in a word: SHA-256 over names and contents, remembered by size and time of change."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from core.key import key_of
from storage.objects import Store


def digest(store: Store, files: Iterable[Path]) -> str:
    """Names the contents of these files. A file that has not changed since is not read again."""
    here = Store(store.local(""))  # what is known of this machine's files is of no use in a bucket
    return key_of([(path.name, _file_digest(here, path)) for path in sorted(files)])


def _file_digest(store: Store, path: Path) -> str:
    stat = path.stat()
    key = f"digests/{key_of(str(path.resolve()), stat.st_size, stat.st_mtime_ns)}.json"
    if known := store.get_record(key):
        return str(known["sha256"])
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if store.exists:  # `plan` makes no store
        store.put_record(key, {"path": str(path), "sha256": sha256})
    return sha256
