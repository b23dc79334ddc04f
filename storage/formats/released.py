"""A dictionary of a release, ready to be written in any format, and the names that other people have for its site."""

from dataclasses import dataclass
from typing import Any

from core.dictionary import Dictionary
from core.spec import DictionarySpec

TRANSFORMER_LENS_HOOK = {"resid_post": "hook_resid_post", "mlp_out": "hook_mlp_out", "attn_z": "attn.hook_z"}


@dataclass(frozen=True)
class ReleasedDictionary:
    spec: DictionarySpec
    dictionary: Dictionary
    l0: float
    """Measured."""
    model: str
    """As its source is called."""
    hook: str
    """The site as a module of the Hugging Face model: `model.layers.9.output`."""
    context: int
    """Tokens in a sequence it was trained on."""
    metadata: dict[str, Any]
    """For people who load it: text, revision, seed, commit."""

    @property
    def place(self) -> str:
        return f"{self.spec.site}/{self.spec.name}"

    @property
    def transformer_lens_hook(self) -> str:
        return f"blocks.{self.spec.site.layer}.{TRANSFORMER_LENS_HOOK[self.spec.site.kind]}"
