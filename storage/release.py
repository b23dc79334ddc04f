"""A release: a folder that other people's libraries load without this project.

    README.md  suite.yaml  metrics.parquet  pareto.png
    saelens/…  gemma_scope/…      the dictionaries, in the formats of other libraries (`storage/formats`)
    scorecards/SITE/NAME.json     what was measured of each, where its formats lie, a checksum of its weights
    samples/SITE.safetensors      held-out rows to verify them on, without the model
    samples/tokens.safetensors    held-out sequences to verify them on, with it
    provenance.json               where each comes from: code, lock, configuration, text, machine, time
    release.key                   names the scorecards and the code that made it
    SHA256SUMS                    of every other file, written last

Not here: what the card says (`tasks/card.py`), and how it gets into a bucket or onto a hub (`storage/publishing.py`).
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from core.dictionary import Dictionary
from core.errors import JumpsuiteError
from core.forms import from_gated, gated
from core.site import Site
from core.spec import DictionarySpec
from storage.formats import FORMATS, LOADING, gemma_scope, read
from storage.formats.released import ReleasedDictionary

SUMS = "SHA256SUMS"
KEY = "release.key"
PROVENANCE = "provenance.json"
SEQUENCES = "samples/tokens.safetensors"
CANONICAL = "canonical"
"""Beside the `average_l0_N` of a width in Gemma Scope's tree: the one to take for who does not care."""


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` that takes its place when the block ends well, and is removed when it does not.

    Raises:
        JumpsuiteError: `folder` is there and is not a release of ours alone, so it is not replaced.
    """
    folder = folder.resolve()
    stage, old = (folder.with_name(f".{folder.name}.{what}") for what in ("staged", "old"))
    if old.exists() and not folder.exists():  # killed between the two renames below
        old.rename(folder)
    if folder.exists() and any(folder.iterdir()) and not _is_ours(folder):
        raise not_a_release(str(folder))
    for left in (stage, old):
        shutil.rmtree(left, ignore_errors=True)
    stage.mkdir(parents=True)
    try:
        yield stage
        _write_sums(stage)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise
    if folder.exists():
        folder.rename(old)
    stage.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def listed(sums: str) -> dict[str, str]:
    """The SHA-256 of each name; no name where a line has none."""
    return {name: sha256 for sha256, _, name in (line.partition("  ") for line in sums.splitlines())}


def not_a_release(where: str) -> JumpsuiteError:
    return JumpsuiteError(
        f"{where} is there and is not a release, or holds other files too; expected a new place or a release as it was written; "
        "choose another with --to"
    )


def _is_ours(folder: Path) -> bool:
    """Whether a folder holds a release and nothing else, hidden files included."""
    if not ((folder / SUMS).is_file() and (folder / KEY).is_file()):
        return False
    names = listed((folder / SUMS).read_text(errors="replace"))
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} <= {*names, SUMS}


def is_current(folder: Path, key: str) -> bool:
    """Whether a folder holds the release that this key names, undamaged."""
    path = folder / KEY
    return path.is_file() and path.read_text(errors="replace") == key and (folder / SUMS).is_file() and not check_sums(folder)


def write_dictionary(folder: Path, one: ReleasedDictionary, formats: list[str], canonical: bool) -> dict[str, str]:
    """Write a dictionary in every format that has a form for it; gives where each lies."""
    places = {}
    for name in formats:
        if path := FORMATS[name].path(one):
            place = f"{name}/{path}"
            if (folder / place).exists():  # two dictionaries of a site may have the same mean L0
                place = f"{place}_{one.spec.name}"
            for file, data in FORMATS[name].files(one).items():
                _write(folder / place / file, data)
            places[name] = place
    if canonical and "gemma_scope" in places:
        again = folder / f"gemma_scope/{gemma_scope.of_width(one)}/{CANONICAL}"
        again.mkdir()
        own = folder / places["gemma_scope"] / gemma_scope.MARK
        try:
            (again / gemma_scope.MARK).hardlink_to(own)
        except OSError:  # not every disk has links
            shutil.copyfile(own, again / gemma_scope.MARK)
    return places


def write_scorecard(folder: Path, spec: DictionarySpec, scorecard: dict[str, Any]) -> None:
    _write(folder / f"scorecards/{spec.site}/{spec.name}.json", json.dumps(scorecard, indent=2, sort_keys=True).encode() + b"\n")


def digests(dictionary: Dictionary, formats: Iterable[str]) -> dict[str, str]:
    """The digest of a dictionary as it is read from each format: the same, but for a Gated SAE's thresholds, which are rounded differences."""
    return {name: digest(from_gated(**gated(dictionary)) if name == "saelens_gated" else dictionary) for name in formats}


def digest(dictionary: Dictionary) -> str:
    """SHA-256 of a dictionary's weights, whatever format they are in."""
    sha256 = hashlib.sha256(str(dictionary.k).encode())
    for name, tensor in sorted(dictionary.tensors().items()):
        sha256.update(f"{name}{tuple(tensor.shape)}".encode() + tensor.contiguous().numpy().tobytes())
    return sha256.hexdigest()


def write_sample(folder: Path, site: Site, rows: Tensor) -> None:
    _write(folder / f"samples/{site}.safetensors", safetensors.torch.save({"rows": rows.contiguous()}))


def write_sequences(folder: Path, tokens_SC: Tensor, is_text_SC: Tensor) -> None:
    """Sequences of held-out text, S x C, and which of their tokens are text."""
    _write(folder / SEQUENCES, safetensors.torch.save({"tokens": tokens_SC.int().contiguous(), "is_text": is_text_SC.contiguous()}))


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_file(folder: Path, name: str, data: bytes) -> None:
    _write(folder / name, data)


def _write_sums(folder: Path) -> None:
    lines = [f"{_sha256(folder / name)}  {name}\n" for name in _files(folder)]
    (folder / SUMS).write_text("".join(lines))


# Reading a release back


def check_sums(folder: Path) -> list[str]:
    """A sentence for every file that is missing, changed or not listed.

    Raises:
        JumpsuiteError: the folder is no release.
    """
    if not (folder / SUMS).is_file():
        raise JumpsuiteError(f"{folder} has no {SUMS}; expected a release; name a folder that jumpsuite release wrote")
    damaged = JumpsuiteError(f"{folder / SUMS} is damaged; expected a checksum and a name a line; get the release again")
    try:
        sums = listed((folder / SUMS).read_text())
    except UnicodeDecodeError:
        raise damaged from None
    if "" in sums:
        raise damaged
    present = set(_files(folder))
    faults = [f"{name} is missing" for name in sorted(set(sums) - present)]
    faults += [f"{name} is not in {SUMS}" for name in sorted(present - set(sums))]
    faults += [f"{name} was changed" for name in sorted(present & set(sums)) if _sha256(folder / name) != sums[name]]
    return faults


def scorecard_paths(folder: Path) -> list[Path]:
    return sorted((folder / "scorecards").rglob("*.json"))


def read_scorecard(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_bytes()))


def places(scorecard: dict[str, Any]) -> dict[str, str]:
    """Where a dictionary lies, by format, in the order of FORMATS.

    Raises:
        JumpsuiteError: that is nowhere, or out of the release.
    """
    said = scorecard.get("formats")
    if not isinstance(said, dict) or not said or not all(name in FORMATS and _inside(name, place) for name, place in said.items()):
        raise JumpsuiteError(f"a scorecard's formats are {str(said)[:200]!r}; expected a folder of the release for each; get the release again")
    return {name: said[name] for name in FORMATS if name in said}


def _inside(name: str, place: object) -> bool:
    return isinstance(place, str) and place.startswith(f"{name}/") and not any(part.startswith(".") for part in place.split("/"))


def read_dictionaries(folder: Path, scorecard: dict[str, Any]) -> Iterator[tuple[str, Dictionary]]:
    """The dictionary of a scorecard in each format, one after another.

    Raises:
        JumpsuiteError: a file does not hold the float32 tensors of its format, of one shape, and of the site that the scorecard says.
    """
    for name, place in places(scorecard).items():
        try:
            found, site = read(name, folder / place), str(FORMATS[name].site(folder / place))
        except LOADING as error:
            raise JumpsuiteError(f"{place} cannot be loaded ({error}); expected a dictionary in that format; get the release again") from None
        if site != scorecard["spec"]["site"]:
            raise JumpsuiteError(
                f"{place} says that it is of {site}; expected {scorecard['spec']['site']}, as its scorecard says; get the release again"
            )
        yield name, found


def read_dictionary(folder: Path, scorecard: dict[str, Any]) -> dict[str, Dictionary]:
    """The same at once."""
    return dict(read_dictionaries(folder, scorecard))


def read_canonical(folder: Path, scorecard: dict[str, Any]) -> Dictionary | None:
    """The copy of a canonical dictionary in Gemma Scope's tree; None where the release has none. Raises as `read_dictionaries`."""
    if not scorecard.get("canonical") or "gemma_scope" not in places(scorecard):
        return None
    place = Path(places(scorecard)["gemma_scope"]).parent / CANONICAL
    try:
        return read("gemma_scope", folder / place)
    except LOADING as error:
        raise JumpsuiteError(f"{place} cannot be loaded ({error}); expected the canonical dictionary; get the release again") from None


def read_sample(folder: Path, site: str) -> Tensor:
    return safetensors.torch.load_file(folder / f"samples/{Site.parse(site)}.safetensors")["rows"]


def read_sequences(folder: Path) -> tuple[Tensor, Tensor]:
    """Tokens and which are text, as `write_sequences` takes them."""
    found = safetensors.torch.load_file(folder / SEQUENCES)
    return found["tokens"].long(), found["is_text"]


def _files(folder: Path) -> list[str]:
    """Every file of a release; what a hub or git keeps beside it, `.git` or `.gitattributes`, is not of it."""
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    return sorted(str(name) for name in names if not name.parts[0].startswith("."))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
