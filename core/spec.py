"""Which dictionary: one SAE to be trained, and its name. How it is trained is another matter (`core/training.py`)."""

from dataclasses import dataclass
from typing import Any

from core.site import Site


@dataclass(frozen=True, order=True)
class DictionarySpec:
    """One SAE to be trained: a site, an architecture, a width, a sparsity, a seed."""

    site: Site
    architecture: str
    width: int
    """Number of latents."""
    target_l0: float | None
    """Mean number of active latents that training aims at, or None where `l0_coefficient` is given."""
    l0_coefficient: float | None
    """lambda: the price of one active latent, in units of normalised squared error; for relu-l1 and gated, of activation."""
    seed: int
    tokens: int
    """Rows to train on."""
    learning_rate: float | None = None
    """Where it is not `training.learning_rate`."""

    @property
    def name(self) -> str:
        """Unique among the dictionaries of a site: `width_16k_l0_50`, `topk_width_16k_l0_50`, `width_16k_lambda_0.0006_seed_1`."""
        architecture = "" if self.architecture == "jumprelu" else f"{self.architecture}_"
        sparsity = f"l0_{self.target_l0:g}" if self.target_l0 is not None else f"lambda_{self.l0_coefficient:g}"
        seed = f"_seed_{self.seed}" if self.seed else ""
        rate = f"_lr_{self.learning_rate:g}" if self.learning_rate is not None else ""
        return f"{architecture}width_{width_label(self.width)}_{sparsity}{rate}{seed}"

    @property
    def k(self) -> int | None:
        """Latents that are kept of each row, for a TopK SAE."""
        return round(self.target_l0) if self.architecture == "topk" and self.target_l0 is not None else None

    def __str__(self) -> str:
        return f"{self.site} {self.name}"

    def identity(self) -> dict[str, Any]:
        """What this is, for its key."""
        return vars(self) | {"site": str(self.site)}


def width_label(width: int) -> str:
    """Gemma Scope's spelling of widths, `16k` for 2^14 and `1m` for 2^20; other than powers of two are spelt out."""
    if width < 1_024 or width & (width - 1):
        return str(width)
    return f"{width // 1_000}k" if width < 1_000_000 else f"{width // 1_000_000}m"
