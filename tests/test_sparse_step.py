"""The sparse training step against the dense one by autograd, over shapes, sparsities, ties, silent and full rows, and both products."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numba.core.errors import TypingError
from torch import Tensor

from core import kernels, sparse_step
from core.adam import Adam
from core.dense_step import DenseStep
from core.jumprelu import JumpReLUDictionary
from core.site import Site
from core.sparse_step import SparseStep
from core.spec import DictionarySpec
from core.training import Training

EPSILON = 1e6
"""Beside an epsilon this large Adam is gradient descent, w - (rate / epsilon) g: what a step moves tells the gradient itself."""


def training_of(**fields: object) -> Training:
    return Training(**({"recipe": "gemma-scope", "tokens": 10_000, "batch_rows": 10, "threshold_parameter": "linear"} | fields))


def spec_of(width: int, target_l0: float | None = None) -> DictionarySpec:
    return DictionarySpec(Site(0, "resid_post"), "jumprelu", width, target_l0, None if target_l0 else 0.2, 0, 10_000)


def dictionary_of(dimensions: int, width: int, seed: int, *, theta: float, log_threshold: bool = False) -> JumpReLUDictionary:
    """One that looks trained: all its parameters are off their first values."""
    generator = torch.Generator().manual_seed(seed)
    dictionary = JumpReLUDictionary(dimensions, width, seed=seed, threshold_init=theta, log_threshold=log_threshold)
    with torch.no_grad():
        for name, spread in (("W_enc", 0.1), ("b_enc", 0.05), ("b_dec", 0.05), ("threshold_parameter", 0.02)):
            parameter = getattr(dictionary, name)
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    dictionary.restore_constraints()
    return dictionary


def step_of(kind: type, dictionary: JumpReLUDictionary, spec: DictionarySpec, training: Training) -> SparseStep | DenseStep:
    parameters = {name: p.detach() for name, p in dictionary.named_parameters()}
    return kind(dictionary, Adam(parameters, training.adam_beta1, training.adam_beta2, training.adam_epsilon), spec, training)


def twin(dictionary: JumpReLUDictionary) -> JumpReLUDictionary:
    other = JumpReLUDictionary(*reversed(dictionary.W_dec.shape), seed=0, threshold_init=1.0, log_threshold=dictionary.log_threshold)
    other.load_state_dict(dictionary.state_dict())
    return other


def relative(value: Tensor, reference: Tensor) -> float:
    return float((value - reference).norm() / max(float(reference.norm()), 1e-6))


def dictionary_and_rows(shape: tuple[int, int, int], seed: int, rows: str, *, theta: float, log_threshold: bool) -> tuple[JumpReLUDictionary, Tensor]:
    """A dictionary, and B x D normalised rows of which some, by what `rows` says, switch none or all of its latents on."""
    B, D, L = shape
    dictionary = dictionary_of(D, L, seed, theta=theta, log_threshold=log_threshold)
    with torch.no_grad():
        dictionary.W_enc[:, 0] = dictionary.W_enc[:, 0].abs() + 0.5  # so that dimension 0 can switch all latents on or off
    x = torch.randn(B, D, generator=torch.Generator().manual_seed(seed)) / math.sqrt(D)
    which = torch.arange(B) % 3
    x[(which == 0) & (rows in ("silent", "some of each")), 0] = -10
    x[(which == 1) & (rows in ("full", "some of each")), 0] = 10
    return dictionary, x


def assert_moved_alike(sparse: JumpReLUDictionary, dense: JumpReLUDictionary, before: dict[str, Tensor]) -> None:
    """A step moved every parameter of both by the same, 1e-4 of it and the rounding of the parameter aside."""
    for name, p in dense.named_parameters():
        moved, reference = sparse.state_dict()[name] - before[name], p.detach() - before[name]
        rounding = 3e-7 * float(before[name].norm())
        assert float((moved - reference).norm()) <= 1e-4 * float(reference.norm()) + rounding, name


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 24), st.sampled_from([1, 5, 63, 64, 65, 200, 257])),
    seed=st.integers(0, 10_000),
    theta=st.sampled_from([0.01, 0.3, 0.8, 2.0]),
    log_threshold=st.booleans(),
    bandwidth=st.sampled_from([0.001, 0.05, 0.7]),
    penalty=st.sampled_from(["linear", "per-token", "batch-mean"]),
    clip=st.sampled_from([None, 1e-3, 1e3]),
    rows=st.sampled_from(["mixed", "silent", "full", "some of each"]),
    dense_above=st.sampled_from([0.0, 0.05, 1.0]),
    product=st.sampled_from(["float32", "bfloat16"]),
)
def test_a_sparse_step_has_the_loss_and_the_gradients_of_the_dense_one(
    shape, seed, theta, log_threshold, bandwidth, penalty, clip, rows, dense_above, product
):
    dictionary, x = dictionary_and_rows(shape, seed, rows, theta=theta, log_threshold=log_threshold)
    L = shape[2]
    objective = {} if penalty == "linear" else {"target_l0_objective": penalty, "target_l0_coefficient": 0.2}
    training = training_of(bandwidth=bandwidth, gradient_clip=clip, adam_epsilon=EPSILON, encoder_product=product, **objective)
    spec = spec_of(L, None if penalty == "linear" else 2.5)
    before = {name: p.detach().clone() for name, p in dictionary.named_parameters()}
    dense, sparse = twin(dictionary), twin(dictionary)
    error, l0 = step_of(DenseStep, dense, spec, training)(x, 1e-2 * EPSILON, 0.7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse_step, "DENSE_ABOVE", dense_above)
        sparse_error, sparse_l0 = step_of(SparseStep, sparse, spec, training)(x, 1e-2 * EPSILON, 0.7)

    assert sparse_error == pytest.approx(error, rel=1e-5)
    assert sparse_l0 == pytest.approx(l0, rel=1e-6)
    assert_moved_alike(sparse, dense, before)


@pytest.mark.parametrize("product", ["float32", "bfloat16"])
@pytest.mark.parametrize("beta1", [0.0, 0.9])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_many_sparse_steps_lead_where_dense_ones_lead(product, beta1, clip):
    """Latents that wait for their turn are moved as if they had been there all the time. No z is near enough to a threshold for
    rounding to decide, so both see the same latents active in all steps: bandwidth and learning rate are chosen for it."""
    D, L, steps = 16, 96, 30
    dictionary = dictionary_of(D, L, 3, theta=0.6)
    training = training_of(bandwidth=0.05, gradient_clip=clip, adam_beta1=beta1, adam_beta2=0.9, encoder_product=product, adam_epsilon=1e-3)
    spec = spec_of(L, 3.0)
    dense, sparse = twin(dictionary), twin(dictionary)
    reference, step = step_of(DenseStep, dense, spec, training), step_of(SparseStep, sparse, spec, training)
    generator = torch.Generator().manual_seed(1)
    for t in range(steps):
        x = torch.randn(12, D, generator=generator) / math.sqrt(D)
        (error, l0), (expected, expected_l0) = step(x, 1e-3, 1.0), reference(x, 1e-3, 1.0)
        assert error == pytest.approx(expected, rel=1e-4), f"step {t}"
        assert l0 == pytest.approx(expected_l0, rel=1e-6), f"step {t}"
    assert int((step.adam.last_L < steps).sum()) > 0 or beta1, "the premise: some latents waited"
    for name, p in dense.named_parameters():
        assert relative(sparse.state_dict()[name], p.detach()) < 1e-4, name


def test_a_value_at_its_threshold_is_not_active_and_is_within_the_window():
    """Ties, with numbers that binary fractions hold exactly: z = theta = 0.5, and z = theta +- epsilon / 2."""
    eye = torch.eye(3)
    dictionary = JumpReLUDictionary(3, 3, seed=0, threshold_init=0.5, log_threshold=False)
    with torch.no_grad():
        dictionary.W_enc.copy_(eye)
        dictionary.W_dec.copy_(eye)
    x = torch.tensor([[0.5, 0.75, 0.25]])
    training = training_of(bandwidth=0.5, adam_epsilon=EPSILON)
    results = []
    for kind in (DenseStep, SparseStep):
        other = twin(dictionary)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sparse_step, "DENSE_ABOVE", 1.0)
            _, l0 = step_of(kind, other, spec_of(3), training)(x, 0.1 * EPSILON, 1.0)
        assert l0 == 1, "0.75 alone is above 0.5"
        results.append(other.threshold.detach() - 0.5)
    # dL/df of latent 0 is 2 (0 - 0.5) = -1: its threshold's gradient is -(0.5 x -1 + 0.2) / 0.5 = 0.6; the others are at the window's open ends.
    torch.testing.assert_close(results[0], torch.tensor([-0.06, 0.0, 0.0]))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("outlier", [0.0, 30.0])
def test_a_bfloat16_product_finds_every_entry_that_a_float32_product_finds(outlier):
    """On rows whose norms differ, and with one dimension that outweighs all others, as in Gemma's residual stream."""
    D, L, B = 256, 4_096, 512
    generator = torch.Generator().manual_seed(0)
    dictionary = dictionary_of(D, L, 0, theta=0.25)
    x = torch.randn(B, D, generator=generator) / math.sqrt(D) * (torch.rand(B, 1, generator=generator) * 2)
    x[:, 7] += outlier / math.sqrt(D)
    found = {}
    for product in ("float32", "bfloat16"):
        training = training_of(encoder_product=product, bandwidth=0.01)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sparse_step, "DENSE_ABOVE", 1.0)
            step = step_of(SparseStep, twin(dictionary), spec_of(L), training)
            entries = step._entries(x - dictionary.b_dec.detach())
        row = np.repeat(np.arange(B), np.diff(entries.start_B))
        keep = entries.z_E > dictionary.threshold.detach().numpy()[entries.latent_E] - 0.005
        found[product] = {(int(b), int(l)): float(z) for b, l, z in zip(row[keep], entries.latent_E[keep], entries.z_E[keep], strict=True)}
    assert len(found["float32"]) > 5_000
    differ = found["float32"].keys() ^ found["bfloat16"].keys()
    assert len(differ) <= 2, "but for values that float32 itself rounds to either side"
    both = found["float32"].keys() & found["bfloat16"].keys()
    assert max(abs(found["float32"][at] - found["bfloat16"][at]) for at in both) < 1e-5


@given(bits=st.integers(0, 2**32 - 1))
def test_the_kernels_bfloat16_is_torchs(bits):
    value = np.uint32(bits).view(np.float32)
    if np.isfinite(value):
        expected = torch.tensor(value).bfloat16()
        assert kernels.bfloat16(value) == expected.view(torch.uint16).item()
        if expected.isfinite():
            assert kernels._float(expected.view(torch.uint16).item()) == expected.float().item()


@pytest.mark.parametrize("dimensions", [1, 63, 64, 65, 640, 1_000])
def test_products_and_weighted_sums_of_rows_of_any_length_are_those_of_float64(dimensions):
    chance = np.random.default_rng(dimensions)
    x, w = chance.standard_normal((2, dimensions), np.float32), chance.standard_normal((7, dimensions), np.float32)
    z, total = np.empty(14, np.float32), np.empty(dimensions, np.float32)
    kernels.exact_products(x, w, np.array([0, 7, 14]), np.tile(np.arange(7, dtype=np.int32), 2), z)
    np.testing.assert_allclose(z, (x.astype(float) @ w.T.astype(float)).ravel(), atol=1e-4)
    kernels.weighted_sum(z[:7].copy(), w, total)
    np.testing.assert_allclose(total, z[:7].astype(float) @ w.astype(float), rtol=1e-5, atol=1e-3)


def test_a_kernel_refuses_rows_that_are_not_contiguous():
    x, w = np.ones((2, 20), np.float32)[:, ::2], np.ones((3, 10), np.float32)
    with pytest.raises(TypingError, match="contiguous float32 rows"):
        kernels.exact_products(x, w, np.array([0, 1, 2]), np.zeros(2, np.int32), np.empty(2, np.float32))


@pytest.mark.parametrize("product", ["float32", "bfloat16"])
def test_the_number_of_threads_changes_no_bit(product):
    D, L = 32, 512
    ends = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            dictionary = dictionary_of(D, L, 3, theta=0.5)
            step = step_of(SparseStep, dictionary, spec_of(L, 3.0), training_of(bandwidth=0.1, encoder_product=product, gradient_clip=1.0))
            for t in range(5):
                step(torch.randn(64, D, generator=torch.Generator().manual_seed(t)) / math.sqrt(D), 1e-3, 1.0)
            ends.append({name: p.detach().clone() for name, p in dictionary.named_parameters()})
    finally:
        torch.set_num_threads(threads)
    for name, p in ends[0].items():
        assert torch.equal(p, ends[1][name]), name


TRAIN_A_LITTLE = """
import hashlib, math, torch
from test_sparse_step import SparseStep, dictionary_of, spec_of, step_of, training_of

dictionary = dictionary_of(32, 256, 3, theta=0.5)
step = step_of(SparseStep, dictionary, spec_of(256, 3.0), training_of(bandwidth=0.1, gradient_clip=1.0))
for t in range(6):
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(t)) / math.sqrt(32)
    if t == 3:
        x = 20 * dictionary.W_dec.detach()[:64]  # a dense batch among sparse ones
    step(x, 1e-2, 1.0)
print(hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in dictionary.parameters())).hexdigest())
"""


@pytest.mark.long
def test_kernels_that_were_just_compiled_give_the_bits_of_kernels_from_the_cache(tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parent)}
    prints = [
        subprocess.run([sys.executable, "-c", TRAIN_A_LITTLE], env=environment, capture_output=True, text=True, check=True).stdout for _ in range(2)
    ]
    assert any(tmp_path.rglob("kernels.step_sparse*.nbc")), "the premise: the second run found a cache"
    assert prints[0] == prints[1]
