"""Plan: what running a suite would take, from arithmetic and a second's measurement of this machine."""

import torch

from core.anatomy import device_of, devices_of
from core.forecast import forecast
from core.machine import flop_a_second, slow_bfloat16
from core.spec import width_label
from storage.catalogue import Catalogue


def describe(catalogue: Catalogue) -> str:
    """The plan, as text. Changes nothing."""
    suite, sites = catalogue.suite, catalogue.sites
    devices_of(suite.device, suite.training.shards)  # which raises where there are too few
    f, device = forecast(suite, catalogue.shape, sites), device_of(suite.device)
    rate, in_bfloat16 = flop_a_second(device), flop_a_second(device, torch.bfloat16)
    model_rate = in_bfloat16 if suite.model.dtype == "bfloat16" else rate
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
        ("text", f"{suite.text.source}: {suite.text.tokens:,} tokens to train on, {suite.text.held_out_tokens:,} held out"),
        ("harvest", f"{f.rows:,} rows a site, {_bytes(f.harvest_bytes)} on disk, {f.harvest_flop:.2g} FLOP"),
        ("training", f"{f.training_rows:,} rows in all, up to {f.epochs:.1f} epochs, {f.training_flop:.2g} FLOP"),
        ("on disk", f"dictionaries {_bytes(f.dictionary_bytes)}; checkpoints at most {_bytes(f.checkpoint_bytes)}"),
        (
            "hours",
            (
                f"harvest {_hours(f.harvest_flop / model_rate)}, training {_hours(f.training_flop / rate)} at the {rate / 1e9:,.0f} GFLOP/s that a "
                f"float32 product reaches here, {in_bfloat16 / 1e9:,.0f} in bfloat16; expect up to three times that, and evaluation besides"
            ),
        ),
    ]
    if advice := slow_bfloat16(suite.in_bfloat16, rate / in_bfloat16):
        lines.append(("advice", advice))
    return "\n".join(f"{name:<14}{text}" for name, text in lines)


def _bytes(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if count < 1_000:
            return f"{count:,.1f} {unit}"
        count /= 1_000
    return f"{count:,.1f} PB"


def _hours(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds < 3_600 else f"{seconds / 3_600:,.0f} h"


def _ranges(layers: list[int]) -> str:
    if len(layers) > 3 and layers == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}-{layers[-1]}"
    return ", ".join(map(str, layers))
