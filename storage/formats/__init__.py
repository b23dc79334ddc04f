"""Formats: the forms in which other people's libraries keep dictionaries. A module each: it writes one, and reads what anybody wrote.

    saelens             SITE/NAME/cfg.json, sae_weights.safetensors                                     sae_lens.SAE.load_from_disk
    saelens_gated       the same with a Gated SAE's tensors                                             for what runs Gated SAEs alone
    gemma_scope         {res,mlp,att}/layer_L/width_W/average_l0_N/params.npz                           Gemma Scope's, for NumPy and many
    gemma_scope_2       {resid_post,mlp_out,attn_out}/layer_L_width_W_l0_N/config.json, params.safetensors    Gemma Scope 2's
    dictionary_learning SITE/NAME/config.json, ae.pt                                                    its JumpReluAutoEncoder

A release has a folder of each name; `found.py` finds dictionaries wherever they lie. `MARK` is the file that tells a dictionary's folder.
"""

import zipfile
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from types import ModuleType
from typing import Any, Protocol

import safetensors
import torch

from core.dictionary import Dictionary
from core.site import Site
from storage.formats import dictionary_learning, gemma_scope, gemma_scope_2, saelens, saelens_gated
from storage.formats.released import ReleasedDictionary


class Format(Protocol):
    MARK: str

    @staticmethod
    def path(one: ReleasedDictionary) -> str | None:
        """Where a dictionary lies below the format's folder; None where the format has no form for it."""

    @staticmethod
    def files(one: ReleasedDictionary) -> dict[str, bytes]:
        """What is written there."""

    @staticmethod
    def read(folder: Path) -> Dictionary:
        """The dictionary of a folder, on raw activations. Raises one of LOADING where it holds another thing."""

    @staticmethod
    def site(folder: Path) -> Site:
        """Where in the model it belongs. Raises as `read`."""


def _format(module: ModuleType) -> Any:
    return module


FORMATS: dict[str, Format] = {
    module.__name__.rpartition(".")[2]: _format(module) for module in (saelens, gemma_scope, gemma_scope_2, dictionary_learning, saelens_gated)
}


LOADING = (
    AttributeError,
    EOFError,
    KeyError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    UnpicklingError,
    zipfile.BadZipFile,
    safetensors.SafetensorError,
)
"""What reading a file that is not what it should be raises."""


def read(name: str, folder: Path) -> Dictionary:
    """The dictionary of a folder in a format, whoever wrote it. Nothing pickled is run.

    A threshold below zero, which some train, lets nothing through that is negative: all of these libraries have a ReLU before it.

    Raises:
        One of LOADING: it is not one.
    """
    found = FORMATS[name].read(folder)
    D, L = found.W_enc.shape
    shapes = {"W_enc": (D, L), "b_enc": (L,), "W_dec": (L, D), "b_dec": (D,), "threshold": (L,)}
    for tensor_name, tensor in found.tensors().items():
        if tuple(tensor.shape) != shapes[tensor_name] or tensor.dtype != torch.float32:
            raise ValueError(f"{tensor_name} is {tuple(tensor.shape)}, {tensor.dtype}; expected {shapes[tensor_name]}, float32")
    return replace(found, threshold=found.threshold.clamp(min=0))
