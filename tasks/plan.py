"""Plan: what running a suite would take, from arithmetic, and a second's measurement of this machine or what is known of another."""

from dataclasses import dataclass

import torch

from core.anatomy import device_of, devices_of
from core.devices import DEVICES, UTILISATION
from core.errors import ConfigError
from core.forecast import Forecast, forecast
from core.machine import flop_a_second, slow_bfloat16
from core.spec import DictionarySpec, width_label
from core.suite import Suite
from storage.catalogue import Catalogue
from tasks.asking import asked_for


def describe(catalogue: Catalogue, device: str | None = None, price: float | None = None) -> str:
    """The plan, as text. Changes nothing.

    Args:
        device: one of `DEVICES`; this machine's by default. price: of an hour of it.

    Raises:
        ConfigError: a device that is not known, or a price that is none.
    """
    suite, sites = catalogue.suite, catalogue.sites
    if price is not None and not 0 <= price < float("inf"):
        raise ConfigError(f"--price is {price:g}; expected what an hour of the device costs; write for example --price 2.5")
    rolls, f = catalogue.rolls, forecast(suite, catalogue.shape, sites)
    speed = _speed_of(device) if device else _speed_here(suite)
    harvest, evaluation = f.harvest_flop / speed.of(suite.model.dtype), f.evaluation_flop / speed.of(suite.model.dtype)
    training = f.training_flop / speed.of(suite.training.encoder_product)
    specs = [spec for specs in sites.values() for spec in specs]
    widths = ", ".join(width_label(width) for width in sorted({spec.width for spec in specs}))
    targets = ", ".join(f"{target:g}" for target in sorted({spec.target_l0 for spec in specs if spec.target_l0 is not None}))
    prices = ", ".join(f"{price:g}" for price in sorted({spec.l0_coefficient for spec in specs if spec.l0_coefficient is not None}))
    sparsities = [f"target L0 {targets}"] * bool(targets) + [f"lambda {prices}"] * bool(prices)
    kinds = sorted({site.kind for site in sites})
    layers = sorted({site.layer for site in sites})
    lines = [
        ("suite", f"{suite.name}: {f.dictionaries:,} dictionaries at {f.sites:,} sites"),
        ("model", f"{suite.model.source}, {catalogue.shape.layers} layers, d_model {catalogue.shape.d_model:,}"),
        ("sites", f"layers {_ranges(layers)}; {', '.join(kinds)}"),
        ("dictionaries", f"width {widths}; {'; '.join(sparsities)}"),
        ("text", f"{suite.text.source}: {suite.text.training_tokens:,} tokens to train on, {suite.text.held_out_tokens:,} held out"),
        ("harvest", f"{f.rows:,} rows a site, {f.harvest_flop:.2g} FLOP"),
        ("training", f"{f.training_rows:,} rows in all, up to {f.epochs:.1f} epochs, {f.training_flop:.2g} FLOP"),
        ("on disk", _on_disk(f, rolls)),
        ("", f"dictionaries {_bytes(f.dictionary_bytes)}; checkpoints at most {_bytes(f.checkpoint_bytes)}"),
        ("memory", f"main memory {_bytes(f.host_bytes)} for rows, the device {_bytes(f.device_bytes)} at the largest site; besides the libraries"),
        ("hours", f"harvest {_hours(harvest)}, training {_hours(training)}, evaluation {_hours(evaluation)}: {speed.source}"),
    ]
    if suite.explanations:
        lines.append(("explanations", _explanations(suite, specs)))
    if price is not None:
        hours = (harvest + training + evaluation) / 3_600
        lines.append(("price", f"{hours * price:,.0f} at {price:g} an hour of the device"))
    if device and f.device_bytes > DEVICES[device].memory:
        lines.append(("advice", f"a {device} has {_bytes(DEVICES[device].memory)}; set training.shards, or train fewer dictionaries a site at once"))
    if speed.advice:
        lines.append(("advice", speed.advice))
    return "\n".join(f"{name:<14}{text}" for name, text in lines)


def _explanations(suite: Suite, specs: list[DictionarySpec]) -> str:
    settings = suite.explaining
    latents = sum(min(spec.width, settings.latents or spec.width) for spec in specs) * (2 if settings.control else 1)
    said = f"up to {latents:,} latents{', half of them random directions' if settings.control else ''}; "
    if settings.endpoint is None:
        return f"{said}by rules about tokens"
    caps = [f"{settings.endpoint.max_tokens:,} tokens"] + [f"{settings.endpoint.max_cost:g} in money"] * (settings.endpoint.max_cost is not None)
    return f"{said}{asked_for(settings.endpoint, latents, min(settings.context, suite.text.context))}; never more than {' or '.join(caps)}"


@dataclass(frozen=True)
class _Speed:
    """FLOP a second that work comes to."""

    float32: float
    bfloat16: float
    source: str
    advice: str | None = None

    def of(self, dtype: str) -> float:
        return self.bfloat16 if dtype == "bfloat16" else self.float32


def _speed_here(suite: Suite) -> _Speed:
    devices_of(suite.device, suite.training.shards)  # which raises where there are too few
    here = device_of(suite.device)
    float32, bfloat16 = flop_a_second(here), flop_a_second(here, torch.bfloat16)
    source = (
        f"at the {float32 / 1e9:,.0f} GFLOP/s that a float32 product reaches here, {bfloat16 / 1e9:,.0f} in bfloat16; expect up to three times that"
    )
    return _Speed(float32, bfloat16, source, slow_bfloat16(suite.in_bfloat16, float32 / bfloat16))


def _speed_of(name: str) -> _Speed:
    if name not in DEVICES:
        raise ConfigError(f"--device is {name!r}; expected one of {', '.join(DEVICES)}; leave it out to plan for this machine")
    device = DEVICES[name]
    source = f"on one {name}, at {UTILISATION:.0%} of the {device.bfloat16 / 1e12:,.0f} TFLOP/s that its maker says in bfloat16"
    return _Speed(UTILISATION * device.float32, UTILISATION * device.bfloat16, f"{source}, {device.float32 / 1e12:,.0f} in float32")


def _on_disk(f: Forecast, rolls: bool) -> str:
    """What the activations take, and whether to keep them."""
    if rolls:
        return f"activations roll: at most {_bytes(f.window_bytes)} at a time, of {_bytes(f.harvest_bytes)} in {f.windows:,} windows"
    if f.windows == 1:
        return f"activations {_bytes(f.harvest_bytes)}, kept"
    roll = f"harvest.quota: {_bytes(f.window_bytes).replace(' ', '').replace(',', '')}"
    return f"activations {_bytes(f.harvest_bytes)}, kept; with {roll} or more they roll, in {f.windows:,} windows"


def _bytes(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if count < 1_000:
            return f"{count:,.1f} {unit}"
        count /= 1_000
    return f"{count:,.1f} PB"


def _hours(seconds: float) -> str:
    if seconds < 3_600:
        return f"{seconds / 60:.1f} minutes"
    return f"{seconds / 3_600:,.1f} h" if seconds < 360_000 else f"{seconds / 3_600:,.0f} h"


def _ranges(layers: list[int]) -> str:
    if len(layers) > 3 and layers == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}-{layers[-1]}"
    return ", ".join(map(str, layers))
