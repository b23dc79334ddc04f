"""Uniformity of active latents, against finite differences of the model's own logits and against closed forms."""

import math
from collections.abc import Callable

import pytest
import torch
from test_anatomy import CONFIGS, random_model

from core.anatomy import Anatomy
from core.dictionary import Dictionary
from core.site import KINDS, Site
from core.uniformity import effects, uniformity
from tasks.spliced import _effects

TOKENS = torch.arange(36).reshape(3, 12) * 7 % 64
POSITIONS = torch.tensor([[2, 7], [9, 1], [5, 6]])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["gemma3", "gpt2", "llama"])
def test_effects_are_the_slope_of_the_centred_logit_of_the_next_token_along_any_direction(family: str, kind: str) -> None:
    anatomy, site = Anatomy(random_model(CONFIGS[family]()).double()), Site(1, kind)
    x_RD, gradient_RD = effects(anatomy, site, TOKENS, POSITIONS)
    sequence, position = torch.arange(3).repeat(2), POSITIONS.T.flatten()
    generator = torch.Generator().manual_seed(0)
    for row, (s, p) in enumerate(zip(sequence.tolist(), position.tolist(), strict=True)):
        direction = torch.nn.functional.normalize(torch.randn(x_RD.shape[1], generator=generator, dtype=torch.float64), dim=0)

        def centred_logit(step: float, s: int = s, p: int = p, row: int = row, direction: torch.Tensor = direction) -> float:
            def replace(own: torch.Tensor) -> torch.Tensor:
                changed = own.clone()
                changed[s, p] = x_RD[row].double() + step * direction
                return changed

            with torch.no_grad(), anatomy.splice(site, replace):
                logits_V = anatomy.model(TOKENS, use_cache=False).logits[s, p]
            return float(logits_V[TOKENS[s, p + 1]] - logits_V.mean())

        def difference(step: float, logit: Callable[[float], float] = centred_logit) -> float:
            return (logit(step) - logit(-step)) / (2 * step)

        # Of fourth order, with a step far above what float32 inside the model's norms and attention makes of a logit.
        slope = (4 * difference(0.02) - difference(0.04)) / 3
        assert float(gradient_RD[row].double() @ direction) == pytest.approx(slope, rel=2e-3, abs=2e-5)


def test_the_uniformity_of_n_equal_effects_is_one_and_of_a_single_one_its_share_of_the_active() -> None:
    """Latents are the coordinates of x, so that y = x times the gradient."""
    D = 8
    eye = torch.eye(D)
    dictionary = Dictionary(W_enc=eye, b_enc=torch.zeros(D), W_dec=eye, b_dec=torch.zeros(D), threshold=torch.full((D,), 1e-6))
    x = torch.tensor([[1.0] * 4 + [0] * 4, [1.0] * 5 + [0] * 3, [0.0] * 8, [2.0, 1, 1] + [0] * 5])
    gradient = torch.tensor([[-3.0] * 8, [1.0, 1e-12, 1e-12, 1e-12, 1e-12, 0, 0, 0], [1.0] * 8, [1.0, -2.0, 0.0] + [5.0] * 5])
    found = uniformity(dictionary, x, gradient).tolist()
    assert [found[0], found[1], found[3]] == pytest.approx([1, 1 / 5, 1], rel=1e-6)
    assert math.isnan(found[2]), "a row without an active latent tells nothing"


@pytest.mark.parametrize(("context", "rows"), [(2, 0), (3, 3), (6, 3), (12, 9)])
def test_of_short_texts_there_are_fewer_rows_and_of_none_but_a_token_none(context: int, rows: int) -> None:
    """Rows are of text that predicts text; BOS is none."""
    anatomy, is_text = Anatomy(random_model(CONFIGS["gemma3"]())), torch.ones(3, context, dtype=torch.bool)
    is_text[:, 0] = False
    sequence_R, x_RD, gradient_RD = _effects(anatomy, Site(1, "mlp_out"), TOKENS[:, :context], is_text)
    assert len(sequence_R) == len(x_RD) == len(gradient_RD) == rows
    assert sequence_R.tolist() == [0, 1, 2] * (rows // 3)
    assert gradient_RD.isfinite().all()
