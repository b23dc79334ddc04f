"""Card: the README of a release, written from its scorecards."""

import json
from typing import Any

import yaml

from core.suite import Suite
from tasks.tables import FURTHER_LEGEND, LEGEND, Scored, further_lines, markdown, table_lines
from tasks.train import describe_filter


def model_card(suite: Suite, scored: Scored, description: dict[str, Any], hooks: dict[str, str]) -> str:
    """Markdown, with the front matter that the Hugging Face hub reads.

    Args:
        description: of the harvest. hooks: each site's place as a Hugging Face hook point.
    """
    title = suite.release.title or suite.name
    kinds = {grid.architecture for grid in suite.dictionaries}
    what = "JumpReLU sparse autoencoders" if kinds == {"jumprelu"} else f"sparse autoencoders ({', '.join(sorted(kinds))})"
    front = {"license": suite.release.license, "library_name": "saelens", "tags": ["sparse-autoencoder", "jumprelu", "interpretability"]}
    if _on_hub(suite.model.source):
        front["base_model"] = suite.model.source
    first_spec, first_card = scored[0]
    trained, scored_by = (", ".join(sorted({card[key]["commit"] for _, card in scored})) for key in ("trained_by", "code"))
    loss, text = first_card["loss"], suite.text
    return f"""---
{yaml.safe_dump(front, sort_keys=False).strip()}
---

# {_plain(title)}

{len(scored)} {what} ([arXiv:2407.14435](https://arxiv.org/abs/2407.14435)), trained by Jumpsuite at
commit {trained}, scored at {scored_by}.
{_paragraph(suite.release.notes)}
| | |
|---|---|
| model | `{suite.model.source}`{_revision(suite)}, run in {suite.model.dtype} |
| text | `{text.source}`: {text.training_tokens:,} tokens to train on, {text.held_out_tokens:,} held out, in sequences of {text.context:,} |
| text fingerprint | `{description["token_fingerprint"][:16]}` (SHA-256 of the tokens) |
| sites | {", ".join(f"`{site}` (`{hook}`)" for site, hook in hooks.items())} |
| intact loss | {loss["intact"]:.3f} nats a token, over {loss["sequences"]} held-out sequences |

## What was measured

{markdown(table_lines(scored))}

{LEGEND}

{markdown(further_lines(scored))}

{FURTHER_LEGEND}

![FVU and delta loss against L0](pareto.png)

## How to load one

```python
from sae_lens import SAE

sae = SAE.load_from_disk("saelens/{first_spec.site}/{first_spec.name}")
latents = sae.encode(activations)       # raw activations of {hooks[str(first_spec.site)]}
reconstruction = sae.decode(latents)
```

{_with_numpy(scored)}
Activations are raw: their scale, mean and the pre-encoder bias are folded into the weights. `attn_z` takes the heads
concatenated, as the input of the attention's output projection has them.

## How they were trained

```json
{json.dumps(suite.training.identity() | {"recipe": suite.training.recipe, "tokens": _tokens(scored)}, indent=2)}
```

## Know before use

- BOS, EOS and padding were neither trained nor scored on, and keep their own activations when a dictionary is spliced in.
{_filter_notes(scored)}
- "Dead %" counts latents that fired on none of the {first_card["rows"]:,} held-out rows; rare latents count as dead here.

`jumpsuite verify` checks `SHA256SUMS` and runs every dictionary on `samples/` against its scorecard.
"""


def _with_numpy(scored: Scored) -> str:
    path = next((card["gemma_scope"] for _, card in scored if card["gemma_scope"]), None)
    if path is None:
        return ""
    return f"""With NumPy alone (Gemma Scope's format):

```python
import numpy as np

p = np.load("{path}/params.npz")
z = activations @ p["W_enc"] + p["b_enc"]
reconstruction = (z * (z > p["threshold"])) @ p["W_dec"] + p["b_dec"]
```
"""


def _tokens(scored: Scored) -> int | list[int]:
    """Rows trained on: one number, or all that occur."""
    every = sorted({spec.tokens for spec, _ in scored})
    return every[0] if len(every) == 1 else every


def _revision(suite: Suite) -> str:
    return f" at `{suite.model.revision}`" if suite.model.revision else ""


def _filter_notes(scored: Scored) -> str:
    seen = {str(spec.site): card for spec, card in scored if card["inputs"]["norm_limit"] is not None}
    if not seen:
        return "- No rows were left out for their norm."
    lines = [f"  - `{site}`: {describe_filter(card['inputs'])}." for site, card in seen.items()]
    return "- Rows of extreme norm were left out of training and of L0, FVU and dead % (not of delta loss):\n" + "\n".join(lines)


def _paragraph(notes: str | None) -> str:
    return f"\n{_plain(notes)}\n" if notes else ""


def _plain(text: str) -> str:
    """A user's words as one Markdown paragraph that cannot open HTML."""
    return " ".join(text.split()).replace("<", "&lt;")


def _on_hub(source: str) -> bool:
    return ":" not in source and source.count("/") == 1 and not source.endswith(".gguf") and not source.startswith((".", "/"))
