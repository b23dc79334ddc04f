"""The Hugging Face hub: a release as a repository, `hf://ORG/NAME`. It is published in one commit, or not at all.

Large files go there first, where nobody sees them until a commit names them; of an upload that was cut off they need not go again. The token
comes from the environment (`HF_TOKEN`) or from `hf auth login`.
"""

import hashlib
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import httpx
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoCard, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import ModelInfo, RepoSibling

from core.errors import ConfigError, JumpsuiteError
from core.slices import slices
from storage.changes import Changes
from storage.release import SUMS, listed

AT_ONCE = 64
"""Files that are sent before it is said how far it is."""
OF_THE_HUB = {".gitattributes"}
"""What the hub itself puts into a repository."""


class Hub:
    """Raises ConfigError where the address names no repository."""

    def __init__(self, address: str) -> None:
        named = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([\w.-]+))?(?:/(.+?))?/?", address)
        if not named:
            raise ConfigError(
                f"the place is {address!r}; expected a repository of the hub; write it hf://ORG/NAME, or to read hf://ORG/NAME@REVISION/FOLDER"
            )
        self.address, self._repository, self._revision, self._folder = address, named[1], named[2], named[3]

    @cached_property
    def _api(self) -> HfApi:
        return HfApi(library_name="jumpsuite")

    def changes(self, folder: Path) -> Changes:
        """What publishing a folder's release would change.

        Raises:
            JumpsuiteError: the repository holds what is of no release, or the hub does not answer.
        """
        if self._revision is not None or self._folder is not None:
            raise ConfigError(f"the place is {self.address!r}; expected a whole repository to publish to; write hf://{self._repository}")
        found, known = dict[str, RepoSibling](), set[str]()
        if self._there is not None:
            found = {file.rfilename: file for file in (self._there.siblings or []) if file.rfilename not in OF_THE_HUB}
            if SUMS in found:
                with self._explained("read"):
                    sums = Path(self._api.hf_hub_download(self._repository, SUMS, revision=self._there.sha))
                known = set(listed(sums.read_text(errors="replace")))
        return Changes.to(folder, set(found), lambda name, sha256: _is(found[name], folder / name, sha256), known, self.address)

    @cached_property
    def _there(self) -> ModelInfo | None:
        """The commit that there is something to change of, with its files; None where there is no repository."""
        with self._explained("read"):
            try:
                return self._api.model_info(self._repository, files_metadata=True)
            except (RepositoryNotFoundError, RevisionNotFoundError):
                return None

    def publish(self, folder: Path, message: str) -> Iterator[str]:
        """Make the repository the release of a folder, saying how far it is.

        Raises:
            JumpsuiteError: as `changes`; or somebody else changed it meanwhile. Then nothing is published.
        """
        changes = self.changes(folder)
        yield str(changes)
        if not changes.some:
            return
        with self._explained("written to"):
            # What the hub would refuse at the end, after everything was sent.
            RepoCard((folder / "README.md").read_text(encoding="utf-8"), ignore_metadata_errors=True).validate()
            self._api.create_repo(self._repository, exist_ok=True)
            additions = {name: CommitOperationAdd(name, folder / name) for name in changes.added}
            sums = listed((folder / SUMS).read_text())
            once = list({sums.get(name, name): addition for name, addition in additions.items()}.values())  # what is there twice is sent once
            for some in slices(len(once), AT_ONCE):
                self._api.preupload_lfs_files(self._repository, once[some], free_memory=False)
                yield f"{some.stop:,} of {len(once):,} files are there, not yet published"
            operations: list[CommitOperationAdd | CommitOperationDelete] = [*additions.values(), *map(CommitOperationDelete, changes.removed)]
            onto = self._there.sha if self._there else None
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "It seems that you are about to commit a data file")  # metrics.parquet
                commit = self._api.create_commit(self._repository, operations, commit_message=message, parent_commit=onto)
        yield f"published in one commit, {commit.oid[:12]}"

    def fetch(self) -> Path:
        """Every file there, in the hub's cache. Raises JumpsuiteError where there is none, or the hub does not answer."""
        with self._explained("read"):
            pattern = f"{self._folder}/*" if self._folder else None
            return Path(snapshot_download(self._repository, revision=self._revision, allow_patterns=pattern), self._folder or "")

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except LocalEntryNotFoundError as error:
            raise JumpsuiteError(f"{self.address} could not be {what} ({_said(error)}); expected the hub to answer; run it again") from None
        except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError) as error:
            raise JumpsuiteError(
                f"{self.address} is not there, or not for this token ({_said(error)}); expected a repository; correct the address or set HF_TOKEN"
            ) from None
        except HfHubHTTPError as error:
            code = error.response.status_code if error.response is not None else None
            hint = "set HF_TOKEN to a token that may write there" if code in (401, 403) else "run it again, which sends only what is not there"
            raise JumpsuiteError(f"{self.address} could not be {what} ({_said(error)}); expected it to be; {hint}") from None
        except (httpx.HTTPError, OSError, RuntimeError, HFValidationError, ValueError) as error:
            raise JumpsuiteError(
                f"{self.address} could not be {what} ({_said(error)}); expected the hub to answer; run it again, which sends only what is not there"
            ) from None


def _is(there: RepoSibling, path: Path, sha256: str) -> bool:
    """Whether what the hub has is a file: by the SHA-256 of large ones, and as git names the others."""
    if there.lfs:
        return there.lfs.sha256 == sha256
    data = path.read_bytes()
    return there.blob_id == hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _said(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
