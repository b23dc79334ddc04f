"""Uniformity of active latents, against finite differences of the model's own logits and against closed forms."""

import pytest
import torch
from test_anatomy import CONFIGS, random_model

from core.anatomy import Anatomy
from core.dictionary import Dictionary
from core.site import KINDS, Site
from core.uniformity import effects, uniformity

TOKENS = torch.arange(36).reshape(3, 12) * 7 % 64
POSITION = torch.tensor([2, 9, 5])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["gemma3", "gpt2", "llama"])
def test_effects_are_the_slope_of_the_centred_logit_of_the_next_token_along_any_direction(family: str, kind: str) -> None:
    anatomy, site = Anatomy(random_model(CONFIGS[family]()).double()), Site(1, kind)
    x_RD, gradient_RD = effects(anatomy, site, TOKENS, POSITION)
    row = torch.arange(3)

    def centred_logit(x: torch.Tensor) -> torch.Tensor:
        def replace(own: torch.Tensor) -> torch.Tensor:
            changed = own.clone()
            changed[row, POSITION] = x
            return changed

        with torch.no_grad(), anatomy.splice(site, replace):
            logits_V = anatomy.model(TOKENS, use_cache=False).logits[row, POSITION]
        return logits_V[row, TOKENS[row, POSITION + 1]] - logits_V.mean(1)

    direction = torch.nn.functional.normalize(torch.randn(x_RD.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64))

    def difference(step: float) -> torch.Tensor:
        return (centred_logit(x_RD.double() + step * direction) - centred_logit(x_RD.double() - step * direction)) / (2 * step)

    # Of fourth order, with a step far above what float32 inside the model's norms and attention makes of a logit.
    slope = (4 * difference(0.02) - difference(0.04)) / 3
    torch.testing.assert_close((gradient_RD.double() * direction).sum(1), slope, rtol=2e-3, atol=1e-5)


def test_the_uniformity_of_n_equal_effects_is_one_and_of_a_single_one_its_share_of_the_active() -> None:
    """Latents are the coordinates of x, so that y = x times the gradient."""
    D = 8
    eye = torch.eye(D)
    dictionary = Dictionary(W_enc=eye, b_enc=torch.zeros(D), W_dec=eye, b_dec=torch.zeros(D), threshold=torch.full((D,), 1e-6))
    x = torch.tensor([[1.0] * 4 + [0] * 4, [1.0] * 5 + [0] * 3, [0.0] * 8, [2.0, 1, 1] + [0] * 5])
    gradient = torch.tensor([[-3.0] * 8, [1.0, 1e-12, 1e-12, 1e-12, 1e-12, 0, 0, 0], [1.0] * 8, [1.0, -2.0, 0.0] + [5.0] * 5])
    assert uniformity(dictionary, x, gradient).tolist() == pytest.approx([1, 1 / 5, 1], rel=1e-6)
    assert len(uniformity(dictionary, x[2:3], gradient[2:3])) == 0, "a row without an active latent tells nothing"
