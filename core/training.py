"""How a dictionary is trained: every number a setting, and the papers' recipes by name.

A recipe is a set of defaults; what a suite file says beside it wins. Not here: what is trained (`core/suite.py`) and the
training itself (`core/trainer.py`).
"""

import math
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from core.section import Section, impossible, spell

RecipeName = Literal["gemma-scope", "gemma-scope-2", "anthropic-2025", "short-run"]

# arXiv:2408.05147, section 3.2 ("GS"): what Gemma Scope trained with.
GEMMA_SCOPE: dict[str, Any] = {
    "learning_rate": 7e-5,
    "learning_rate_warmup": 1_000,
    "learning_rate_decay": 0.0,
    "adam_beta1": 0.0,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "batch_rows": 4_096,
    "bandwidth": 0.001,
    "threshold_init": 0.001,
    "threshold_parameter": "log",
    "sparsity_warmup": 10_000,
    "inputs": "scaled",
}

RECIPES: dict[str, dict[str, Any]] = {
    "gemma-scope": GEMMA_SCOPE,
    # Gemma Scope 2 technical paper, section 3: the longer warm-up of its quadratic penalty (Eq. 5), which dictionaries with a target L0
    # have. The numbers of its frequency penalty and its Matryoshka prefixes are not published, so both are off.
    "gemma-scope-2": GEMMA_SCOPE | {"sparsity_warmup": 50_000},
    # Anthropic's update of January 2025 (Conerly et al.); its lambda is 10 to 20.
    "anthropic-2025": {
        "objective": "tanh",
        "inputs": "scaled-to-d",
        "batch_rows": 32_768,
        "learning_rate": 2e-4,
        "learning_rate_warmup": 0,
        "learning_rate_decay": 0.2,
        "gradient_clip": 1.0,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "bandwidth": 2.0,
        "threshold_init": 0.1,
        "threshold_parameter": "log",
        "sparsity_warmup": 1,
    },
    # Ours, for a thousand steps or a few: what the papers' numbers cannot do in so few. tests/bench/RESULTS.md has the measurements.
    "short-run": {
        "inputs": "centred",  # in Gemma 3 the mean carries most of the square; centred, bandwidth and thresholds mean the same everywhere
        "batch_rows": 1_024,
        "learning_rate": 4e-3,  # for a million tokens; `short_run_rate` has it for more
        "learning_rate_warmup": 0.05,
        "learning_rate_decay": 0.5,
        "gradient_clip": 0.3,  # at this learning rate one batch can undo a dictionary
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,  # 0.999 remembers the large gradients of the start for the whole of a short run, and steps too little
        "adam_epsilon": 1e-8,
        "bandwidth": 0.03,  # a wide kernel's estimate has the less noise that few steps can average
        "threshold_start": 4.0,  # sparse from the first step, with more latents alive at the end
        "threshold_init": 0.03,
        "threshold_parameter": "linear",  # Adam cannot move a logarithm far in few steps
        "sparsity_warmup": 0.8,
        "l1_warmup": 0.2,  # a price that rises for longer than control takes to find it leaves L0 15% off its target
        "target_l0_objective": "batch-mean",
        "target_l0_coefficient": 0.01,
        "l0_control": 0.01,
    },
}

L1_ARCHITECTURES = ("relu-l1", "gated")
"""Those made sparse by a price on ||f||_1, or on that of its gates."""

SHORT_RUN_TOKENS = 20_000_000
"""Up to this many tokens a suite that names no recipe gets `short-run`."""


def short_run_rate(tokens: float) -> float:
    """The learning rate of `short-run`, to two digits: constant up to a million tokens and then as 1 / sqrt(tokens), for what is best at one
    million is twice too much at three, where it leaves more latents dead (measured for jumprelu and topk: tests/bench/RESULTS.md)."""
    base: float = RECIPES["short-run"]["learning_rate"]
    return float(f"{base * (1e6 / max(1e6, tokens)) ** 0.5:.2g}")


Share = Annotated[float, Field(gt=0, lt=1, examples=[0.25])]


class Training(Section):
    """One recipe with its numbers; dictionaries of a site share it, and with it the rows they see."""

    recipe: RecipeName = Field(examples=["gemma-scope"])
    """Where the numbers come from that are not given: `short-run` up to 20M training.tokens and `gemma-scope` above, unless named."""
    tokens: int = Field(gt=0, examples=[4_000_000_000])
    """Rows each dictionary is trained on; more than the harvest holds means several epochs."""
    batch_rows: int = Field(gt=0, examples=[4_096])
    shuffle_rows: int = Field(131_072, gt=0, examples=[131_072])
    """About how many rows are mixed at a time; GS shuffled in buckets of about 10^6."""
    order_seed: int = Field(0, ge=0, examples=[0])
    """Seed of the order in which rows are read; the same for every dictionary of a site."""

    inputs: Literal["scaled", "centred", "scaled-to-d"] = Field(examples=["scaled"])
    """`scaled`: divided by one scalar to unit mean squared norm (GS). `centred`: the mean taken off first, which matters
    where the mean carries most of the square, as in Gemma 3's residual stream. `scaled-to-d`: to a mean squared norm of D, as Anthropic does."""
    max_norm: float | None = Field(None, gt=1, examples=[10])
    """Rows whose norm is more than this multiple of the site's median are left out of training."""

    learning_rate: float = Field(gt=0, examples=[7e-5])
    """The most that Adam moves a parameter by in a step, or a little more. `short-run` takes it by training.tokens."""
    learning_rate_warmup: float = Field(ge=0, examples=[1_000])
    """Steps of the cosine from a tenth of the learning rate to all of it; up to one, a share of all steps."""
    learning_rate_decay: float = Field(ge=0, le=1, examples=[0.2])
    """Share of the steps, at the end, over which the learning rate falls linearly to zero."""
    adam_beta1: float = Field(ge=0, lt=1, examples=[0.0])
    adam_beta2: float = Field(ge=0, lt=1, examples=[0.999])
    adam_epsilon: float = Field(gt=0, examples=[1e-8])
    gradient_clip: float | None = Field(None, gt=0, examples=[1.0])
    """Norm to which a larger gradient is cut, or none as in GS. Without a first moment a gradient k times its usual size moves a weight
    by up to k learning rates, 31 at most: at a large learning rate one batch of unusual rows can undo a dictionary."""

    shards: int = Field(1, ge=1, examples=[1])
    """Devices that a dictionary's latents are dealt out to: for widths whose weights and moments do not fit on one. GPUs, or on a CPU as many
    processes. Changes sums in their last digits, as another device does, and so is no part of a dictionary's key."""

    encoder_product: Literal["float32", "bfloat16"] = Field("float32", examples=["float32"])
    """Type of the factors of the product that finds a batch's active latents. bfloat16 only finds them: their values, and everything
    after, are float32. Quicker on a CPU that multiplies bfloat16 itself (AVX-512 BF16, AMX), and on a GPU; without effect on shards."""

    start: str | None = Field(None, min_length=1, examples=["hf://ORG/NAME"])
    """Released weights that dictionaries begin from in place of random ones: a folder, bucket or hub's repository in any format that is read, of
    which each takes the one of its site and width, and of several that whose L0 is nearest its own. Pin a revision, hf://ORG/NAME@COMMIT:
    the key of a dictionary is made of this word. A `sparsity_warmup` lets L0 rise first, so set it to 0 to go on as sparse."""

    objective: Literal["l0", "tanh"] = Field("l0", examples=["l0"])
    """For jumprelu: the L0 penalty of its paper, or Anthropic's tanh penalty with free decoder norms (`core/tanh.py`)."""
    tanh_scale: float = Field(4.0, gt=0, examples=[4.0])
    """The c of the tanh penalty."""
    pre_activation_coefficient: float = Field(3e-6, ge=0, examples=[3e-6])
    """Beside the tanh penalty: lambda_P of the loss that revives latents."""

    bandwidth: float = Field(gt=0, examples=[0.001])
    """Width of the kernel of the straight-through estimators, in units of normalised inputs."""
    threshold_init: float = Field(gt=0, examples=[0.001])
    threshold_start: float | None = Field(None, gt=0, examples=[4.0])
    """For dictionaries with a target L0, in place of threshold_init: each latent's threshold, or for gated its gate's bias, begins where, on
    the first batch, it fires as often as a share of this many times the target asks of it."""
    threshold_parameter: Literal["log", "linear"] = Field(examples=["log"])
    """What Adam moves: log(threshold), as in the paper's pseudo-code, or the threshold itself. Adam moves either by about
    one learning rate a step, so a short run cannot learn a logarithm: from 0.001 to 0.03 takes 49,000 steps of 7e-5."""

    sparsity_warmup: float = Field(ge=0, examples=[10_000])
    """Steps over which the sparsity penalty rises linearly from zero; up to one, a share of all steps."""
    l1_warmup: float | None = Field(None, ge=0, examples=[0.2])
    """The same for relu-l1 and gated dictionaries, if it is to differ: their price of activation pulls towards no target, as JumpReLU's does."""
    target_l0_objective: Literal["per-token", "batch-mean"] = Field("per-token", examples=["per-token"])
    """Whether every token is pulled to the target, or only the mean over the batch: different objectives."""
    target_l0_coefficient: float = Field(1e-3, gt=0, examples=[1e-3])
    """The lambda of the quadratic penalty; used by dictionaries with a target L0 alone."""

    l0_control: float = Field(0.0, ge=0, le=0.1, examples=[0.01])
    """For dictionaries with a target L0: how far each step moves the penalty's coefficient against what L0 misses of the target
    (`core/control.py`). relu-l1 and gated dictionaries find their coefficient by it."""
    frequency_coefficient: float = Field(0.0, ge=0, examples=[1e-3])
    """For jumprelu: lambda of a penalty on latents that fire often, lambda / frequency_scale times the sum of squared frequencies."""
    frequency_scale: float = Field(0.1, gt=0, examples=[0.1])
    """Frequency at which that penalty's slope is that of 2 lambda L0; Google DeepMind tried 0.1 and 0.01."""
    matryoshka_prefixes: list[Share] = Field([], examples=[[0.0625, 0.25]])
    """For jumprelu: shares of the width, rising, whose first latents alone are to reconstruct as well."""
    dead_rows: int = Field(10_000_000, gt=0, examples=[10_000_000])
    """For topk and batch-topk: rows without firing after which a latent is taken up by the auxiliary loss."""

    checkpoint_steps: int = Field(1_000, gt=0, examples=[1_000])
    """Steps between checkpoints; changes no result."""

    @model_validator(mode="before")
    @classmethod
    def _recipe_fills_in(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        try:
            tokens = float(given["tokens"])
        except (KeyError, TypeError, ValueError, OverflowError):
            tokens = math.inf  # no number of tokens, which has a sentence of its own
        name = given.get("recipe", "short-run" if tokens <= SHORT_RUN_TOKENS else "gemma-scope")
        recipe = RECIPES.get(name, GEMMA_SCOPE) if isinstance(name, str) else GEMMA_SCOPE
        if name == "short-run" and math.isfinite(tokens):
            recipe = recipe | {"learning_rate": short_run_rate(tokens)}
        return {"recipe": name} | recipe | given

    @model_validator(mode="after")
    def _rising_prefixes(self) -> "Training":
        if any(a >= b for a, b in pairwise(self.matryoshka_prefixes)):
            raise impossible(f"matryoshka_prefixes is {spell(self.matryoshka_prefixes)}; expected rising shares of the width; sort them")
        return self

    @model_validator(mode="after")
    def _at_least_one_batch(self) -> "Training":
        if self.tokens < self.batch_rows:
            raise impossible(
                f"tokens is {self.tokens:,}; expected at least one batch of {self.batch_rows:,} rows; "
                "raise training.tokens or lower training.batch_rows"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """Everything here that changes the trained dictionary, for its key."""
        start = set[str]() if self.start else {"start"}  # so that dictionaries with a random start are still called as they were
        return self.model_dump(exclude={"recipe", "tokens", "checkpoint_steps", "shards"} | start)

    def warmup_of(self, architecture: str) -> float:
        """Of its sparsity penalty: in steps, or up to one a share of all."""
        l1_warmup = self.l1_warmup if architecture in L1_ARCHITECTURES else None
        return self.sparsity_warmup if l1_warmup is None else l1_warmup

    def by_control(self, architecture: str) -> bool:
        """Whether a target L0 is met by control alone, as the loss has a price of activation and no target of its own."""
        return architecture in L1_ARCHITECTURES or (architecture == "jumprelu" and self.objective == "tanh")

    def num_steps(self, tokens: int) -> int:
        return max(1, tokens // self.batch_rows)
