"""A release: a folder that other people's libraries load without this project.

    README.md  suite.yaml  metrics.parquet  pareto.png
    saelens/SITE/NAME/cfg.json, sae_weights.safetensors                      sae_lens.SAE.load_from_disk
    gemma_scope/{res,mlp,att}/layer_L/width_W/average_l0_N/params.npz        Gemma Scope's tree, which has no form for TopK
    scorecards/SITE/NAME.json     what was measured of each
    samples/SITE.safetensors      held-out rows to verify them on, without the model
    release.key                   names the scorecards and the code that made it
    SHA256SUMS                    of every other file, written last

Not here: what the card says (`tasks/card.py`).
"""

import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from torch import Tensor

from core.dictionary import Dictionary
from core.errors import JumpsuiteError
from core.site import Site
from core.spec import DictionarySpec, width_label
from storage.objects import Store

SUMS = "SHA256SUMS"
KEY = "release.key"

# Oldest format of SAELens configurations whose metadata its loader keeps as written; this is the version it was tried with.
SAELENS_VERSION = "6.54.12"

TRANSFORMER_LENS_HOOK = {"resid_post": "hook_resid_post", "mlp_out": "hook_mlp_out", "attn_z": "attn.hook_z"}
GEMMA_SCOPE_SITE = {"resid_post": "res", "mlp_out": "mlp", "attn_z": "att"}


@dataclass(frozen=True)
class ReleasedDictionary:
    """One dictionary of a release, ready to be written."""

    spec: DictionarySpec
    dictionary: Dictionary
    scorecard: dict[str, Any]
    metadata: dict[str, Any]
    """Model, text and hook point, for people who load it."""

    @property
    def saelens_path(self) -> str:
        return f"saelens/{self.spec.site}/{self.spec.name}"

    @property
    def scorecard_path(self) -> str:
        return f"scorecards/{self.spec.site}/{self.spec.name}.json"

    @property
    def gemma_scope_path(self) -> str:
        kind, layer = GEMMA_SCOPE_SITE[self.spec.site.kind], self.spec.site.layer
        return f"gemma_scope/{kind}/layer_{layer}/width_{width_label(self.spec.width)}/average_l0_{round(self.scorecard['l0'])}"


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
        raise _not_a_release(str(folder), "folder")
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


def _listed(sums: str) -> dict[str, str]:
    """The SHA-256 of each name; no name where a line has none."""
    return {name: sha256 for sha256, _, name in (line.partition("  ") for line in sums.splitlines())}


def _not_a_release(where: str, kind: str) -> JumpsuiteError:
    return JumpsuiteError(
        f"{where} is there and is not a release, or holds other files too; expected a new {kind} or a release as it was written; "
        "choose another with --to"
    )


def _is_ours(folder: Path) -> bool:
    """Whether a folder holds a release and nothing else, hidden files included."""
    if not ((folder / SUMS).is_file() and (folder / KEY).is_file()):
        return False
    listed = _listed((folder / SUMS).read_text(errors="replace"))
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} <= {*listed, SUMS}


def is_current(folder: Path, key: str) -> bool:
    """Whether a folder holds the release that this key names, undamaged."""
    path = folder / KEY
    return path.is_file() and path.read_text(errors="replace") == key and (folder / SUMS).is_file() and not check_sums(folder)


def write_dictionaries(folder: Path, released: list[ReleasedDictionary]) -> list[dict[str, Any]]:
    """Write every dictionary in every format, and its scorecard; gives the scorecards, which now say where the formats lie."""
    cards = []
    taken: set[str] = set()
    for one in released:
        _write_saelens(folder / one.saelens_path, one)
        card = one.scorecard | {"saelens": one.saelens_path, "gemma_scope": None}
        if one.dictionary.k is None:
            path = one.gemma_scope_path
            if path in taken:  # two dictionaries of a site may have the same mean L0
                path = f"{path}_{one.spec.name}"
            taken.add(path)
            _write(folder / path / "params.npz", _npz(one.dictionary))
            card["gemma_scope"] = path
        _write(folder / one.scorecard_path, json.dumps(card, indent=2, sort_keys=True).encode() + b"\n")
        cards.append(card)
    return cards


def write_sample(folder: Path, site: Site, rows: Tensor) -> None:
    _write(folder / f"samples/{site}.safetensors", safetensors.torch.save({"rows": rows.contiguous()}))


def _write_saelens(folder: Path, one: ReleasedDictionary) -> None:
    """SAELens's folder. `apply_b_dec_to_input` would default to true, and metadata without a version would be thrown away."""
    tensors, k = one.dictionary.tensors(), one.dictionary.k
    if k is not None:
        del tensors["threshold"]
    config = {
        **({"architecture": "jumprelu"} if k is None else {"architecture": "topk", "k": k, "rescale_acts_by_decoder_norm": False}),
        "d_in": tensors["W_enc"].shape[0],
        "d_sae": tensors["W_enc"].shape[1],
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        # Heads come concatenated, as the input of the output projection has them.
        "reshape_activations": "none",
        "metadata": one.metadata
        | {
            "sae_lens_version": SAELENS_VERSION,
            "hook_name": f"blocks.{one.spec.site.layer}.{TRANSFORMER_LENS_HOOK[one.spec.site.kind]}",
            "hook_head_index": None,
            "prepend_bos": True,
            "l0": one.scorecard["l0"],
        },
    }
    _write(folder / "cfg.json", json.dumps(config, indent=2, sort_keys=True).encode() + b"\n")
    _write(folder / "sae_weights.safetensors", safetensors.torch.save(tensors))


def _npz(dictionary: Dictionary) -> bytes:
    """Gemma Scope's `params.npz`: five float32 arrays, no others (its readers load them strictly)."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, tensor in sorted(dictionary.tensors().items()):
            # numpy.savez stamps the time, so that the same arrays would make other bytes.
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, tensor.numpy(), allow_pickle=False)
    return sink.getvalue()


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_file(folder: Path, name: str, data: bytes) -> None:
    _write(folder / name, data)


# Reading a release back


def _write_sums(folder: Path) -> None:
    lines = [f"{_sha256(folder / name)}  {name}\n" for name in _files(folder)]
    (folder / SUMS).write_text("".join(lines))


def check_sums(folder: Path) -> list[str]:
    """A sentence for every file that is missing, changed or not listed.

    Raises:
        JumpsuiteError: the folder is no release.
    """
    if not (folder / SUMS).is_file():
        raise JumpsuiteError(f"{folder} has no {SUMS}; expected a release; name a folder that jumpsuite release wrote")
    damaged = JumpsuiteError(f"{folder / SUMS} is damaged; expected a checksum and a name a line; get the release again")
    try:
        listed = _listed((folder / SUMS).read_text())
    except UnicodeDecodeError:
        raise damaged from None
    if "" in listed:
        raise damaged
    present = set(_files(folder))
    faults = [f"{name} is missing" for name in sorted(set(listed) - present)]
    faults += [f"{name} is not in {SUMS}" for name in sorted(present - set(listed))]
    faults += [f"{name} was changed" for name in sorted(present & set(listed)) if _sha256(folder / name) != listed[name]]
    return faults


# In a bucket


def publish(folder: Path, store: Store) -> None:
    """Make a store a release: its files put there, its checksums last. What is there is not sent again; what is of a release that was there
    before is removed after.

    Raises:
        JumpsuiteError: the store holds what is of neither release, so nothing is put or removed.
    """
    there = _listed(store.get(SUMS).decode(errors="replace")) if store.has(SUMS) else {}
    here, found = _listed((folder / SUMS).read_text()), store.keys("")
    if not set(found) <= {*there, *here, SUMS}:
        raise _not_a_release(store.address, "place")
    for name in sorted(here):
        if there.get(name) != here[name]:
            store.put_file(name, folder / name)
    store.put_file(SUMS, folder / SUMS)
    for name in set(found) - {*here, SUMS}:
        store.delete(name)


def fetch(store: Store, folder: Path) -> None:
    """Get every file of a release that is a store.

    Raises:
        JumpsuiteError: nothing is there.
    """
    names = store.keys("")
    if not names:
        raise JumpsuiteError(f"{store.address} holds nothing; expected a release; name what jumpsuite release wrote")
    for name in names:
        if ".." in name.split("/"):
            raise JumpsuiteError(f"{store.where(name)} leads out of the release; expected files below it; do not trust this release")
        store.get_file(name, folder / name)


def scorecard_paths(folder: Path) -> list[Path]:
    return sorted((folder / "scorecards").rglob("*.json"))


def read_scorecard(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_bytes()))


def read_dictionary(folder: Path, scorecard: dict[str, Any]) -> dict[str, Dictionary]:
    """The dictionary of a scorecard in each format. Nothing pickled is loaded.

    Raises:
        JumpsuiteError: a file does not hold the five float32 tensors of one shape.
    """
    where = folder / scorecard["saelens"]
    try:
        weights, k = safetensors.torch.load_file(where / "sae_weights.safetensors"), json.loads((where / "cfg.json").read_bytes()).get("k")
        if k is not None:
            weights["threshold"] = torch.zeros_like(weights["b_enc"])
        found = {"saelens": Dictionary(**weights, k=k)}
        if scorecard["gemma_scope"]:
            with np.load(folder / scorecard["gemma_scope"] / "params.npz", allow_pickle=False) as archive:
                arrays: dict[str, Any] = {name: torch.from_numpy(archive[name]) for name in archive.files}
            found["gemma_scope"] = Dictionary(**arrays)
        return found
    except (OSError, ValueError, TypeError, KeyError, zipfile.BadZipFile, safetensors.SafetensorError) as error:
        raise JumpsuiteError(f"{scorecard['saelens']} cannot be loaded ({error})") from None


def read_sample(folder: Path, site: str) -> Tensor:
    return safetensors.torch.load_file(folder / f"samples/{Site.parse(site)}.safetensors")["rows"]


def _files(folder: Path) -> list[str]:
    """Every file of a release; what a hub or git keeps beside it, `.git` or `.gitattributes`, is not of it."""
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    return sorted(str(name) for name in names if not name.parts[0].startswith("."))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
