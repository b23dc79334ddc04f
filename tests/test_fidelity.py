"""Fidelity of rows, against NumPy and closed forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from core.dictionary import Dictionary
from core.fidelity import FREQUENCY_EDGES, InBfloat16, RowFidelity, row_fidelity

D, L, NUM_ROWS = 6, 20, 120


def random_dictionary() -> Dictionary:
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.nn.functional.normalize(torch.randn(L, D, generator=generator))
    threshold = torch.rand(L, generator=generator)
    threshold[:4] = 1e3  # never fire
    return Dictionary(W_enc=W_dec.T.contiguous(), b_enc=torch.zeros(L), W_dec=W_dec, b_dec=torch.full((D,), 0.1), threshold=threshold)


def random_rows() -> Tensor:
    return 2 + torch.randn(NUM_ROWS, D, generator=torch.Generator().manual_seed(1))


@given(cuts=st.lists(st.integers(1, NUM_ROWS - 1), max_size=8, unique=True), half=st.booleans())
def test_rows_score_as_numpy_scores_them_in_any_batching(cuts, half):
    dictionary, x = random_dictionary(), random_rows()
    x = x.bfloat16() if half else x
    scored = row_fidelity(dictionary, x.tensor_split(sorted(cuts)), x.double().numpy().mean(0))

    rows = x.double().numpy()
    W_enc, b_enc, W_dec, b_dec, threshold = (tensor.double().numpy() for tensor in dictionary.tensors().values())
    z = rows @ W_enc + b_enc
    f = np.where(z > threshold, z, 0)
    out = f @ W_dec + b_dec
    error = ((out - rows) ** 2).sum()
    norms, norms_out = np.linalg.norm(rows, axis=1), np.linalg.norm(out, axis=1)
    assert scored.rows == NUM_ROWS
    assert scored.l0 == pytest.approx((f > 0).sum(1).mean(), rel=1e-12)
    assert scored.fvu == pytest.approx(error / ((rows - rows.mean(0)) ** 2).sum(), rel=1e-5)
    assert scored.cosine == pytest.approx(((rows * out).sum(1) / norms / norms_out).mean(), rel=1e-5)
    assert scored.relative_norm == pytest.approx((norms_out / norms).mean(), rel=1e-5)
    assert scored.relative_bias == pytest.approx((norms_out**2).mean() / (rows * out).sum(1).mean(), rel=1e-5)
    np.testing.assert_allclose(scored.frequencies_L.numpy(), (f > 0).mean(0), rtol=1e-12)
    assert scored.dense(0.5) == pytest.approx(((f > 0).mean(0) > 0.5).mean())
    assert scored.dead == pytest.approx((~(f > 0).any(0)).mean())
    assert scored.dead >= 4 / L


def test_a_perfect_dictionary_leaves_no_variance_unexplained():
    """x = relu(x) - relu(-x), with thresholds too small to lose any of it."""
    eye, W_dec = torch.eye(D), torch.cat([torch.eye(D), -torch.eye(D)])
    dictionary = Dictionary(
        W_enc=torch.cat([eye, -eye], 1), b_enc=torch.zeros(2 * D), W_dec=W_dec, b_dec=torch.zeros(D), threshold=torch.full((2 * D,), 1e-9)
    )
    scored = row_fidelity(dictionary, random_rows().split(50), np.zeros(D))
    assert scored.fvu < 1e-12
    assert scored.l0 == D
    assert (scored.cosine, scored.relative_norm, scored.relative_bias) == pytest.approx((1, 1, 1))
    half = Dictionary(**dictionary.tensors() | {"W_dec": W_dec / 2})
    shrunk = row_fidelity(half, random_rows().split(50), np.zeros(D))
    assert (shrunk.cosine, shrunk.relative_norm, shrunk.relative_bias) == pytest.approx((1, 0.5, 0.5))


def test_predicting_the_mean_leaves_all_variance_unexplained():
    x = random_rows()
    silent = Dictionary(
        W_enc=torch.zeros(D, L), b_enc=torch.zeros(L), W_dec=random_dictionary().W_dec, b_dec=x.double().mean(0).float(), threshold=torch.ones(L)
    )
    scored = row_fidelity(silent, x.split(32), x.double().numpy().mean(0))
    assert scored.fvu == pytest.approx(1, rel=1e-6)
    assert scored.l0 == 0
    assert scored.dead == 1


def test_the_histogram_counts_latents_that_fired_by_the_power_of_ten_of_their_frequency():
    frequencies = torch.tensor([0, 0, 1e-7, 2e-5, 5e-5, 2e-3, 0.2, 0.2, 0.5, 1.0], dtype=torch.float64)
    nothing = np.zeros(0, np.float32)
    histogram = RowFidelity(nothing, nothing, nothing, nothing, nothing, nothing, frequencies_L=frequencies).frequency_histogram()
    expected = [0] * (len(FREQUENCY_EDGES) - 1)
    for frequency in frequencies.tolist():
        if frequency > 0:
            bin_of = math.floor((math.log10(frequency) + 5) / 0.5)
            expected[min(max(bin_of, 0), len(expected) - 1)] += 1
    assert histogram == expected
    assert sum(histogram) == 8
    assert histogram[0] == 2
    assert histogram[-1] == 2


def test_in_bfloat16_a_dictionary_computes_as_torch_does_in_bfloat16():
    dictionary = random_dictionary()
    x = random_rows()
    half = Dictionary(**{name: tensor.bfloat16() for name, tensor in dictionary.tensors().items()})
    f = half.encode(x.bfloat16())
    in_bfloat16 = InBfloat16.of(dictionary)
    torch.testing.assert_close(in_bfloat16.encode(x), f.float(), rtol=2**-8, atol=0)
    torch.testing.assert_close(in_bfloat16.decode(f.float()), half.decode(f).float(), rtol=2**-8, atol=1e-3)
    assert not torch.equal(in_bfloat16.encode(x), dictionary.encode(x))
