"""The architectures beside JumpReLU: their losses against transcriptions of the papers' equations, their sparse steps, and what is folded."""

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from core import sparse_step
from core.adam import Adam
from core.architectures import begin
from core.baselines import BatchTopK, Gated, TopK
from core.dense_step import DenseStep
from core.dictionary import TrainingDictionary
from core.objective import l1_price, loss
from core.site import Site
from core.sparse_baselines import SparseGatedStep, SparseTopKStep
from core.spec import DictionarySpec
from core.statistics import Moments, Normaliser
from core.training import Training

ARCHITECTURES = ("jumprelu", "relu-l1", "gated", "topk", "batch-topk")
EPSILON = 1e6
"""Beside an epsilon this large Adam is gradient descent, w - (rate / epsilon) g: what a step moves tells the gradient itself."""


def training_of(**fields: Any) -> Training:
    return Training(**({"recipe": "gemma-scope", "tokens": 10_000, "batch_rows": 10, "threshold_parameter": "linear"} | fields))


def spec_of(architecture: str, width: int, target: float | None = 3.0, price: float | None = None) -> DictionarySpec:
    return DictionarySpec(Site(0, "resid_post"), architecture, width, target, price, 0, 10_000)


def trained_looking(architecture: str, D: int, L: int, training: Training, seed: int = 0) -> TrainingDictionary:
    dictionary = begin(D, L, spec_of(architecture, L), training)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in dictionary.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
        if architecture == "jumprelu":
            dictionary.threshold_parameter.add_(0.3)
    dictionary.restore_constraints()
    return dictionary


def largest(z: Tensor, k: int) -> Tensor:
    """The k largest positive entries, by sorting."""
    values = sorted(z.flatten().tolist(), reverse=True)
    return torch.where((z >= values[k - 1]) & (z > 0), z, 0)


def rows(B: int, D: int, seed: int = 1) -> Tensor:
    return torch.randn(B, D, generator=torch.Generator().manual_seed(seed)) / math.sqrt(D)


# Losses


def test_a_relu_dictionary_minimises_squared_error_and_the_l1_norm():
    training = training_of()
    d, x = trained_looking("relu-l1", 5, 12, training), rows(7, 5)
    f = torch.relu((x - d.b_dec) @ d.W_enc.T + d.b_enc)
    expected = ((x - f @ d.W_dec - d.b_dec) ** 2).sum(1).mean() + 0.5 * 0.3 * f.abs().sum(1).mean()
    total, error, activations = loss(d, x, spec_of("relu-l1", 12, None, 0.3), training, 0.5)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(activations, f.detach())
    assert error < total


def test_a_gated_dictionary_minimises_the_three_terms_of_its_paper():
    """Rajamanoharan et al., Eq. 8, its frozen decoder as a copy that takes no gradient."""
    training = training_of()
    d, x, price = trained_looking("gated", 5, 12, training), rows(7, 5), 0.3
    assert isinstance(d, Gated)
    u = (x - d.b_dec) @ d.W_enc.T
    gate, magnitude = u + d.b_gate, torch.exp(d.r_mag) * u + d.b_enc
    f = (gate > 0).float() * torch.relu(magnitude)
    frozen = torch.relu(gate) @ d.W_dec.detach().clone() + d.b_dec.detach().clone()
    expected = ((x - f @ d.W_dec - d.b_dec) ** 2).sum(1).mean() + price * torch.relu(gate).sum(1).mean() + ((x - frozen) ** 2).sum(1).mean()
    total, _, activations = loss(d, x, spec_of("gated", 12, None, price), training, 1.0)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(activations, f.detach())
    ours, theirs = (torch.autograd.grad(value, list(d.parameters())) for value in (total, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_topk_keeps_the_k_largest_of_a_row_and_batch_topk_of_the_batch():
    training, x = training_of(), rows(7, 5)
    for architecture in ("topk", "batch-topk"):
        d = trained_looking(architecture, 5, 12, training)
        z = (x - d.b_dec) @ d.W_enc.T + d.b_enc
        f = largest(z, 3 * 7) if architecture == "batch-topk" else torch.stack([largest(row, 3) for row in z])
        total, _, activations = loss(d, x, spec_of(architecture, 12), training, 1.0)
        torch.testing.assert_close(activations, f.detach())
        torch.testing.assert_close(total, ((x - f @ d.W_dec - d.b_dec) ** 2).sum(1).mean())


def test_dead_latents_of_topk_are_trained_on_what_the_others_leave():
    """Gao et al., appendix A.2: alpha ||e - e_hat||^2, e_hat from the strongest dead latents; over the variance of e, as in their code."""
    training = training_of(dead_rows=20)
    d, x = trained_looking("topk", 6, 12, training), rows(7, 6)
    assert isinstance(d, TopK)
    d.rows_idle_L[:5] = 20
    z = (x - d.b_dec) @ d.W_enc.T + d.b_enc
    f = torch.stack([largest(row, 3) for row in z])
    e = (x - f @ d.W_dec - d.b_dec).detach()
    among_dead = torch.stack([largest(torch.where(torch.arange(12) < 5, row.relu(), torch.tensor(-1.0)), 3) for row in z])
    auxiliary = ((e - among_dead @ d.W_dec) ** 2).sum(1).mean() / ((e - e.mean(0)) ** 2).sum(1).mean()
    total, error, _ = loss(d, x, spec_of("topk", 12), training, 1.0)
    torch.testing.assert_close(total, error + auxiliary * ((x - x.mean(0)) ** 2).sum(1).mean() / 32)
    d.rows_idle_L.zero_()
    assert torch.equal(*loss(d, x, spec_of("topk", 12), training, 1.0)[:2]), "without a dead latent it is the squared error alone"


def test_a_latent_counts_the_rows_since_it_fired():
    d = TopK(4, 6, seed=0, k=2, dead_rows=12)
    fired = torch.zeros(5, 6)
    fired[2, 1] = 0.7
    for _ in range(3):
        d.observe(fired)
    assert d.rows_idle_L.tolist() == [15, 0, 15, 15, 15, 15]
    assert d.dead.tolist() == [True, False, True, True, True, True]


def test_batch_topks_threshold_is_the_running_mean_of_the_least_that_it_kept():
    d = BatchTopK(4, 6, seed=0, k=2, dead_rows=12)
    expected = None
    for least in (0.5, 0.3, 0.9):
        f = torch.zeros(5, 6)
        f[1, 2], f[3, 0] = least, 2.0
        d.observe(f)
        expected = least if expected is None else d.MEMORY * expected + (1 - d.MEMORY) * least
    assert d.threshold.item() == pytest.approx(expected)


# Sparse steps


def moved(kind: type, dictionary: TrainingDictionary, spec: DictionarySpec, training: Training, x: Tensor) -> tuple[Any, dict[str, Tensor]]:
    d = copy.deepcopy(dictionary)
    adam = Adam({name: p.detach() for name, p in d.named_parameters()}, training.adam_beta1, training.adam_beta2, training.adam_epsilon)
    result = kind(d, adam, spec, training)(x, 1e-2 * EPSILON, 0.7)
    assert adam.step == 1
    return result, {name: tensor - dictionary.state_dict()[name] for name, tensor in d.state_dict().items()}


@given(
    architecture=st.sampled_from(["topk", "gated"]),
    shape=st.tuples(st.integers(1, 40), st.integers(2, 24), st.sampled_from([5, 63, 64, 65, 200])),
    seed=st.integers(0, 10_000),
    clip=st.sampled_from([None, 1e-3, 1e3]),
    silent=st.booleans(),
    dense_above=st.sampled_from([0.05, 1.0]),
    product=st.sampled_from(["float32", "bfloat16"]),
    dead=st.booleans(),
)
def test_a_sparse_step_of_topk_or_gated_has_the_loss_and_the_gradients_of_the_dense_one(
    architecture, shape, seed, clip, silent, dense_above, product, dead
):
    B, D, L = shape
    training = training_of(gradient_clip=clip, adam_epsilon=EPSILON, encoder_product=product, dead_rows=50)
    dictionary, spec = trained_looking(architecture, D, L, training, seed), spec_of(architecture, L)
    if dead and isinstance(dictionary, TopK):
        dictionary.rows_idle_L[::2] = 50
    with torch.no_grad():
        dictionary.W_enc[:, 0] = dictionary.W_enc[:, 0].abs() + 0.5  # so that dimension 0 can switch all latents off
    x = rows(B, D, seed)
    x[torch.arange(B) % 3 == 0, 0] -= 10 * silent
    (error, l0), reference = moved(DenseStep, dictionary, spec, training, x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse_step, "DENSE_ABOVE", dense_above)
        kind = SparseTopKStep if architecture == "topk" else SparseGatedStep
        (sparse_error, sparse_l0), change = moved(kind, dictionary, spec, training, x)
    assert sparse_error == pytest.approx(error, rel=1e-5)
    assert sparse_l0 == pytest.approx(l0, rel=1e-6)
    for name, expected in reference.items():
        rounding = 3e-7 * float(dictionary.state_dict()[name].double().norm())
        assert float((change[name] - expected).double().norm()) <= 1e-4 * float(expected.double().norm()) + rounding, name


# For use


@pytest.mark.parametrize("inputs", ["scaled", "centred"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_folded_dictionary_does_to_raw_activations_what_training_did_to_normalised_ones(architecture, inputs):
    D, L = 16, 48
    x = 5 + 3 * rows(500, D)
    normaliser = Moments.of(x).normaliser(inputs)
    training = training_of()
    d = trained_looking(architecture, D, L, training)
    if isinstance(d, BatchTopK):
        d.threshold.fill_(0.4)
    exact = copy.deepcopy(d).double()
    scaled = Normaliser(normaliser.mean, normaliser.scale)(x.double())
    if isinstance(exact, BatchTopK):
        z = exact.pre_activations(scaled)
        f = torch.where(z > 0.4, z, 0)
    else:
        f = loss(exact, scaled, spec_of(architecture, L), training, 1.0).f_BL
    folded = d.fold(normaliser)
    latents = folded.encode(x)
    # Rounding decides where two z tie, or where one is on its threshold.
    sure = ((latents > 0) == (f > 0)).all(1)
    assert sure.double().mean() > 0.97
    assert 0.01 < (f > 0).double().mean() < 0.9
    torch.testing.assert_close(latents[sure].double(), normaliser.scale * f[sure], rtol=1e-4, atol=1e-4)
    reconstruction = normaliser.mean + normaliser.scale * (f @ exact.W_dec + exact.b_dec)
    torch.testing.assert_close(folded.decode(latents)[sure].double(), reconstruction[sure].detach(), rtol=1e-4, atol=1e-4)


def test_control_begins_with_a_first_guess_and_scales_it():
    training = training_of()
    d = trained_looking("gated", 4, 8, training)
    assert l1_price(d, spec_of("gated", 8)) == pytest.approx(0.1)
    d.price = math.log(3)
    assert l1_price(d, spec_of("gated", 8)) == pytest.approx(0.3)
    assert l1_price(d, spec_of("gated", 8, None, 0.7)) == 0.7, "a coefficient that is given is kept"
