"""Formats: the forms in which other people's libraries keep dictionaries. A module each: it writes one, and reads what anybody wrote.

    saelens             SITE/NAME/cfg.json, sae_weights.safetensors                                     sae_lens.SAE.load_from_disk
    saelens_gated       the same with a Gated SAE's tensors                                             for what runs Gated SAEs alone
    gemma_scope         {res,mlp,att}/layer_L/width_W/average_l0_N/params.npz                           Gemma Scope's, for NumPy and many
    gemma_scope_2       {resid_post,mlp_out,attn_out}/layer_L_width_W_l0_N/config.json, params.safetensors    Gemma Scope 2's
    dictionary_learning SITE/NAME/config.json, ae.pt                                                    its JumpReluAutoEncoder

A release has a folder of each name; `found.py` finds dictionaries wherever they lie. `MARK` is the file that tells a dictionary's folder.
"""

from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

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
        """The dictionary of a folder, on raw activations.

        Raises:
            ValueError, KeyError, TypeError, OSError: it holds another thing.
        """

    @staticmethod
    def site(folder: Path) -> Site:
        """Where in the model it belongs. Raises as `read`."""


def _format(module: ModuleType) -> Any:
    return module


FORMATS: dict[str, Format] = {
    module.__name__.rpartition(".")[2]: _format(module) for module in (saelens, gemma_scope, gemma_scope_2, dictionary_learning, saelens_gated)
}
