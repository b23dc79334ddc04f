"""Where the sites are in a model: found by its structure, so that no list of model names is kept.

It reads decoders of the Gemma 2 and 3, Llama, Qwen, Mistral, GPT-2 and GPT-NeoX kind. Not here: running the model.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from core.errors import ConfigError
from core.site import Site
from core.suite import Shape

BLOCKS = ("layers", "h")
FINAL_NORM = ("norm", "ln_f", "final_layer_norm")
ATTENTION_OUTPUT = ("self_attn.o_proj", "attn.c_proj", "attention.dense")
# Gemma 2 and 3 normalise the MLP's output before it joins the residual stream; the site is after that norm (GS, section 3.1).
MLP_OUTPUT = ("post_feedforward_layernorm", "mlp")


@dataclass(frozen=True)
class Place:
    """A module and the side of it where a site's activations pass."""

    module: nn.Module
    side: Literal["input", "output"]


class Anatomy:
    """The sites of one model.

    Args:
        model: a causal language model of `transformers`, on any device, meta included.

    Raises:
        ConfigError: the model has no list of blocks, attention output or MLP where one was looked for.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.trunk: nn.Module = cast("Any", model).get_decoder()
        """The model without its head: tokens in, last hidden state out."""
        self.blocks = cast("nn.ModuleList", _first(self.trunk, BLOCKS, type(model).__name__))

    @property
    def shape(self) -> Shape:
        config = cast("Any", self.model).config.get_text_config()
        return Shape(
            layers=len(self.blocks),
            d_model=config.hidden_size,
            d_attn=_in_features(self.place(Site(0, "attn_z")).module),
            parameters=sum(p.numel() for p in self.blocks.parameters()),
        )

    @property
    def final_norm(self) -> nn.Module:
        """Through which the last block's output goes to the unembedding."""
        return _first(self.trunk, FINAL_NORM, type(self.model).__name__)

    @property
    def unembedding(self) -> nn.Linear:
        """From the final norm's output to logits."""
        return cast("nn.Linear", cast("Any", self.model).get_output_embeddings())

    @property
    def softcap(self) -> float | None:
        """Logits z become softcap * tanh(z / softcap), where a model has one."""
        return getattr(cast("Any", self.model).config.get_text_config(), "final_logit_softcapping", None)

    @property
    def logit_scale(self) -> float:
        """What the unembedding's output is multiplied by: Cohere's models say so, and Granite's by what it is divided."""
        config = cast("Any", self.model).config.get_text_config()
        return (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)

    def place(self, site: Site) -> Place:
        block, name = self.blocks[site.layer], f"{type(self.model).__name__} block {site.layer}"
        if site.kind == "attn_z":
            return Place(_first(block, ATTENTION_OUTPUT, name), "input")
        if site.kind == "mlp_out":
            return Place(_first(block, MLP_OUTPUT, name), "output")
        return Place(block, "output")

    def path(self, site: Site) -> str:
        """The site as a hook point of the Hugging Face module, as Gemma Scope 2 spells it: `model.layers.9.output`."""
        place = self.place(site)
        name = next(name for name, module in self.model.named_modules() if module is place.module)
        return f"{name}.{place.side}"

    @contextmanager
    def capture(self, sites: list[Site], keep: Callable[[Site, Tensor], None]) -> Iterator[None]:
        """While open, each forward pass gives every site's activations (sequences x positions x D) to `keep`, as soon as they are there."""
        with _hooked([_hook(self.place(site), lambda x, site=site: keep(site, x)) for site in sites]):
            yield

    @contextmanager
    def splice(self, site: Site, replace: Any) -> Iterator[None]:
        """While open, the site's activations are `replace(activations)`, of the same shape."""
        with _hooked([_hook(self.place(site), replace)]):
            yield

    def run_to(self, layer: int, tokens: Tensor) -> None:
        """A forward pass that ends after a layer: no later block, no final norm, no logits are computed.

        Args:
            tokens: sequences x context, int64.
        """

        def stop(*_: Any) -> None:
            raise _Reached

        handle = self.blocks[layer].register_forward_hook(stop)
        try:
            self.trunk(tokens, use_cache=False)
        except _Reached:
            pass
        finally:
            handle.remove()


class _Reached(Exception):
    """The last layer wanted has run."""


def _hook(place: Place, function: Any) -> Any:
    """Register `function` at a place; what it returns, if anything, takes the activations' place. Gives the handle."""
    if place.side == "input":

        def before(_: nn.Module, inputs: tuple[Any, ...]) -> Any:
            changed = function(inputs[0])
            return None if changed is None else (changed, *inputs[1:])

        return place.module.register_forward_pre_hook(before)

    def after(_: nn.Module, __: Any, output: Any) -> Any:
        changed = function(output[0] if isinstance(output, tuple) else output)
        if changed is None:
            return None
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return place.module.register_forward_hook(after)


@contextmanager
def _hooked(handles: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _first(module: nn.Module, paths: tuple[str, ...], where: str) -> nn.Module:
    for path in paths:
        try:
            return module.get_submodule(path)
        except AttributeError:
            continue
    children = ", ".join(name for name, _ in module.named_children()) or "nothing"
    raise ConfigError(
        f"model.source is a model that cannot be read: in {where} none of {', '.join(paths)} was found, only {children}; "
        "expected a decoder of the Gemma, Llama, Qwen, Mistral, GPT-2 or GPT-NeoX kind; choose another model"
    )


def _in_features(projection: nn.Module) -> int:
    """Inputs of a Linear, or of GPT-2's Conv1D, whose weight lies the other way round."""
    features = getattr(projection, "in_features", None)
    return int(features if features is not None else cast("Tensor", projection.weight).shape[0])


def devices_of(name: str, shards: int) -> list[torch.device]:
    """The devices that share a dictionary: the one that a suite file names, or that many of its kind.

    Raises:
        ConfigError: no such device here, or too few.
    """
    device = device_of(name)
    if shards == 1:
        return [device]
    if device.type == "cpu":
        return [device] * shards
    if device.type != "cuda" or ":" in name:
        raise ConfigError(f"device is {name!r}; expected a kind of which each of the {shards} training.shards has one; write cuda, cpu or auto")
    if shards > torch.cuda.device_count():
        raise ConfigError(
            f"training.shards is {shards}; expected at most one for each of the {torch.cuda.device_count()} GPUs of this machine; "
            "lower training.shards, or write device: cpu"
        )
    return [torch.device("cuda", index) for index in range(shards)]


def device_of(name: str) -> torch.device:
    """The device a suite file names; `auto` is a GPU where there is one.

    Raises:
        ConfigError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError):
        raise ConfigError(f"device is {name!r}; expected a device of this machine; write auto, cpu or cuda") from None
