"""What recipes add to the JumpReLU loss, against transcriptions: frequency penalty, Matryoshka prefixes, the tanh objective, control of L0."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from core.adam import Adam
from core.architectures import begin
from core.control import next_price
from core.dense_step import DenseStep
from core.jumprelu import JumpReLUDictionary
from core.objective import loss
from core.site import Site
from core.sparse_step import SparseStep
from core.spec import DictionarySpec
from core.statistics import Moments, Normaliser
from core.tanh import TanhDictionary
from core.trainer import Trainer, sparsity_warmth
from core.training import Training

D, L, B = 6, 20, 30
EPSILON = 1e6
"""Beside an epsilon this large Adam is gradient descent, so that what a step moves tells the gradient."""


def training_of(**fields: Any) -> Training:
    return Training(**({"recipe": "gemma-scope", "tokens": 10_000, "batch_rows": 10, "threshold_parameter": "linear", "bandwidth": 0.2} | fields))


def spec_of(target: float | None = 3.0, price: float | None = None) -> DictionarySpec:
    return DictionarySpec(Site(0, "resid_post"), "jumprelu", L, target, price, 0, 10_000)


def trained_looking(training: Training) -> JumpReLUDictionary:
    d = begin(D, L, spec_of(), training)
    assert isinstance(d, JumpReLUDictionary)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in d.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
        d.threshold_parameter.add_(math.log(3) if d.log_threshold else 0.2)
    d.restore_constraints()
    return d


def rows() -> Tensor:
    return torch.randn(B, D, generator=torch.Generator().manual_seed(1)) / math.sqrt(D)


# Frequency penalty


def test_the_frequency_penalty_is_the_sum_of_squared_frequencies_over_its_scale():
    plain, with_penalty = training_of(), training_of(frequency_coefficient=0.3, frequency_scale=0.05)
    d, x = trained_looking(plain), rows()
    fires = ((x - d.b_dec) @ d.W_enc.T + d.b_enc > d.threshold).float()
    extra = sum(0.3 * float(fires[:, latent].mean()) ** 2 / 0.05 for latent in range(L))
    without, with_it = (loss(d, x, spec_of(), training, 0.5).total for training in (plain, with_penalty))
    assert float(with_it - without) == pytest.approx(0.5 * extra, rel=1e-4)


def test_the_frequency_penalty_raises_the_thresholds_of_latents_by_how_often_they_fire():
    """Its derivative in a threshold: 2 lambda p_l / omega times the density of z at the threshold, which the kernel estimates."""
    training = training_of(frequency_coefficient=0.3, frequency_scale=0.05, target_l0_coefficient=1e-12)
    d, x = trained_looking(training), rows()
    z, theta = (x - d.b_dec) @ d.W_enc.T + d.b_enc, d.threshold.detach()
    density = ((z - theta).abs() < 0.1).float().mean(0) / 0.2
    frequency = (z > theta).float().mean(0)
    gradients = []
    for warmth in (0.0, 1.0):
        (gradient,) = torch.autograd.grad(loss(d, x, spec_of(), training, warmth).total, [d.threshold_parameter])
        gradients.append(gradient)
    torch.testing.assert_close(gradients[1] - gradients[0], -2 * 0.3 * frequency / 0.05 * density, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("price", [0.0, 0.7])
@pytest.mark.parametrize("objective", ["per-token", "batch-mean"])
def test_a_sparse_step_has_the_frequency_penalty_and_the_controlled_price_of_the_dense_one(objective, price):
    training = training_of(
        frequency_coefficient=0.3, frequency_scale=0.05, target_l0_objective=objective, target_l0_coefficient=0.1, adam_epsilon=EPSILON
    )
    d, moved = trained_looking(training), []
    d.price = price
    for kind in (DenseStep, SparseStep):
        mine = copy.deepcopy(d)
        adam = Adam({name: p.detach() for name, p in mine.named_parameters()}, 0.0, 0.999, EPSILON)
        kind(mine, adam, spec_of(), training)(rows(), 1e-2 * EPSILON, 0.7)
        moved.append(mine.threshold_parameter.detach() - d.threshold_parameter.detach())
    assert float((moved[1] - moved[0]).norm()) <= 1e-4 * float(moved[0].norm()) + 1e-6


# Matryoshka


def test_matryoshka_prefixes_are_asked_to_reconstruct_as_well():
    training = training_of(matryoshka_prefixes=[0.1, 0.5])
    d, x = trained_looking(training), rows()
    z = (x - d.b_dec) @ d.W_enc.T + d.b_enc
    f = torch.where(z > d.threshold, z, 0)
    errors = [((x - d.b_dec - f[:, :first] @ d.W_dec[:first]) ** 2).sum(1).mean() for first in (2, 10, L)]
    total, error, _ = loss(d, x, spec_of(), training, 0.0)
    torch.testing.assert_close(total, sum(errors) / 3)
    torch.testing.assert_close(error, errors[-1].detach())


# Anthropic's objective


def anthropic() -> Training:
    return Training(recipe="anthropic-2025", tokens=100_000)


def test_the_tanh_objective_is_error_tanh_of_activations_and_the_way_back_for_silent_latents():
    training = anthropic()
    d, x = trained_looking(training), rows() * math.sqrt(D)
    assert isinstance(d, TanhDictionary)
    z, theta, norm = (x - d.b_dec) @ d.W_enc.T + d.b_enc, d.threshold_parameter.exp(), d.W_dec.norm(dim=1)
    f = torch.where(z > theta, z, 0)
    expected = ((x - f @ d.W_dec - d.b_dec) ** 2).sum(1).mean()
    expected += 0.5 * 12 * torch.tanh(4 * f * norm).sum(1).mean() + 3e-6 * (torch.relu(theta - z) * norm).sum(1).mean()
    total, _, activations = loss(d, x, spec_of(None, 12.0), training, 0.5)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(activations, f.detach())


def test_the_tanh_objectives_gradient_in_log_thresholds_is_anthropics():
    """dL/dt_l = -(theta_l / epsilon) times the sum of dL/df over the rows within half a bandwidth; no 1 / theta is lost to the logarithm."""
    training = anthropic().model_copy(update={"pre_activation_coefficient": 0.0})
    d, x = trained_looking(training), rows() * math.sqrt(D)
    with torch.no_grad():
        z, theta = d.pre_activations(x), d.threshold
        f = torch.where(z > theta, z, 0)
        norm = d.W_dec.norm(dim=1)
        slope = 2 * (d.decode(f) - x) @ d.W_dec.T + 12 * 4 * norm * (1 - torch.tanh(4 * f * norm) ** 2)
        # tanh of |f| has no slope at zero from one side: torch takes sign(0) = 0 there.
        slope -= 12 * 4 * norm * (f == 0)
        expected = -(theta / 2) * (slope * ((z - theta).abs() < 1)).mean(0)
    (gradient,) = torch.autograd.grad(loss(d, x, spec_of(None, 12.0), training, 1.0).total, [d.threshold_parameter])
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


def test_anthropics_dictionary_begins_as_its_update_says():
    training = anthropic()
    d = TanhDictionary(16, 40_000, seed=0, threshold_init=training.threshold_init)
    assert float(d.W_dec.abs().max()) <= 1 / 4
    assert float(d.W_dec.abs().mean()) == pytest.approx(1 / 8, rel=0.01), "uniform"
    torch.testing.assert_close(d.W_enc.detach(), d.W_dec.detach() * 16 / 40_000)
    x = torch.randn(400, 16, generator=torch.Generator().manual_seed(0))
    d.start(x)
    assert float((d.pre_activations(x) > d.threshold).sum(1).float().mean()) == pytest.approx(10_000, rel=0.02)


def test_anthropics_free_decoder_is_folded_to_unit_rows_and_stays_the_same_function():
    training = anthropic()
    d, x = trained_looking(training), 4 + 3 * rows()
    normaliser = Moments.of(x).normaliser("scaled-to-d")
    scaled = normaliser(x)
    assert float(scaled.square().sum(1).mean()) == pytest.approx(D, rel=1e-5)
    with torch.no_grad():
        z = d.pre_activations(scaled)
        f = torch.where(z > d.threshold, z, 0)
        reconstruction = normaliser.scale * d.decode(f)
    folded = d.fold(normaliser)
    torch.testing.assert_close(folded.W_dec.norm(dim=1), torch.ones(L))
    torch.testing.assert_close(folded.decode(folded.encode(x)), reconstruction, rtol=1e-4, atol=1e-4)


def test_a_warmup_of_one_lasts_the_whole_run():
    warmup = anthropic().warmup_of("jumprelu")
    assert [sparsity_warmth(step, 10, warmup) for step in (0, 5, 10)] == [0.0, 0.5, 1.0]


# Control of L0


def test_control_moves_the_price_by_the_share_that_is_missed_and_never_by_more_than_one_target():
    training = training_of(l0_control=0.02)
    assert next_price(0.5, 3.3, 0.5, spec_of(3.0), training) == pytest.approx(0.5 + 0.02 * 0.5 * 0.1)
    assert next_price(0.5, 300, 1.0, spec_of(3.0), training) == pytest.approx(0.52)
    assert next_price(0.5, 300, 1.0, spec_of(None, 0.1), training) == 0.5, "without a target there is nothing to control"
    assert next_price(0.0, 300, 1.0, spec_of(3.0), training_of()) == 0.0, "and the papers' recipes have none"


@pytest.mark.parametrize("architecture", ["jumprelu", "gated", "relu-l1"])
def test_a_short_training_with_control_ends_at_its_target(architecture):
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(48, 16, generator=generator))

    def batch(t: int) -> Tensor:
        chance = torch.Generator().manual_seed(t)
        codes = (torch.rand(256, 48, generator=chance) < 4 / 48) * (0.5 + torch.rand(256, 48, generator=chance))
        return codes @ features

    training = training_of(
        tokens=256 * 1_000, batch_rows=256, learning_rate=3e-3, learning_rate_warmup=20, adam_beta1=0.9, adam_beta2=0.95, bandwidth=0.1,
        sparsity_warmup=0.3, target_l0_objective="batch-mean", target_l0_coefficient=0.01, l0_control=0.01, threshold_init=0.1,
    )  # fmt: skip
    spec = DictionarySpec(Site(0, "resid_post"), architecture, 64, 5.0, None, 0, training.tokens)
    normaliser = Moments.of(torch.cat([batch(t) for t in range(20)])).normaliser("scaled")
    trainer = Trainer(spec, training, normaliser, torch.device("cpu"))
    while not trainer.done:
        trainer.train_on(batch(trainer.step))
    folded = trainer.dictionary.fold(normaliser)
    held_out = torch.cat([batch(10_000 + t) for t in range(20)])
    assert float((folded.encode(held_out) > 0).sum(1).float().mean()) == pytest.approx(5.0, rel=0.05)


def test_the_controlled_price_is_part_of_a_checkpoint():
    training = training_of(l0_control=0.02, tokens=1_000)
    normaliser, generator = Normaliser(torch.zeros(D), 1.0), torch.Generator().manual_seed(0)
    batches = [torch.randn(10, D, generator=generator) for _ in range(8)]
    straight, first, second = (Trainer(spec_of(), training, normaliser, torch.device("cpu")) for _ in range(3))
    for x in batches:
        straight.train_on(x)
    for x in batches[:4]:
        first.train_on(x)
    tensors, values = first.state()
    second.load_state({name: tensor.clone() for name, tensor in tensors.items()}, values)
    for x in batches[4:]:
        second.train_on(x)
    assert second.dictionary.price == straight.dictionary.price != 0
    assert torch.equal(second.dictionary.threshold_parameter, straight.dictionary.threshold_parameter)
