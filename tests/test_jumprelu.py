"""JumpReLU, its pseudo-derivatives and the dictionary, against definitions, known densities and finite differences."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from core.dense_step import project_rows
from core.dictionary import Dictionary
from core.jumprelu import JumpReLUDictionary, jumprelu, step
from core.objective import loss
from core.site import Site
from core.spec import DictionarySpec
from core.statistics import Moments, Normaliser
from core.training import Training

NUM_SAMPLES = 300_000
STANDARD_ERRORS = 4.5
"""A true value is further off than this once in 150,000 draws; the seeds are fixed."""


def normal_samples(seed: int) -> Tensor:
    return torch.randn(NUM_SAMPLES, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normal_density(z: float) -> float:
    return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def rectangle(u: np.ndarray) -> np.ndarray:
    """K(u) = H(u + 1/2) - H(u - 1/2), as JR writes it, and open at both edges as in its code."""
    return np.heaviside(u + 0.5, 0) - np.heaviside(u - 0.5, 1)


# The definition


def test_jumprelu_is_z_where_z_is_strictly_above_its_threshold_and_else_zero():
    z = torch.tensor([[0.5, 0.5, -3.0], [0.75, 0.25, 2.0], [2.0**100, 0.0, 1.0]])
    threshold = torch.tensor([0.5, 0.25, 1.0])
    expected = [[z_l if z_l > t_l else 0.0 for z_l, t_l in zip(row, threshold.tolist(), strict=True)] for row in z.tolist()]
    assert expected == [[0.0, 0.5, 0.0], [0.75, 0.0, 2.0], [2.0**100, 0.0, 0.0]]
    assert jumprelu(z, threshold, 0.1).tolist() == expected


def test_the_step_is_one_strictly_above_the_threshold_and_zero_at_a_tie():
    threshold = torch.tensor([0.5])
    z = torch.tensor([[0.5], [torch.nextafter(threshold, torch.tensor(1.0)).item()], [torch.nextafter(threshold, torch.tensor(0.0)).item()]])
    assert step(z, threshold, 0.1).tolist() == [[0.0], [1.0], [0.0]]


def test_a_dictionary_in_use_treats_ties_as_training_does():
    eye, zeros = torch.eye(2), torch.zeros(2)
    dictionary = Dictionary(W_enc=eye, b_enc=zeros, W_dec=eye, b_dec=zeros, threshold=torch.tensor([0.5, 0.5]))
    assert dictionary.encode(torch.tensor([[0.5, 0.75]])).tolist() == [[0.0, 0.75]]


def test_a_value_that_is_not_a_number_is_not_hidden_by_the_threshold():
    assert jumprelu(torch.tensor([[math.nan]]), torch.tensor([0.5]), 0.1).isnan().all()


# The pseudo-derivatives, as formulas


@pytest.mark.parametrize("bandwidth", [0.001, 0.1, 2.0])
def test_pseudo_derivatives_are_the_formulas_of_the_paper(bandwidth):
    rng = np.random.default_rng(0)
    threshold = rng.uniform(0.05, 1.5, size=7)
    z = threshold + bandwidth * rng.uniform(-1.2, 1.2, size=(50, 7))
    upstream = rng.normal(size=z.shape)
    K = rectangle((z - threshold) / bandwidth)
    assert 0 < K.mean() < 1

    for function, theta_gradient, z_gradient in (
        (jumprelu, -(threshold / bandwidth) * K, (z > threshold).astype(float)),
        (step, -(1 / bandwidth) * K, np.zeros_like(z)),
    ):
        z_leaf, threshold_leaf = torch.tensor(z, requires_grad=True), torch.tensor(threshold, requires_grad=True)
        # An even part in z_leaf, so that it has a gradient even where the function passes none.
        ((function(z_leaf, threshold_leaf, bandwidth) + 0 * z_leaf) * torch.tensor(upstream)).sum().backward()
        np.testing.assert_allclose(threshold_leaf.grad.numpy(), (upstream * theta_gradient).sum(0), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(z_leaf.grad.numpy(), upstream * z_gradient, rtol=1e-12)


def test_the_window_is_open_at_its_edges_and_holds_its_centre():
    threshold = torch.tensor([1.0], requires_grad=True)
    for z, expected in ((0.75, 0.0), (1.25, 0.0), (1.0, -2.0), (1.125, -2.0), (0.875, -2.0)):
        threshold.grad = None
        step(torch.tensor([[z]]), threshold, 0.5).sum().backward()
        assert threshold.grad.item() == expected, z


def test_the_step_passes_nothing_to_the_pre_activations():
    z, threshold = torch.rand(20, 5, requires_grad=True), torch.full((5,), 0.5, requires_grad=True)
    step(z, threshold, 0.5).sum().backward()
    assert z.grad is None
    assert threshold.grad.abs().min() > 0


# The pseudo-derivatives, as estimates of the gradient of an expectation


@pytest.mark.parametrize("bandwidth", [0.05, 0.2])
@pytest.mark.parametrize("theta", [0.1, 0.7, 1.6])
def test_the_steps_batch_gradient_estimates_the_derivative_of_the_expected_l0(theta, bandwidth):
    z, threshold = normal_samples(1), torch.tensor([theta], dtype=torch.float64, requires_grad=True)
    step(z, threshold, bandwidth).sum(1).mean().backward()
    derivative = -normal_density(theta)
    # Share of samples in the window is binomial; averaging a density over the window errs by at most eps^2/24 sup|p''|, sup|p''| = p(0).
    standard_error = math.sqrt(normal_density(theta) / (bandwidth * NUM_SAMPLES))
    bias = bandwidth**2 / 24 * normal_density(0)
    assert abs(threshold.grad.item() - derivative) < STANDARD_ERRORS * standard_error + bias
    assert STANDARD_ERRORS * standard_error + bias < 0.2 * abs(derivative), "the tolerance tells right from wrong"


@pytest.mark.parametrize("bandwidth", [0.05, 0.2])
@pytest.mark.parametrize("theta", [0.1, 0.7, 1.6])
def test_jumprelus_batch_gradient_estimates_the_derivative_of_an_expectation(theta, bandwidth):
    """E[z H(z - theta) g(z)] with g(z) = 1 + z/2 has the derivative -theta g(theta) p(theta)."""
    z, threshold = normal_samples(2), torch.tensor([theta], dtype=torch.float64, requires_grad=True)
    (jumprelu(z, threshold, bandwidth) * (1 + z / 2)).sum(1).mean().backward()
    g = 1 + theta / 2
    derivative = -theta * g * normal_density(theta)
    # g is at most 1.1 g(theta) inside the widest window; sup|(g p)''| = sup|(z^2 - 1 + (z^3 - 3z)/2) p(z)| < 0.7.
    standard_error = theta * 1.1 * g * math.sqrt(normal_density(theta) / (bandwidth * NUM_SAMPLES))
    bias = theta * bandwidth**2 / 24 * 0.7
    assert abs(threshold.grad.item() - derivative) < STANDARD_ERRORS * standard_error + bias
    assert STANDARD_ERRORS * standard_error + bias < 0.2 * abs(derivative), "the tolerance tells right from wrong"


@pytest.mark.parametrize("bandwidth", [0.01, 0.2])
def test_the_steps_batch_gradient_is_a_kernel_density_estimate(bandwidth):
    z, thetas = normal_samples(3), np.array([0.1, 0.7, 1.6])
    threshold = torch.tensor(thetas, requires_grad=True)
    step(z.expand(-1, 3), threshold, bandwidth).sum(1).mean().backward()
    for theta, gradient in zip(thetas, threshold.grad.tolist(), strict=True):
        (count,), _ = np.histogram(z.numpy(), bins=[theta - bandwidth / 2, theta + bandwidth / 2])
        assert gradient == pytest.approx(-count / (NUM_SAMPLES * bandwidth), rel=1e-12)


@pytest.mark.parametrize("bandwidth", [0.05, 0.15])
def test_the_loss_gradient_in_the_thresholds_estimates_finite_differences_of_the_expected_loss(bandwidth):
    """The same samples on both sides; 25 batches tell how much the two estimates of one number may differ."""
    D, L, price = 4, 6, 0.3
    generator = torch.Generator().manual_seed(4)
    dictionary = JumpReLUDictionary(D, L, seed=0, threshold_init=0.5, log_threshold=False).double()
    with torch.no_grad():
        dictionary.W_enc.add_(0.3 * torch.randn(L, D, generator=generator, dtype=torch.float64))
        dictionary.b_dec.add_(0.1 * torch.randn(D, generator=generator, dtype=torch.float64))
        dictionary.threshold_parameter.copy_(torch.linspace(0.2, 1.2, L))
    training = Training(recipe="gemma-scope", tokens=10, batch_rows=10, bandwidth=bandwidth, threshold_parameter="linear")
    spec = DictionarySpec(Site(0, "resid_post"), "jumprelu", L, None, price, 0, 10)
    W_enc, b_enc, W_dec, b_dec, theta = (
        getattr(dictionary, name).detach().numpy() for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold_parameter")
    )

    def mean_loss(x: np.ndarray, theta: np.ndarray) -> float:
        z = (x - b_dec) @ W_enc.T + b_enc
        f = np.where(z > theta, z, 0)
        return float((((x - f @ W_dec - b_dec) ** 2).sum(1) + price * (f != 0).sum(1)).mean())

    estimates, differences = [], []
    for _ in range(25):
        x = torch.randn(8_000, D, generator=generator, dtype=torch.float64)
        dictionary.zero_grad()
        loss(dictionary, x, spec, training, 1.0)[0].backward()
        estimates.append(dictionary.threshold_parameter.grad.numpy().copy())
        moves = np.eye(L) * bandwidth / 2
        differences.append([(mean_loss(x.numpy(), theta + move) - mean_loss(x.numpy(), theta - move)) / bandwidth for move in moves])
    gap = np.array(estimates) - np.array(differences)
    standard_error = gap.std(0, ddof=1) / math.sqrt(len(gap))
    # Values inside the window differ from theta by a share of up to eps / (2 theta), evenly to both sides: what is left is of second order.
    bias = bandwidth**2
    assert (np.abs(gap.mean(0)) < STANDARD_ERRORS * standard_error + bias).all()
    assert (STANDARD_ERRORS * standard_error + bias < 0.3 * np.abs(differences).mean()).all(), "the tolerance tells right from wrong"


# The dictionary in training


def trained_looking(dimensions: int, width: int, *, log_threshold: bool) -> JumpReLUDictionary:
    generator = torch.Generator().manual_seed(5)
    dictionary = JumpReLUDictionary(dimensions, width, seed=1, threshold_init=0.05, log_threshold=log_threshold)
    with torch.no_grad():
        for name, spread in (("W_enc", 0.1), ("b_enc", 0.02), ("b_dec", 0.05), ("threshold_parameter", 0.01)):
            parameter = getattr(dictionary, name)
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    dictionary.restore_constraints()
    return dictionary


def test_training_begins_as_gemma_scope_says():
    dictionary = JumpReLUDictionary(16, 64, seed=3, threshold_init=0.001, log_threshold=True)
    torch.testing.assert_close(dictionary.W_dec.norm(dim=1), torch.ones(64))
    assert torch.equal(dictionary.W_enc, dictionary.W_dec)
    assert not dictionary.b_enc.any()
    assert not dictionary.b_dec.any()
    torch.testing.assert_close(dictionary.threshold, torch.full((64,), 0.001))
    assert dictionary.W_enc.data_ptr() != dictionary.W_dec.data_ptr(), "the encoder is free of the decoder afterwards"
    assert not torch.equal(dictionary.W_dec, JumpReLUDictionary(16, 64, seed=4, threshold_init=0.001, log_threshold=True).W_dec)


@pytest.mark.parametrize("inputs", ["scaled", "centred"])
@pytest.mark.parametrize("log_threshold", [True, False])
def test_a_folded_dictionary_does_to_raw_activations_what_training_did_to_normalised_ones(inputs, log_threshold):
    generator, D, L = torch.Generator().manual_seed(6), 32, 128
    direction = torch.nn.functional.normalize(torch.randn(D, generator=generator), dim=0)
    x = 40 * math.sqrt(D) * 3 * direction + 3 * torch.randn(2_000, D, generator=generator)  # the mean's norm is 40 times the spread
    normaliser = Moments.of(x).normaliser(inputs)
    training = trained_looking(D, L, log_threshold=log_threshold)
    folded = training.fold(normaliser)

    # The reference: training's own formulas, in float64 so that its rounding does not count.
    exact = {name: p.detach().double() for name, p in training.named_parameters()}
    theta = exact["threshold_parameter"].exp() if log_threshold else exact["threshold_parameter"]
    C, mean = normaliser.scale, normaliser.mean.double()
    z = ((x.double() - mean) / C - exact["b_dec"]) @ exact["W_enc"].T + exact["b_enc"]
    f = torch.where(z > theta, z, 0)
    reconstruction = mean + C * (f @ exact["W_dec"] + exact["b_dec"])

    sure = ((z - theta).abs() > 1e-4).all(1)
    assert sure.double().mean() > 0.5
    assert 0.02 < (f > 0).double().mean() < 0.98

    def relative_error(got: Tensor, expected: Tensor) -> float:
        return float((got.double() - expected)[sure].norm() / expected[sure].norm())

    latents = folded.encode(x)
    assert torch.equal((latents > 0)[sure], (f > 0)[sure])
    assert relative_error(latents, C * f) <= 1e-5
    assert relative_error(folded.decode(latents), reconstruction) <= 1e-5


def test_folding_a_plain_scale_is_gemma_scopes_appendix():
    """b_enc' = C b_enc - C W_enc b_dec, b_dec' = C b_dec, theta' = C theta; the matrices stay."""
    training, C = trained_looking(8, 24, log_threshold=True), 7.5
    folded = training.fold(Normaliser(torch.zeros(8), C))
    torch.testing.assert_close(folded.b_enc, C * training.b_enc.detach() - C * training.b_dec.detach() @ training.W_enc.T.detach())
    torch.testing.assert_close(folded.b_dec, C * training.b_dec.detach())
    torch.testing.assert_close(folded.threshold, C * training.threshold.detach())
    assert torch.equal(folded.W_enc, training.W_enc.T)
    assert torch.equal(folded.W_dec, training.W_dec)


def test_a_folded_dictionary_shares_no_memory_with_training():
    training = trained_looking(8, 24, log_threshold=False)
    folded = training.fold(Normaliser(torch.zeros(8), 1.0))
    before = {name: tensor.clone() for name, tensor in folded.tensors().items()}
    with torch.no_grad():
        for parameter in training.parameters():
            parameter.add_(1)
    assert all(torch.equal(before[name], tensor) for name, tensor in folded.tensors().items())


def test_decoder_rows_have_unit_norm_and_thresholds_are_positive_after_constraints_are_restored():
    dictionary = trained_looking(8, 24, log_threshold=False)
    with torch.no_grad():
        dictionary.W_dec.mul_(torch.linspace(0.01, 100, 24)[:, None])
        dictionary.threshold_parameter[3] = -0.2
        directions = dictionary.W_dec / dictionary.W_dec.norm(dim=1, keepdim=True)
    dictionary.restore_constraints()
    torch.testing.assert_close(dictionary.W_dec.norm(dim=1), torch.ones(24))
    torch.testing.assert_close(dictionary.W_dec.detach(), directions)
    assert (dictionary.threshold > 0).all()


def test_the_projected_decoder_gradient_is_orthogonal_to_the_rows_and_keeps_the_rest():
    dictionary = trained_looking(8, 24, log_threshold=False)
    gradient = torch.randn(24, 8, generator=torch.Generator().manual_seed(7))
    projected = gradient.clone()
    project_rows(projected, dictionary.W_dec)
    rows = dictionary.W_dec.detach()
    torch.testing.assert_close((projected * rows).sum(1), torch.zeros(24), rtol=0, atol=1e-6)
    # What was taken out lies along the row: the projector I - d d^T of each row, written out.
    for got, g, d in zip(projected, gradient, rows, strict=True):
        torch.testing.assert_close(got, (torch.eye(8) - torch.outer(d, d)) @ g, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("log_threshold", [True, False])
def test_a_dictionary_that_begins_from_a_trained_one_folds_to_the_same_function(log_threshold: bool) -> None:
    torch.manual_seed(0)
    trained = Dictionary(torch.randn(12, 40), torch.randn(40), torch.randn(40, 12), torch.randn(12) * 5, torch.rand(40) + 0.1)
    normaliser = Normaliser(torch.randn(12) * 3, 7.5)
    begun = JumpReLUDictionary(12, 40, seed=1, threshold_init=0.1, log_threshold=log_threshold, start_share=0.2)
    begun.begin_from(trained, normaliser)
    assert torch.allclose(begun.W_dec.norm(dim=1), torch.ones(40), atol=1e-6)
    begun.start(torch.randn(64, 12))
    folded, x = begun.fold(normaliser), torch.randn(500, 12) * 4
    assert torch.equal(folded.encode(x) > 0, trained.encode(x) > 0)
    assert torch.allclose(folded.reconstruct(x), trained.reconstruct(x), rtol=1e-4, atol=1e-3)
