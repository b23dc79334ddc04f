"""The objective, against direct transcription and against plain autograd on surrogate expressions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from core.jumprelu import JumpReLUDictionary
from core.objective import (
    linear_penalty,
    loss,
    sparsity_penalty,
    squared_error,
    target_penalty_batch_mean,
    target_penalty_per_token,
)
from core.site import Site
from core.spec import DictionarySpec
from core.training import Training

L0 = [0.0, 3.0, 7.0, 12.0]


def spec_of(*, target_l0: float | None = None, l0_coefficient: float | None = None, width: int = 8) -> DictionarySpec:
    return DictionarySpec(Site(0, "resid_post"), "jumprelu", width, target_l0, l0_coefficient, 0, 10)


def test_squared_error_is_summed_over_dimensions_and_averaged_over_rows():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5, 3)), rng.normal(size=(5, 3))
    expected = sum(sum((a - b) ** 2 for a, b in zip(*rows, strict=True)) for rows in zip(x, y, strict=True)) / 5
    assert squared_error(torch.tensor(x), torch.tensor(y)).item() == pytest.approx(expected, rel=1e-12)


def test_the_linear_penalty_is_the_price_of_the_mean_l0():
    assert linear_penalty(torch.tensor(L0), 0.25).item() == pytest.approx(0.25 * (0 + 3 + 7 + 12) / 4)


def test_the_per_token_penalty_squares_each_tokens_distance_to_the_target():
    expected = sum(0.1 * (2 / 4) * (l0 - 4) ** 2 for l0 in L0) / 4
    assert target_penalty_per_token(torch.tensor(L0), 4.0, 0.1).item() == pytest.approx(expected)


def test_the_batch_mean_penalty_squares_the_distance_of_the_mean():
    expected = 0.1 * (2 / 4) * (sum(L0) / 4 - 4) ** 2
    assert target_penalty_batch_mean(torch.tensor(L0), 4.0, 0.1).item() == pytest.approx(expected)


def test_per_token_and_batch_mean_differ_by_the_spread_of_l0_between_tokens():
    """E(l - t)^2 = (E l - t)^2 + Var l: tokens on both sides of the target cost nothing only in the mean."""
    uneven = torch.tensor([0.0, 8.0])
    assert target_penalty_batch_mean(uneven, 4.0, 0.1).item() == 0
    assert target_penalty_per_token(uneven, 4.0, 0.1).item() == pytest.approx(0.1 * 2 / 4 * 16)
    spread = np.var(L0)
    gap = target_penalty_per_token(torch.tensor(L0), 4.0, 0.1) - target_penalty_batch_mean(torch.tensor(L0), 4.0, 0.1)
    assert gap.item() == pytest.approx(0.1 * 2 / 4 * spread)


def test_the_slope_of_the_target_penalty_at_twice_the_target_is_four_lambda():
    """GS2, Eq. 5: 4 lambda (L0 - L0*) / L0*."""
    for penalty in (target_penalty_per_token, target_penalty_batch_mean):
        l0 = torch.tensor([8.0], requires_grad=True)
        penalty(l0, 4.0, 0.1).backward()
        assert l0.grad.item() == pytest.approx(4 * 0.1)


def test_the_penalty_is_the_one_that_dictionary_and_training_name():
    l0 = torch.tensor(L0)
    per_token = Training(recipe="gemma-scope", tokens=10, batch_rows=10, target_l0_coefficient=0.1)
    batch_mean = Training(recipe="gemma-scope", tokens=10, batch_rows=10, target_l0_coefficient=0.1, target_l0_objective="batch-mean")
    assert sparsity_penalty(l0, 0.0, spec_of(l0_coefficient=0.25), per_token) == linear_penalty(l0, 0.25)
    assert sparsity_penalty(l0, 0.0, spec_of(target_l0=4.0), per_token) == target_penalty_per_token(l0, 4.0, 0.1)
    assert sparsity_penalty(l0, 0.0, spec_of(target_l0=4.0), batch_mean) == target_penalty_batch_mean(l0, 4.0, 0.1)


# The whole step against plain autograd


def surrogate_loss(p: dict[str, Tensor], x: Tensor, *, log_threshold: bool, bandwidth: float, price: float, target: float | None, objective: str):
    """The loss in ordinary autograd: masks are constants, and theta enters through terms whose value is zero.

    Returns the loss and the mask of active latents.
    """
    theta = torch.exp(p["threshold_parameter"]) if log_threshold else p["threshold_parameter"]
    z = (x - p["b_dec"]) @ p["W_enc"].T + p["b_enc"]
    with torch.no_grad():
        mask = torch.heaviside(z - theta, torch.zeros((), dtype=z.dtype))
        u = (z - theta) / bandwidth
        kernel = ((u > -0.5) & (u < 0.5)).to(z.dtype)
        slope_of_jumprelu, slope_of_step = -theta / bandwidth * kernel, -kernel / bandwidth
    nothing = theta - theta.detach()
    f = z * mask + nothing * slope_of_jumprelu
    l0 = (mask + nothing * slope_of_step).sum(1)
    error = ((x - (f @ p["W_dec"] + p["b_dec"])) ** 2).sum() / len(x)
    if target is None:
        penalty = price * l0.sum() / len(x)
    elif objective == "per-token":
        penalty = sum(price * (2 / target) * (l - target) ** 2 for l in l0) / len(x)
    else:
        penalty = price * (2 / target) * (sum(l0) / len(x) - target) ** 2
    return error, penalty, mask


@given(
    shape=st.tuples(st.integers(1, 7), st.integers(1, 6), st.integers(1, 9)),
    seed=st.integers(0, 10_000),
    log_threshold=st.booleans(),
    bandwidth=st.sampled_from([0.001, 0.05, 0.5, 3.0]),
    penalty=st.sampled_from(["linear", "per-token", "batch-mean"]),
    warmth=st.sampled_from([0.0, 0.3, 1.0]),
    rows=st.sampled_from(["mixed", "silent", "full", "some of each"]),
)
def test_a_training_step_has_the_loss_and_the_five_gradients_of_plain_autograd(shape, seed, log_threshold, bandwidth, penalty, warmth, rows):
    B, D, L = shape
    generator = torch.Generator().manual_seed(seed)
    dictionary = JumpReLUDictionary(D, L, seed=seed, threshold_init=0.3, log_threshold=log_threshold).double()
    with torch.no_grad():
        for name, parameter in dictionary.named_parameters():
            if name != "W_dec":
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        dictionary.W_enc[:, 0] = dictionary.W_enc[:, 0].abs() + 0.5  # so that dimension 0 can switch all latents on or off
    x = torch.randn(B, D, generator=generator, dtype=torch.float64)
    which = torch.arange(B) % 3
    silent, full = {
        "mixed": (which < 0, which < 0),
        "silent": (which >= 0, which < 0),
        "full": (which < 0, which >= 0),
        "some of each": (which == 0, which == 1),
    }[rows]
    x[silent, 0] = -100
    x[full, 0] = 100

    price, target, objective = 0.2, (None if penalty == "linear" else 2.5), ("per-token" if penalty == "linear" else penalty)
    training = Training(
        recipe="gemma-scope", tokens=10, batch_rows=10, bandwidth=bandwidth, target_l0_coefficient=price, target_l0_objective=objective
    )
    spec = spec_of(target_l0=target, l0_coefficient=price if target is None else None, width=L)
    total, error, f = loss(dictionary, x, spec, training, warmth)
    active = f > 0
    total.backward()

    p = {name: parameter.detach().clone().requires_grad_() for name, parameter in dictionary.named_parameters()}
    expected_error, expected_penalty, mask = surrogate_loss(
        p, x, log_threshold=log_threshold, bandwidth=bandwidth, price=price, target=target, objective=objective
    )
    expected = expected_error + warmth * expected_penalty
    expected.backward()

    assert torch.equal(active, mask > 0)
    assert not active[silent].any()
    assert active[full].all()
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert error.item() == pytest.approx(expected_error.item(), rel=1e-6)
    assert not error.requires_grad
    assert set(p) == {"W_enc", "b_enc", "W_dec", "b_dec", "threshold_parameter"}
    for name, parameter in dictionary.named_parameters():
        scale = max(p[name].grad.norm().item(), 1e-12)
        assert (parameter.grad - p[name].grad).norm().item() <= 1e-5 * scale, name


def test_the_penalty_moves_thresholds_alone():
    dictionary = JumpReLUDictionary(4, 8, seed=0, threshold_init=0.3, log_threshold=False)
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    training = Training(recipe="gemma-scope", tokens=10, batch_rows=10, bandwidth=0.5)
    gradients = []
    for warmth in (0.0, 1.0):
        dictionary.zero_grad()
        loss(dictionary, x, spec_of(l0_coefficient=0.5), training, warmth)[0].backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in dictionary.named_parameters()})
    without, with_penalty = gradients
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        assert torch.equal(without[name], with_penalty[name]), name
    assert not torch.equal(without["threshold_parameter"], with_penalty["threshold_parameter"])
