"""dictionary_learning's folder (tried with 0.1.0): `config.json`, and `ae.pt`, a state dict that torch reads without running what is pickled."""

import io
import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.dictionary import Dictionary
from core.forms import from_gated, without_pre_bias
from core.site import KINDS, Site
from storage.formats.released import ReleasedDictionary

MARK = "ae.pt"


def path(one: ReleasedDictionary) -> str | None:
    return one.place if one.dictionary.k is None else None


def files(one: ReleasedDictionary) -> dict[str, bytes]:
    spec, dimensions = one.spec, one.dictionary.W_enc.shape[0]
    trainer = {
        "trainer_class": "JumpReluTrainer",
        "dict_class": "JumpReluAutoEncoder",
        "activation_dim": dimensions,
        "dict_size": spec.width,
        "seed": spec.seed,
        "target_l0": spec.target_l0,
        "layer": spec.site.layer,
        "lm_name": one.model,
        "submodule_name": f"{spec.site.kind}_layer_{spec.site.layer}",
        "device": "cpu",
    }
    config = {"trainer": trainer, "buffer": {"d_submodule": dimensions, "ctx_len": one.context}}
    sink = io.BytesIO()
    torch.save(one.dictionary.tensors(), sink)
    return {"config.json": json.dumps(config, indent=2, sort_keys=True).encode() + b"\n", MARK: sink.getvalue()}


def read(folder: Path) -> Dictionary:
    trainer, tensors = _trainer(folder), torch.load(folder / MARK, map_location="cpu", weights_only=True)
    kind = trainer["dict_class"]
    if kind == "JumpReluAutoEncoder":
        return Dictionary(**{name: tensor.float() for name, tensor in tensors.items()})
    if kind == "GatedAutoEncoder":
        return _gated(tensors)
    if "W_enc" in tensors:  # Matryoshka's
        W_enc, b_enc, W_dec = (tensors[name].float() for name in ("W_enc", "b_enc", "W_dec"))
    else:
        W_enc, b_enc, W_dec = _transposed(tensors["encoder.weight"]), tensors["encoder.bias"].float(), _transposed(tensors["decoder.weight"])
    b_dec = tensors["bias" if "bias" in tensors else "b_dec"].float()
    return without_pre_bias(Dictionary(W_enc, b_enc, W_dec, b_dec, *_activation(kind, tensors, b_enc)))


def _gated(tensors: dict[str, Tensor]) -> Dictionary:
    """It subtracts the decoder's bias before both gate and magnitude."""
    W_enc, b_dec, r_mag = _transposed(tensors["encoder.weight"]), tensors["decoder_bias"].float(), tensors["r_mag"].float()
    b_gate, b_mag = tensors["gate_bias"].float(), tensors["mag_bias"].float()
    return without_pre_bias(from_gated(W_enc, b_gate, b_mag, r_mag, _transposed(tensors["decoder.weight"]), b_dec))


def _transposed(weight: Tensor) -> Tensor:
    return weight.T.float().contiguous()


def _activation(kind: str, tensors: dict[str, Tensor], b_enc: Tensor) -> tuple[Tensor, int | None]:
    """Threshold and k."""
    if kind == "AutoEncoder":
        return torch.zeros_like(b_enc), None
    if kind == "AutoEncoderTopK":
        return torch.zeros_like(b_enc), int(tensors["k"])
    if kind in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        return torch.zeros_like(b_enc) + tensors["threshold"].float().clamp(min=0), None
    raise ValueError(f"dict_class is {kind!r}, which is not known")


def site(folder: Path) -> Site:
    trainer = _trainer(folder)
    submodule = str(trainer.get("submodule_name") or "")
    named = re.match(rf"({'|'.join(KINDS)})(_|$)", submodule)
    if not named:
        raise ValueError(f"trainer.submodule_name is {submodule!r}, which does not begin with one of {', '.join(KINDS)}")
    return Site.parse(f"L{int(trainer['layer'])}.{named[1]}")


def _trainer(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_bytes())["trainer"])
