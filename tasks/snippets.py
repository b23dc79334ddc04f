"""Snippets: how a dictionary of a release is loaded in each library, as Python that runs in the release's folder.

Each expects `activations`, B x D, and gives `latents` and `reconstruction`.
"""

from typing import Any


def snippets(card: dict[str, Any]) -> dict[str, str]:
    """Of a dictionary, by the name of the library, in each format that it is released in.

    Args:
        card: its released scorecard.
    """
    places = card["formats"]
    return {title: code.format(place=places[name]) for name, (title, code) in CODE.items() if name in places}


CODE = {
    "saelens": (
        "SAELens",
        """\
from sae_lens import SAE

# From the hub: SAE.from_pretrained("ORG/NAME", "{place}")
sae = SAE.load_from_disk("{place}")
latents = sae.encode(activations)
reconstruction = sae.decode(latents)
""",
    ),
    "gemma_scope": (
        "NumPy alone, in Gemma Scope's format",
        """\
import numpy as np

p = np.load("{place}/params.npz")
z = activations @ p["W_enc"] + p["b_enc"]
latents = z * (z > p["threshold"])
reconstruction = latents @ p["W_dec"] + p["b_dec"]
""",
    ),
    "gemma_scope_2": (
        "PyTorch alone, in Gemma Scope 2's format",
        """\
from safetensors.torch import load_file

p = load_file("{place}/params.safetensors")
z = activations @ p["w_enc"] + p["b_enc"]
latents = z * (z > p["threshold"])
reconstruction = latents @ p["w_dec"] + p["b_dec"]
""",
    ),
    "dictionary_learning": (
        "dictionary_learning",
        """\
from dictionary_learning import JumpReluAutoEncoder

sae = JumpReluAutoEncoder.from_pretrained("{place}/ae.pt")
latents = sae.encode(activations)
reconstruction = sae.decode(latents)
""",
    ),
    "saelens_gated": (
        "As a Gated SAE",
        """\
from sae_lens import SAE

sae = SAE.load_from_disk("{place}")   # a GatedSAE: the same function
latents = sae.encode(activations)
reconstruction = sae.decode(latents)
""",
    ),
}

ACTIVATIONS = """\
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({model!r}{revision}, dtype=torch.{dtype})
tokenizer = AutoTokenizer.from_pretrained({model!r}{revision})
seen = []
place = model.get_submodule({module!r})
{hook}
tokens = tokenizer("The quick brown fox jumps over the lazy dog.", add_special_tokens=False).input_ids
model(torch.tensor([[{begin}, *tokens]]))       # every sequence began with this token
activations = seen[0][0, 1:].float().detach()   # positions x D, without its own
"""

HOOKS = {
    "output": "place.register_forward_hook(lambda _, __, out: seen.append(out[0] if isinstance(out, tuple) else out))",
    "input": "place.register_forward_pre_hook(lambda _, args: seen.append(args[0]))",
}


def activations_of(model: str, revision: str | None, dtype: str, hook: str, begin: int) -> str:
    """How to get a site's activations with transformers.

    Args:
        hook: the site as a hook point: `model.layers.9.output`. begin: the token that sequences begin with.
    """
    module, _, side = hook.rpartition(".")
    revision = f", revision={revision!r}" if revision else ""
    return ACTIVATIONS.format(model=model, revision=revision, dtype=dtype, module=module, hook=HOOKS[side], begin=begin)
