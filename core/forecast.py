"""Forecast: what a suite will take, by arithmetic. Not measured here: how fast a machine is."""

from dataclasses import dataclass

from core.site import Site
from core.spec import DictionarySpec
from core.suite import Shape, Suite

ROOMS = 3
"""Groups of shuffled rows in memory: one that is trained on, one that is read, one between."""


@dataclass(frozen=True)
class Forecast:
    dictionaries: int
    sites: int
    rows: int
    """Rows of training and held-out activations, at every site."""
    harvest_bytes: int
    """Of all activations."""
    window_bytes: int
    """Of the two windows that a rolling harvest has at a time, with what is held out."""
    windows: int
    harvest_flop: float
    training_rows: int
    """Rows trained on, summed over dictionaries."""
    training_flop: float
    evaluation_flop: float
    dictionary_bytes: int
    """Finished weights, float32."""
    checkpoint_bytes: int
    """Most that checkpoints hold while the largest site trains: weights and two moments."""
    host_bytes: int
    """Main memory that harvest or training fill, the larger: two blocks of every site, or groups of shuffled rows."""
    device_bytes: int
    """Memory of the device at the largest site, or for the model: weights, moments, gradients, a batch by the width."""
    epochs: float
    """Times that training reads the harvest, at most."""


def forecast(suite: Suite, shape: Shape, sites: dict[Site, list[DictionarySpec]]) -> Forecast:
    """Counts multiplications and additions apart: 2 FLOP for each weight and token forward.

    A training step is taken at 12 D L FLOP a row: two products forward, four of the same size backward, as the measured
    utilisation of Gemma Scope implies (arXiv:2408.05147, section 3.4: 45 ms for a batch of a 131k dictionary). Evaluation passes the
    sequences of the loss through the model once a site, and through the layers from the site on once more for each dictionary, for the mean and for
    zeros; vocabularies are not counted.
    """
    tokens = (suite.text.num_sequences + suite.text.num_held_out_sequences) * suite.text.context
    rows = (suite.text.num_sequences + suite.text.num_held_out_sequences) * (suite.text.context - 1)
    depth = (max(site.layer for site in sites) + 1) / shape.layers
    specs = [spec for specs in sites.values() for spec in specs]
    weights = {spec: spec.width * (2 * shape.width_of(spec.site) + 2) + shape.width_of(spec.site) for spec in specs}
    train_rows = suite.text.num_sequences * (suite.text.context - 1)
    widths, itemsize = [shape.width_of(site) for site in sites], suite.activation_bytes
    loss_flop = 2.0 * shape.parameters * suite.evaluation.loss_sequences * suite.text.context
    batch_bytes = {spec: 4 * suite.training.batch_rows * spec.width for spec in specs}
    training_bytes = max(sum(16 * weights[spec] + 2 * batch_bytes[spec] for spec in specs) for specs in sites.values()) // suite.training.shards
    return Forecast(
        dictionaries=len(specs),
        sites=len(sites),
        rows=rows,
        harvest_bytes=suite.harvest_bytes(widths),
        window_bytes=suite.rolling_bytes(widths),
        windows=suite.num_windows,
        harvest_flop=2.0 * shape.parameters * depth * tokens,
        training_rows=sum(spec.tokens for spec in specs),
        training_flop=sum(12.0 * shape.width_of(spec.site) * spec.width * spec.tokens for spec in specs),
        evaluation_flop=loss_flop * sum(1 + (2 + len(specs)) * (1 - site.layer / shape.layers) for site, specs in sites.items()),
        dictionary_bytes=4 * sum(weights.values()),
        checkpoint_bytes=12 * max(sum(weights[spec] for spec in specs) for specs in sites.values()),
        host_bytes=max(2 * suite.block_bytes(widths), ROOMS * suite.training.shuffle_rows * max(widths) * itemsize),
        device_bytes=max(training_bytes, shape.parameters * (2 if suite.model.dtype == "bfloat16" else 4)),
        epochs=max(spec.tokens for spec in specs) / train_rows,
    )
