"""Gemma Scope 2's tree: `config.json` with the hook point, and `params.safetensors` with names in lower case."""

import json
import re
from pathlib import Path

import safetensors.torch

from core.dictionary import Dictionary
from core.site import Site
from core.spec import width_label
from storage.formats.released import ReleasedDictionary

MARK = "params.safetensors"
KINDS = {"resid_post": "resid_post", "mlp_out": "mlp_out", "attn_z": "attn_out"}


def path(one: ReleasedDictionary) -> str | None:
    """As there, with the measured L0 where it says small, medium or big."""
    spec = one.spec
    return f"{KINDS[spec.site.kind]}/layer_{spec.site.layer}_width_{width_label(spec.width)}_l0_{round(one.l0)}" if spec.k is None else None


def files(one: ReleasedDictionary) -> dict[str, bytes]:
    config = {
        "architecture": "jump_relu",
        "type": "sae",
        "model_name": one.model,
        "hf_hook_point_in": one.hook,
        "hf_hook_point_out": one.hook,
        "width": one.spec.width,
        "l0": one.l0,
        "affine_connection": False,
    }
    tensors = {name.lower(): tensor for name, tensor in one.dictionary.tensors().items()}
    return {"config.json": json.dumps(config, indent=2, sort_keys=True).encode() + b"\n", MARK: safetensors.torch.save(tensors)}


def read(folder: Path) -> Dictionary:
    tensors = safetensors.torch.load_file(folder / MARK)
    if "affine_skip_connection" in tensors:
        raise ValueError("it is a transcoder with a skip connection, not an SAE of one site")
    return Dictionary(**{name.replace("w_", "W_", 1): tensor.float() for name, tensor in tensors.items()})


def site(folder: Path) -> Site:
    named = re.fullmatch(r"layer_(\d+)_width_.+", folder.name)
    kinds = {theirs: ours for ours, theirs in KINDS.items()}
    kind = next((kinds[part] for part in reversed(folder.parent.parts) if part in kinds), None)
    if not named or kind is None:
        raise ValueError(f"its path does not say {', '.join(kinds)}, and layer_L_width_W")
    return Site.parse(f"L{named[1]}.{kind}")
