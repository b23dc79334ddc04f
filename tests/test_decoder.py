"""What a decoder direction tells, against whole products of small matrices."""

import pytest
import torch
from test_anatomy import CONFIGS, random_model

import core.decoder
from core.anatomy import Anatomy
from core.decoder import nearest, token_effects
from core.site import Site

L, K = 30, 4


@pytest.fixture(autouse=True)
def in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core.decoder, "COLUMNS_AT_ONCE", 7)


def directions(dimensions: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(L, dimensions, generator=torch.Generator().manual_seed(0)))


def test_the_nearest_latents_are_those_of_the_highest_cosine_without_the_latent_itself() -> None:
    W_dec = directions(12)
    cosines = W_dec @ W_dec.T
    cosines.fill_diagonal_(-9)
    found = nearest(W_dec, slice(5, 25), K)
    expected = cosines[5:25].topk(K)
    torch.testing.assert_close(found.values_LK, expected.values)
    assert torch.equal(found.numbers_LK, expected.indices)
    assert nearest(W_dec[:3], slice(0, 3), K).numbers_LK.shape == (3, 2)


@pytest.mark.parametrize("family", CONFIGS)
def test_the_tokens_are_those_that_the_model_itself_prefers_when_the_direction_is_all_that_its_last_block_gives(family: str) -> None:
    model = random_model(CONFIGS[family]())
    anatomy = Anatomy(model)
    last = Site(len(anatomy.blocks) - 1, "resid_post")
    W_dec = directions(anatomy.shape.d_model)
    with torch.inference_mode(), anatomy.splice(last, lambda x: W_dec[: x.shape[1]].expand_as(x)):
        logits = model(torch.zeros(1, L, dtype=torch.int64), use_cache=False).logits[0]
    raised, lowered = token_effects(anatomy, last, W_dec, K)
    assert torch.equal(raised.numbers_LK, logits.topk(K).indices)
    assert torch.equal(lowered.numbers_LK, (-logits).topk(K).indices)
    if not getattr(model.config, "final_logit_softcapping", None):
        normal = (logits - logits.mean(1, keepdim=True)) / logits.std(1, correction=0, keepdim=True)
        torch.testing.assert_close(raised.values_LK, normal.topk(K).values, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(lowered.values_LK, (-normal).topk(K).values, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("family", CONFIGS)
def test_before_the_output_projection_a_direction_goes_through_it(family: str) -> None:
    anatomy = Anatomy(random_model(CONFIGS[family]()))
    site, W_dec = Site(1, "attn_z"), directions(anatomy.shape.d_attn)
    weight = anatomy.place(site).module.weight
    if family == "gpt2":  # whose weight lies the other way round
        weight = weight.T
    through = token_effects(anatomy, Site(1, "resid_post"), W_dec @ weight.T, K)
    for mine, theirs in zip(token_effects(anatomy, site, W_dec, K), through, strict=True):
        assert torch.equal(mine.numbers_LK, theirs.numbers_LK)
