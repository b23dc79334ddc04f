"""Gemma Scope's tree (arXiv:2408.05147): five float32 arrays in `params.npz`, no others, for its readers load them strictly."""

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.dictionary import Dictionary
from core.site import Site
from core.spec import width_label
from storage.formats.released import ReleasedDictionary

MARK = "params.npz"
KINDS = {"resid_post": "res", "mlp_out": "mlp", "attn_z": "att"}


def path(one: ReleasedDictionary) -> str | None:
    return f"{of_width(one)}/average_l0_{round(one.l0)}" if one.dictionary.k is None else None


def of_width(one: ReleasedDictionary) -> str:
    """The folder of a site's dictionaries of one width."""
    return f"{KINDS[one.spec.site.kind]}/layer_{one.spec.site.layer}/width_{width_label(one.spec.width)}"


def files(one: ReleasedDictionary) -> dict[str, bytes]:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, tensor in sorted(one.dictionary.tensors().items()):
            # numpy.savez stamps the time, so that the same arrays would make other bytes.
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, tensor.numpy(), allow_pickle=False)
    return {MARK: sink.getvalue()}


def read(folder: Path) -> Dictionary:
    with np.load(folder / MARK, allow_pickle=False) as archive:
        tensors: dict[str, Any] = {name.replace("w_", "W_", 1): torch.from_numpy(archive[name]).float() for name in archive.files}
    return Dictionary(**tensors)


def site(folder: Path) -> Site:
    """By the folder's name, which says no more: `res`, `mlp` or `att` may be in the name of the hub's repository."""
    layer, kind = re.search(r"/layer_(\d+)(/|$)", folder.as_posix()), re.findall(r"(?<![a-z])(res|mlp|att)(?![a-z])", folder.as_posix())
    if not layer or not kind:
        raise ValueError("its path does not say layer_L, and res, mlp or att")
    return Site.parse(f"L{layer[1]}.{next(name for name, short in KINDS.items() if short == kind[-1])}")
