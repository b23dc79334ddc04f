"""Fidelity: row scores against NumPy, language-model losses against the model's own logits, splices against closed forms."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

from core.anatomy import Anatomy
from core.dictionary import Dictionary
from core.fidelity import FREQUENCY_EDGES, RowFidelity, language_model_loss, row_fidelity, spliced_loss
from core.site import KINDS, Site

D, L, NUM_ROWS, VOCABULARY = 6, 20, 120, 50


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
    scored = row_fidelity(dictionary, x.tensor_split(sorted(cuts)))

    rows = x.double().numpy()
    W_enc, b_enc, W_dec, b_dec, threshold = (tensor.double().numpy() for tensor in dictionary.tensors().values())
    z = rows @ W_enc + b_enc
    f = np.where(z > threshold, z, 0)
    error = ((f @ W_dec + b_dec - rows) ** 2).sum()
    assert scored.rows == NUM_ROWS
    assert scored.l0 == pytest.approx((f > 0).sum(1).mean(), rel=1e-12)
    assert scored.fvu == pytest.approx(error / ((rows - rows.mean(0)) ** 2).sum(), rel=1e-5)
    np.testing.assert_allclose(scored.frequencies.numpy(), (f > 0).mean(0), rtol=1e-12)
    assert scored.dead == pytest.approx((~(f > 0).any(0)).mean())
    assert scored.dead >= 4 / L


def test_a_perfect_dictionary_leaves_no_variance_unexplained():
    """x = relu(x) - relu(-x), with thresholds too small to lose any of it."""
    eye, W_dec = torch.eye(D), torch.cat([torch.eye(D), -torch.eye(D)])
    dictionary = Dictionary(
        W_enc=torch.cat([eye, -eye], 1), b_enc=torch.zeros(2 * D), W_dec=W_dec, b_dec=torch.zeros(D), threshold=torch.full((2 * D,), 1e-9)
    )
    scored = row_fidelity(dictionary, random_rows().split(50))
    assert scored.fvu < 1e-12
    assert scored.l0 == D


def test_predicting_the_mean_leaves_all_variance_unexplained():
    x = random_rows()
    silent = Dictionary(
        W_enc=torch.zeros(D, L), b_enc=torch.zeros(L), W_dec=random_dictionary().W_dec, b_dec=x.double().mean(0).float(), threshold=torch.ones(L)
    )
    scored = row_fidelity(silent, x.split(32))
    assert scored.fvu == pytest.approx(1, rel=1e-6)
    assert scored.l0 == 0
    assert scored.dead == 1


def test_the_histogram_counts_latents_that_fired_by_the_power_of_ten_of_their_frequency():
    frequencies = torch.tensor([0, 0, 1e-7, 2e-5, 5e-5, 2e-3, 0.2, 0.2, 0.5, 1.0], dtype=torch.float64)
    histogram = RowFidelity(rows=1, l0=0, fvu=0, frequencies=frequencies).frequency_histogram()
    expected = [0] * (len(FREQUENCY_EDGES) - 1)
    for frequency in frequencies.tolist():
        if frequency > 0:
            bin_of = math.floor((math.log10(frequency) + 5) / 0.5)
            expected[min(max(bin_of, 0), len(expected) - 1)] += 1
    assert histogram == expected
    assert sum(histogram) == 8
    assert histogram[0] == 2
    assert histogram[-1] == 2


# Language-model losses


def gpt2() -> Any:
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=32, n_embd=16, n_layer=2, n_head=2, attn_implementation="eager"))


def gemma2() -> Any:
    config = Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=4,
        final_logit_softcapping=2.0,
        attn_implementation="eager",
    )
    return Gemma2ForCausalLM(config)


@pytest.fixture(params=[gpt2, gemma2], ids=["gpt2", "gemma2"], scope="module")
def anatomy(request):
    torch.manual_seed(0)
    model = request.param().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))  # so that losses differ from log V, and the softcap bites
    return Anatomy(model)


TOKENS = torch.randint(3, VOCABULARY, (3, 12), generator=torch.Generator().manual_seed(2))
TOKENS[:, 0] = 0
TOKENS[1, 5] = TOKENS[2, 3] = TOKENS[2, 4] = 0
IS_TEXT = TOKENS != 0


@torch.no_grad()
def losses_by_hand(model: Any, tokens: Tensor) -> list[list[float]]:
    """-log p(token at t | tokens before t) for t from 1, from the logits that the model itself gives."""
    log_p = model(tokens).logits.double().log_softmax(-1)
    return [[-log_p[s, t - 1, tokens[s, t]].item() for t in range(1, tokens.shape[1])] for s in range(len(tokens))]


def mean_where(losses: list[list[float]], counts: Tensor) -> list[float]:
    kept = [[loss for loss, count in zip(row, counts_row[1:].tolist(), strict=True) if count] for row, counts_row in zip(losses, counts, strict=True)]
    return [sum(row) / len(row) for row in kept]


@pytest.mark.parametrize("logits_at_once", [1, 4, 256])
def test_the_loss_is_the_cross_entropy_of_the_models_own_logits_at_the_tokens_that_count(anatomy, logits_at_once):
    expected = mean_where(losses_by_hand(anatomy.model, TOKENS), IS_TEXT)
    got = language_model_loss(anatomy, TOKENS, IS_TEXT, logits_at_once)
    assert got.tolist() == pytest.approx(expected, rel=1e-5)
    assert max(abs(loss - math.log(VOCABULARY)) for loss in expected) > 0.05, "the model says something"


def test_tokens_that_do_not_count_change_the_mean_by_their_own_losses_only(anatomy):
    everything = torch.ones_like(IS_TEXT)
    losses = losses_by_hand(anatomy.model, TOKENS)
    assert language_model_loss(anatomy, TOKENS, everything).tolist() == pytest.approx([sum(row) / len(row) for row in losses], rel=1e-5)
    one = torch.zeros_like(IS_TEXT)
    one[:, 7] = True
    assert language_model_loss(anatomy, TOKENS, one).tolist() == pytest.approx([row[6] for row in losses], rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_replacing_activations_by_themselves_changes_nothing(anatomy, kind):
    intact = spliced_loss(anatomy, Site(0, kind), None, TOKENS, IS_TEXT)
    assert torch.equal(intact, language_model_loss(anatomy, TOKENS, IS_TEXT))
    assert torch.equal(spliced_loss(anatomy, Site(0, kind), lambda x: x, TOKENS, IS_TEXT), intact)


@pytest.mark.parametrize("kind", KINDS)
def test_deleting_activations_changes_the_loss_and_leaves_the_model_as_it_was(anatomy, kind):
    intact = language_model_loss(anatomy, TOKENS, IS_TEXT)
    deleted = spliced_loss(anatomy, Site(1, kind), torch.zeros_like, TOKENS, IS_TEXT)
    assert ((deleted - intact).abs() > 1e-4).all()
    assert torch.equal(language_model_loss(anatomy, TOKENS, IS_TEXT), intact)


@pytest.mark.parametrize("kind", KINDS)
def test_the_replacement_sees_the_sites_rows_at_text_tokens_in_float32(anatomy, kind):
    site, captured, seen = Site(1, kind), {}, []
    with torch.no_grad(), anatomy.capture([site], captured.__setitem__):
        anatomy.model(TOKENS)

    def look(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return x

    spliced_loss(anatomy, site, look, TOKENS, IS_TEXT)
    (rows,) = seen
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows, captured[site][IS_TEXT])


def test_special_tokens_keep_their_activations(anatomy):
    """With the last block's output deleted at text tokens, these predict what the final norm makes of zeros; BOS predicts as before."""
    model, last = anatomy.model, Site(1, "resid_post")
    with torch.no_grad():
        norm = model.transformer.ln_f if hasattr(model, "transformer") else model.model.norm
        logits = model.get_output_embeddings()(norm(torch.zeros(1, 1, 16)))[0, 0]
        cap = getattr(model.config, "final_logit_softcapping", None)
        of_zeros = -(cap * torch.tanh(logits / cap) if cap else logits).double().log_softmax(-1)
    losses = losses_by_hand(model, TOKENS)
    for s, t in ((s, t) for s in range(3) for t in range(1, TOKENS.shape[1])):
        if IS_TEXT[s, t - 1]:
            losses[s][t - 1] = of_zeros[TOKENS[s, t]].item()
    got = spliced_loss(anatomy, last, torch.zeros_like, TOKENS, IS_TEXT)
    assert got.tolist() == pytest.approx(mean_where(losses, IS_TEXT), rel=1e-5)


def test_activations_of_a_bfloat16_model_are_replaced_in_float32_and_put_back_in_its_type():
    torch.manual_seed(0)
    anatomy = Anatomy(gpt2().eval().bfloat16())
    intact = language_model_loss(anatomy, TOKENS, IS_TEXT)
    assert torch.equal(spliced_loss(anatomy, Site(0, "resid_post"), lambda x: x, TOKENS, IS_TEXT), intact)
