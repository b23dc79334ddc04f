"""The control is as wide and as sparse as the dictionary beside which it stands, and nothing of it was learnt."""

import pytest
import torch

from core.dictionary import Dictionary
from core.random_directions import random_directions

B, D, L = 200, 12, 300


def trained(k: int | None = None) -> Dictionary:
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.nn.functional.normalize(torch.randn(L, D, generator=generator))
    return Dictionary(W_enc=W_dec.T.contiguous(), b_enc=torch.zeros(L), W_dec=W_dec, b_dec=torch.zeros(D), threshold=torch.full((L,), 1.5), k=k)


ROWS = 3 + torch.randn(B, D, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("k", [None, 9])
def test_it_is_as_sparse_on_the_rows_it_was_made_from(k: int | None) -> None:
    dictionary = trained(k)
    control = random_directions(dictionary, ROWS, seed=0)
    l0 = [float((each.encode(ROWS) > 0).sum(1).double().mean()) for each in (dictionary, control)]
    assert l0[1] == pytest.approx(l0[0], abs=2 / B)
    assert control.k is None


def test_its_latents_are_unit_directions_from_the_mean_with_one_threshold_of_a_seed_alone() -> None:
    control = random_directions(trained(), ROWS, seed=3)
    torch.testing.assert_close(control.W_dec.norm(dim=1), torch.ones(L))
    z_BL = (ROWS - ROWS.mean(0)) @ control.W_dec.T
    assert len(control.threshold.unique()) == 1
    torch.testing.assert_close(control.encode(ROWS), z_BL * (z_BL > control.threshold), atol=1e-4, rtol=1e-4)
    assert torch.equal(random_directions(trained(), ROWS, seed=3).W_dec, control.W_dec)
    assert not torch.allclose(random_directions(trained(), ROWS, seed=4).W_dec, control.W_dec)


@pytest.mark.parametrize("k", [None, 9])
def test_some_latents_are_encoded_as_if_with_all_others(k: int | None) -> None:
    dictionary = trained(k)
    torch.testing.assert_close(dictionary.encode_some(ROWS, slice(40, 90)), dictionary.encode(ROWS)[:, 40:90])
