"""Forecast: what a suite will take, by arithmetic. Not measured here: how fast a machine is."""

from dataclasses import dataclass

from core.site import Site
from core.spec import DictionarySpec
from core.suite import Shape, Suite


@dataclass(frozen=True)
class Forecast:
    dictionaries: int
    sites: int
    rows: int
    """Rows of training and held-out activations, at every site."""
    harvest_bytes: int
    harvest_flop: float
    training_rows: int
    """Rows trained on, summed over dictionaries."""
    training_flop: float
    dictionary_bytes: int
    """Finished weights, float32."""
    checkpoint_bytes: int
    """Most that checkpoints hold while the largest site trains: weights and two moments."""
    epochs: float
    """Times that training reads the harvest, at most."""


def forecast(suite: Suite, shape: Shape, sites: dict[Site, list[DictionarySpec]]) -> Forecast:
    """Counts multiplications and additions apart: 2 FLOP for each weight and token forward.

    A training step is taken at 12 D L FLOP a row: two products forward, four of the same size backward, as the measured
    utilisation of Gemma Scope implies (arXiv:2408.05147, section 3.4: 45 ms for a batch of a 131k dictionary).
    """
    tokens = (suite.text.num_sequences + suite.text.num_held_out_sequences) * suite.text.context
    rows = (suite.text.num_sequences + suite.text.num_held_out_sequences) * (suite.text.context - 1)
    depth = (max(site.layer for site in sites) + 1) / shape.layers
    specs = [spec for specs in sites.values() for spec in specs]
    weights = {spec: spec.width * (2 * shape.width_of(spec.site) + 2) + shape.width_of(spec.site) for spec in specs}
    train_rows = suite.text.num_sequences * (suite.text.context - 1)
    return Forecast(
        dictionaries=len(specs),
        sites=len(sites),
        rows=rows,
        harvest_bytes=sum(rows * shape.width_of(site) for site in sites) * (2 if suite.harvest.dtype == "bfloat16" else 4),
        harvest_flop=2.0 * shape.parameters * depth * tokens,
        training_rows=sum(spec.tokens for spec in specs),
        training_flop=sum(12.0 * shape.width_of(spec.site) * spec.width * spec.tokens for spec in specs),
        dictionary_bytes=4 * sum(weights.values()),
        checkpoint_bytes=12 * max(sum(weights[spec] for spec in specs) for specs in sites.values()),
        epochs=max(spec.tokens for spec in specs) / train_rows,
    )
