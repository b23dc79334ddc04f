"""delphi: the activations of a dictionary on the held-out rows that count, as EleutherAI's delphi caches it for its own explainers and scorers.

    latents/SITE.NAME/FIRST_LAST.safetensors    of some latents: locations (sequence, position, latent - FIRST), activations, tokens
                      config.json               what the text was

`LatentDataset(raw_dir=DIR/latents, ...)` opens it.
"""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import torch

from core.slices import slices
from core.spec import DictionarySpec
from storage.catalogue import Catalogue
from tasks.contexts import HeldOutText
from tasks.explain import LATENTS_AT_ONCE
from tasks.progress import Progress


def export(catalogue: Catalogue, spec: DictionarySpec, text: HeldOutText, to: Path) -> str:
    """Write where a dictionary's latents fire, and give where it lies below `to`. In float32: raw activations may be too large for float16."""
    suite, parts = catalogue.suite, slices(spec.width, LATENTS_AT_ONCE)
    dictionary = catalogue.folder(spec).load().to(text.device)
    part = catalogue.harvest.part("held_out")
    tokens_SC = part.first_tokens(part.num_sequences).astype(np.int64)
    folder = to / "latents" / f"{spec.site}.{spec.name}"
    folder.mkdir(parents=True, exist_ok=True)
    with Progress(f"delphi {spec}", text.num_rows * len(parts), "rows") as progress:
        for latents in parts:
            locations, activations = [np.zeros((0, 3), np.uint32)], [np.zeros(0, np.float32)]
            for contexts_X, is_text_XW, x_BD in text.rows():
                f_BL = dictionary.encode_some(x_BD, latents)
                row, latent = (f_BL > 0).nonzero().T
                locations.append(_locations(contexts_X, is_text_XW, row, latent, text))
                activations.append(f_BL[row, latent].float().cpu().numpy())
                progress.advance(len(x_BD))
            tensors: dict[str, npt.NDArray[np.generic]] = {
                "locations": np.concatenate(locations),
                "activations": np.concatenate(activations),
                "tokens": tokens_SC,
            }
            safetensors.numpy.save_file(tensors, folder / f"{latents.start}_{latents.stop - 1}.safetensors")
    config = {
        "dataset_repo": suite.text.source,
        "dataset_split": f"{suite.text.split}, held out",
        "dataset_name": suite.text.subset or "",
        "dataset_column": suite.text.column,
        "batch_size": suite.harvest.batch_sequences,
        "cache_ctx_len": suite.text.context,
        "ctx_len": suite.text.context,
        "n_tokens": int(tokens_SC.size),
        "n_splits": len(parts),
        "model_name": suite.model.source,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return str(folder.relative_to(to))


def _locations(
    contexts_X: torch.Tensor, is_text_XW: torch.Tensor, row: torch.Tensor, latent: torch.Tensor, text: HeldOutText
) -> npt.NDArray[np.uint32]:
    """Sequence, position and latent of what fires.

    Args:
        row: among the positions that count.
    """
    context, place = is_text_XW.nonzero().T
    sequence, position = text.in_sequence(contexts_X[context[row]], place[row])
    return torch.stack([sequence, position, latent], 1).cpu().numpy().astype(np.uint32)
