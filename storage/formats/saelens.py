"""SAELens's folder (tried with 6.54.12)."""

import json
import re
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from core.dictionary import Dictionary
from core.forms import from_gated, with_unit_rows, without_pre_bias
from core.site import Site
from storage.formats.released import TRANSFORMER_LENS_HOOK, ReleasedDictionary

MARK = "sae_weights.safetensors"
VERSION = "6.54.12"
"""Without a version its loader throws the metadata away."""


def path(one: ReleasedDictionary) -> str | None:
    return one.place


def files(one: ReleasedDictionary) -> dict[str, bytes]:
    tensors, k = one.dictionary.tensors(), one.dictionary.k
    if k is None:
        return folder(one, {"architecture": "jumprelu"}, tensors)
    del tensors["threshold"]
    return folder(one, {"architecture": "topk", "k": k, "rescale_acts_by_decoder_norm": False}, tensors)


def folder(one: ReleasedDictionary, architecture: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, bytes]:
    """The two files of any architecture."""
    config = architecture | {
        "d_in": tensors["W_enc"].shape[0],
        "d_sae": tensors["W_enc"].shape[1],
        "dtype": "float32",
        "device": "cpu",
        # It would default to true.
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        # Heads come concatenated, as the input of the output projection has them.
        "reshape_activations": "none",
        "metadata": one.metadata
        | {
            "sae_lens_version": VERSION,
            "model_name": one.model,
            "hook_name": one.transformer_lens_hook,
            "hf_hook_name": one.hook,
            "hook_head_index": None,
            "prepend_bos": True,
            "context_size": one.context,
            "l0": one.l0,
        },
    }
    return {"cfg.json": json.dumps(config, indent=2, sort_keys=True).encode() + b"\n", MARK: safetensors.torch.save(tensors)}


def read(folder: Path) -> Dictionary:
    config, tensors = _config(folder), safetensors.torch.load_file(folder / MARK)
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    if (normalised := config.get("normalize_activations") or "none") != "none":
        raise ValueError(f"normalize_activations is {normalised!r}; expected it folded into the weights")
    if "finetuning_scaling_factor" in tensors:
        raise ValueError("it has a scaling factor of fine-tuning, which is not read")
    found = _of(config, tensors)
    # Not said is true for SAELens.
    return without_pre_bias(found) if config.get("apply_b_dec_to_input", True) else found


def _of(config: dict[str, Any], tensors: dict[str, Tensor]) -> Dictionary:
    architecture, k = str(config.get("architecture", "standard")), config.get("k")
    if (config.get("activation_fn") or config.get("activation_fn_str")) == "topk":  # as it was written before 6.0
        architecture, k = "topk", (config.get("activation_fn_kwargs") or {})["k"]
    if architecture == "gated":
        return from_gated(**tensors)
    if architecture in ("standard", "topk"):
        tensors["threshold"] = torch.zeros_like(tensors["b_enc"])
    elif architecture != "jumprelu":
        raise ValueError(f"architecture is {architecture!r}; known are jumprelu, standard, topk and gated")
    found = Dictionary(**tensors, k=int(k) if architecture == "topk" and k is not None else None)
    return with_unit_rows(found) if config.get("rescale_acts_by_decoder_norm") else found


def site(folder: Path) -> Site:
    config = _config(folder)
    said = config.get("metadata") or config
    hook = str(said.get("hook_name") or said.get("hook_point"))
    found, kinds = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook), {name: kind for kind, name in TRANSFORMER_LENS_HOOK.items()}
    layer, name = (int(found[1]), found[2]) if found else (-1, "")
    if name == "hook_resid_pre":  # what goes into a block came out of the one before
        layer, name = layer - 1, TRANSFORMER_LENS_HOOK["resid_post"]
    if layer < 0 or name not in kinds:
        raise ValueError(f"hook_name is {hook!r}, which is none of a block's {', '.join(kinds)}")
    return Site.parse(f"L{layer}.{kinds[name]}")


def _config(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "cfg.json").read_bytes()))
