"""Where a store lies: a folder of this machine, or a prefix of a bucket in an object store. All that differs between the two is here.

A bucket's credentials, region and endpoint come from the environment (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, `GOOGLE_APPLICATION_CREDENTIALS`,
`AZURE_STORAGE_ACCOUNT_NAME`, …, as obstore reads them); none is written or said.
"""

import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import urlsplit

import obstore.exceptions
import obstore.store

from core.errors import ConfigError, JumpsuiteError
from core.key import key_of
from storage import files
from storage.lease import Leases

SCHEMES = ("s3", "gs", "az")

FAULTS = (OSError, obstore.exceptions.BaseError)
"""What a disk or an object store raises when it cannot do what it was asked."""

RETRIES: dict[str, Any] = {
    "max_retries": 40,
    "retry_timeout": timedelta(minutes=3),
    "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=10), "base": 2.0},
}
"""5xx, timeouts and dropped connections are tried again for three minutes, which a server's restart does not take."""
FIRST_RETRIES = RETRIES | {"max_retries": 3, "retry_timeout": timedelta(seconds=10)}
"""For the first question, which a wrong address or name must not keep waiting."""


class Place(Protocol):
    """What a store asks of where it lies."""

    @property
    def address(self) -> str:
        """What opens the same place again."""

    @property
    def exists(self) -> bool: ...

    @property
    def at_once(self) -> int:
        """How many objects are best read or written beside each other."""

    def make(self) -> None:
        """Make what is missing, or find out that nothing can be put here. Raises ConfigError."""

    @property
    def objects(self) -> Any:
        """The objects, as obstore has them."""

    def put_pieces(self, key: str, pieces: list[Any]) -> None:
        """As `Store.put_pieces`."""

    def get_range(self, key: str, start: int, length: int, room: Any) -> Any:
        """As `Store.get_range`, but what is less than asked for comes short."""

    def get_end(self, key: str, length: int) -> Any:
        """As `Store.get_end`, but what is less than asked for comes short."""

    def where(self, key: str) -> str:
        """A key as a person finds it."""

    @property
    def files(self) -> Path:
        """A folder of this machine: for the unpacked model and others that libraries read as files."""

    def lock(self, name: str, owns: Sequence[str], watch: bool) -> AbstractContextManager[None]:
        """As `Store.lock`."""


def place_of(root: str | Path) -> Place:
    """Raises ConfigError where no store can lie there."""
    return Bucket(str(root)) if "://" in str(root) else Folder(Path(root))


class Folder:
    """A local folder, made when something is first put there."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        if self.root.exists() and not self.root.is_dir():
            raise ConfigError(f"--store is {str(root)!r}, which is a file; expected a folder; choose another")

    @property
    def address(self) -> str:
        return str(self.root)

    @property
    def exists(self) -> bool:
        return self.root.is_dir()

    @property
    def at_once(self) -> int:
        return min(8, os.cpu_count() or 1)  # nearly all of it is work, in each core's cache

    def make(self) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--store is {str(self.root)!r}, which cannot be made ({error.strerror}); expected a folder; choose another") from None

    @cached_property
    def objects(self) -> obstore.store.LocalStore:
        self.make()
        return obstore.store.LocalStore(str(self.root))

    def put_pieces(self, key: str, pieces: list[Any]) -> None:
        """As obstore does, which has no way past the page cache."""
        path, beside = self.root / key, self.root / f"{key}#1"
        try:
            self.make()
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write(beside, pieces)
            beside.rename(path)
        except OSError:
            with suppress(OSError):
                beside.unlink()
            raise

    def get_range(self, key: str, start: int, length: int, room: Any) -> Any:
        found = memoryview(bytearray(length) if room is None else room)[:length]
        file = os.open(f"{self.root}/{key}", os.O_RDONLY)
        try:
            return found[: os.preadv(file, [found], start)]
        finally:
            os.close(file)

    def get_end(self, key: str, length: int) -> Any:
        size = (self.root / key).stat().st_size
        return self.get_range(key, max(0, size - length), min(size, length), None)

    def where(self, key: str) -> str:
        return str(self.root / key)

    @property
    def files(self) -> Path:
        return self.root

    @contextmanager
    def lock(self, name: str, owns: Sequence[str], watch: bool) -> Iterator[None]:  # noqa: ARG002 - the system knows at once who lives
        """The system lifts the lock when its process ends, however it ends. What a killed process was writing is swept away, for obstore
        writes `NAME#1` beside, then renames; and so are the files of locks that the dead left."""
        path = self.root / "locks" / name.replace("/", "-")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            if not _is_locked(path, file):
                raise Taken(self.where(name))
            try:
                for other in path.parent.iterdir():
                    with suppress(FileNotFoundError), other.open() as dead:
                        if other != path and _is_locked(other, dead):
                            other.unlink()
                for pattern in owns:
                    for left in self.root.glob(f"{pattern}#[0-9]*"):
                        left.unlink()
                yield
            finally:
                path.unlink(missing_ok=True)


class Bucket:
    """A prefix of a bucket: `s3://BUCKET/PREFIX`, `gs://…` or `az://CONTAINER/…`."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")
        expected = "expected a folder or s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX"
        if parts.scheme not in SCHEMES or not parts.netloc:
            raise ConfigError(f"--store is {self.address!r}; {expected}; write for example runs")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ConfigError(f"--store is {self.address!r} with more in it; {expected}; put credentials and options into the environment alone")

    def _open(self, retries: dict[str, Any] = RETRIES) -> Any:
        try:
            return obstore.store.from_url(self.address, retry_config=retries)
        except FAULTS as error:
            raise self._unreachable(error) from None

    def _unreachable(self, error: Exception) -> ConfigError:
        return ConfigError(
            f"--store is {self.address!r}, which cannot be reached ({cause_of(error)}); expected a bucket that the credentials in the environment "
            "open; set them (for S3 AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, and AWS_ENDPOINT_URL for a server of your own)"
        )

    @property
    def exists(self) -> bool:
        return True

    @property
    def at_once(self) -> int:
        return 8  # most of the time is waiting

    def make(self) -> None:
        try:
            next(iter(obstore.list(self._open(retries=FIRST_RETRIES), chunk_size=1)), None)
        except FAULTS as error:
            raise self._unreachable(error) from None

    @cached_property
    def objects(self) -> Any:
        self.make()
        return self._open()

    def put_pieces(self, key: str, pieces: list[Any]) -> None:
        obstore.put(self.objects, key, iter(pieces))

    def get_range(self, key: str, start: int, length: int, room: Any) -> Any:  # noqa: ARG002 - it comes in memory of its own
        return self._get_part(key, (start, start + length), start + length)

    def get_end(self, key: str, length: int) -> Any:
        return self._get_part(key, {"suffix": length}, length)

    def _get_part(self, key: str, part: Any, least: int) -> Any:
        try:
            return obstore.get(self.objects, key, options={"range": part}).bytes()
        except FAULTS:
            # What asks for more than there is, is answered with an error of no kind of its own.
            if self.objects.head(key)["size"] < least:
                return b""
            raise

    def where(self, key: str) -> str:
        return f"{self.address}/{key}"

    @property
    def files(self) -> Path:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return cache / "jumpsuite" / key_of(self.address)

    @contextmanager
    def lock(self, name: str, owns: Sequence[str], watch: bool) -> Iterator[None]:  # noqa: ARG002 - a bucket has no half-written object
        with self._leases.hold(name.replace("/", "-"), lambda: Taken(self.where(name)), watch):
            yield

    @cached_property
    def _leases(self) -> Leases:
        return Leases(self.objects, "locks")


class Taken(JumpsuiteError):
    """Another process works there."""

    def __init__(self, where: str) -> None:
        super().__init__(f"{where} is being worked on by another run; expected one at a time; wait for it to end")


def _is_locked(path: Path, file: IO[Any]) -> bool:
    """Lock a file, unless another process has it, or had it and let go of it, and of its name, before we did."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except (BlockingIOError, FileNotFoundError):
        return False


def cause_of(error: Exception) -> str:
    """The innermost reason of a store's error: obstore wraps what the system or the server said in its own words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error)
    if found := re.search(r'message: "([^"]+)"', text):
        return found[1]
    if found := re.search(r"<Code>([^<]+)</Code>(?:\s*<Message>([^<]+)</Message>)?", text):
        return f"{found[1]}: {' '.join(found[2].split())}" if found[2] else found[1]
    return " ".join(text.partition("Debug source")[0].split())[:160]
