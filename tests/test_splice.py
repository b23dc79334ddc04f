"""Splices against the model's own forward pass with a hook, in all families: the blocks below a site run once, and nothing else differs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from test_anatomy import ALL_SITES, CONFIGS, WIDE, random_model
from torch import Tensor

from core.anatomy import Anatomy
from core.site import Site
from core.splice import predicted, spliced_predictions

TOKENS = torch.arange(48).reshape(4, 12) * 7 % 64
IS_TEXT = torch.ones(4, 12, dtype=torch.bool)
IS_TEXT[:, 0] = False
IS_TEXT[2, 5:8] = False
REPLACEMENTS: dict[str, Callable[[Tensor], Tensor]] = {"zero": torch.zeros_like, "others": lambda x: 9 * x.flip(0), "same": lambda x: x}


def by_the_model_itself(anatomy: Anatomy, site: Site, replace: Callable[[Tensor], Tensor] | None) -> Tensor:
    """log p, S x C x V, of a whole forward pass."""

    def hook(x: Tensor) -> Tensor:
        changed = x.clone()
        changed[IS_TEXT] = replace(x[IS_TEXT]) if replace else x[IS_TEXT]
        return changed

    with torch.inference_mode(), anatomy.splice(site, hook):
        model: Any = anatomy.model
        return torch.log_softmax(model(TOKENS, use_cache=False).logits.double(), -1)


SCALED = {
    "granite": lambda: transformers.GraniteConfig(**WIDE, logits_scaling=8.0),
    "cohere": lambda: transformers.CohereConfig(**WIDE, logit_scale=0.25),
}


@pytest.mark.parametrize("family", [*CONFIGS, *SCALED])
def test_predictions_are_those_of_whole_forward_passes(family: str) -> None:
    anatomy = Anatomy(random_model((CONFIGS | SCALED)[family]()))
    counts = IS_TEXT[:, 1:]
    for site in ALL_SITES:
        intact, spliced = spliced_predictions(anatomy, site, REPLACEMENTS, TOKENS, IS_TEXT, tile=(7, 13))
        log_p = by_the_model_itself(anatomy, site, None)[:, :-1][counts]
        torch.testing.assert_close(intact.loss_P.double(), -log_p.gather(1, TOKENS[:, 1:][counts][:, None])[:, 0], atol=1e-5, rtol=1e-5)
        assert not intact.divergence_P.any()
        for name, replace in REPLACEMENTS.items():
            log_q = by_the_model_itself(anatomy, site, replace)[:, :-1][counts]
            torch.testing.assert_close(spliced[name].loss_P.double(), -log_q.gather(1, TOKENS[:, 1:][counts][:, None])[:, 0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(spliced[name].divergence_P.double(), (log_p.exp() * (log_p - log_q)).sum(1), atol=2e-6, rtol=1e-3)
        assert torch.equal(spliced["same"].loss_P, intact.loss_P)
        assert spliced["others"].divergence_P.max() > 1e-4, "far above what is taken for equal"


@pytest.mark.parametrize("tile", [None, (5, 9)])
def test_to_the_bit_it_makes_no_difference_which_others_are_beside_a_replacement(tile: tuple[int, int] | None) -> None:
    """Or what a suite leaves would depend on where its last run was killed."""
    anatomy, site = Anatomy(random_model(CONFIGS["gemma3"]())), Site(1, "mlp_out")
    _, together = spliced_predictions(anatomy, site, REPLACEMENTS, TOKENS, IS_TEXT, tile)
    for name, replace in REPLACEMENTS.items():
        _, alone = spliced_predictions(anatomy, site, {name: replace}, TOKENS, IS_TEXT, tile)
        assert torch.equal(alone[name].loss_P, together[name].loss_P)
        assert torch.equal(alone[name].divergence_P, together[name].divergence_P)


def runs_of_blocks(site: Site) -> list[int]:
    """How often each block runs for the three replacements of a site."""
    anatomy, runs = Anatomy(random_model(CONFIGS["gemma3"]())), [0, 0, 0]
    for layer, block in enumerate(anatomy.blocks):
        block.register_forward_hook(lambda *_, layer=layer: runs.__setitem__(layer, runs[layer] + 1))
    spliced_predictions(anatomy, site, REPLACEMENTS, TOKENS, IS_TEXT)
    return runs


def test_blocks_below_a_site_run_once_and_those_from_it_on_once_more_for_each_replacement() -> None:
    assert runs_of_blocks(Site(1, "mlp_out")) == [1, 4, 4]


def test_of_a_gpt2_with_a_bias_on_its_logits_too() -> None:
    """And with logits so far apart that a sum which is not taken relative to the highest would be infinite, or nothing."""
    anatomy = Anatomy(random_model(CONFIGS["gpt2"]()))
    head = anatomy.unembedding
    head.weight = torch.nn.Parameter(head.weight * 300)
    head.bias = torch.nn.Parameter(torch.linspace(-400, 400, len(head.weight)))
    site, counts = Site(1, "resid_post"), IS_TEXT[:, 1:]
    intact, spliced = spliced_predictions(anatomy, site, REPLACEMENTS, TOKENS, IS_TEXT, tile=(5, 9))
    log_p = by_the_model_itself(anatomy, site, None)[:, :-1][counts]
    torch.testing.assert_close(intact.loss_P.double(), -log_p.gather(1, TOKENS[:, 1:][counts][:, None])[:, 0], atol=1e-3, rtol=1e-5)
    for name, replace in REPLACEMENTS.items():
        log_q = by_the_model_itself(anatomy, site, replace)[:, :-1][counts]
        expected = torch.where(log_p > -1e4, log_p.exp() * (log_p - log_q), 0).sum(1)
        torch.testing.assert_close(spliced[name].divergence_P.double(), expected, atol=1e-2, rtol=1e-4)


def test_of_a_large_vocabulary_the_smallest_terms_are_not_lost() -> None:
    """Summed in one go in float32 they are: a softmax over Gemma's 262,144 tokens is then off by 1e-5 and more, always to the same side."""
    config = CONFIGS["llama"]()
    config.vocab_size = 262_144
    anatomy = Anatomy(random_model(config))
    tokens, is_text = TOKENS[:2], torch.ones(2, 12, dtype=torch.bool)
    intact, _ = spliced_predictions(anatomy, Site(0, "mlp_out"), {}, tokens, is_text)
    with torch.inference_mode():
        hidden = anatomy.trunk(tokens, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
        logits = anatomy.unembedding(hidden).double()
    exact = torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten(), reduction="none")
    assert float((intact.loss_P.double() - exact).abs().max()) < 4e-6


def test_not_even_the_block_of_a_residual_site_runs_again() -> None:
    assert runs_of_blocks(Site(1, "resid_post")) == [1, 1, 4]


def test_the_replacement_sees_the_rows_of_text_in_float32_and_gives_them_back_in_the_models_type() -> None:
    anatomy, seen = Anatomy(random_model(CONFIGS["gemma2"]()).bfloat16()), []

    def look(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return x

    captured: dict[Site, Tensor] = {}
    with torch.inference_mode(), anatomy.capture([Site(1, "attn_z")], captured.__setitem__):
        anatomy.trunk(TOKENS, use_cache=False)
    intact, spliced = spliced_predictions(anatomy, Site(1, "attn_z"), {"look": look}, TOKENS, IS_TEXT)
    (rows,) = seen
    assert rows.dtype == torch.float32
    assert torch.equal(rows, captured[Site(1, "attn_z")][IS_TEXT].float())
    assert torch.equal(spliced["look"].loss_P, intact.loss_P)


def test_special_tokens_keep_their_activations() -> None:
    """With the last block's output deleted at text tokens, these predict what the final norm makes of zeros; special tokens predict as before."""
    anatomy = Anatomy(random_model(CONFIGS["gemma3"]()))
    last = Site(len(anatomy.blocks) - 1, "resid_post")
    intact, spliced = spliced_predictions(anatomy, last, {"zero": torch.zeros_like}, TOKENS, IS_TEXT)
    sequence, position = predicted(IS_TEXT).T
    by_text = IS_TEXT[sequence, position]
    with torch.inference_mode():
        of_zeros = anatomy.unembedding(anatomy.final_norm(torch.zeros(1, anatomy.shape.d_model))).log_softmax(-1)[0]
    torch.testing.assert_close(spliced["zero"].loss_P[by_text], -of_zeros[TOKENS[sequence, position + 1]][by_text])
    torch.testing.assert_close(spliced["zero"].loss_P[~by_text], intact.loss_P[~by_text])
    assert 0 < int((~by_text).sum()) < len(by_text)


def test_a_model_is_whole_again_after_a_replacement_that_failed() -> None:
    anatomy = Anatomy(random_model(CONFIGS["llama"]()))
    blocks = list(anatomy.blocks)

    def fails(x: Tensor) -> Tensor:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        spliced_predictions(anatomy, Site(2, "resid_post"), {"fails": fails}, TOKENS, IS_TEXT)
    assert list(anatomy.blocks) == blocks


def test_text_without_a_prediction_that_counts_gives_none() -> None:
    anatomy = Anatomy(random_model(CONFIGS["gpt2"]()))
    intact, spliced = spliced_predictions(anatomy, Site(1, "attn_z"), REPLACEMENTS, TOKENS, torch.zeros_like(IS_TEXT))
    assert len(intact.loss_P) == len(spliced["zero"].divergence_P) == 0
