"""Our Adam against torch's, and rows that waited against rows that did not."""

import pytest
import torch

from core.adam import Adam


def gradients(t: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(t)
    return {name: torch.randn(shape, generator=generator) for name, shape in {"W_dec": (6, 4), "W_enc": (6, 4), "b_enc": (6,)}.items()}


@pytest.mark.parametrize("betas", [(0.0, 0.999), (0.9, 0.95), (0.5, 0.9)])
def test_parameters_move_as_under_torchs_adam(betas):
    start = gradients(100)
    ours = {name: tensor.clone() for name, tensor in start.items()}
    theirs = {name: torch.nn.Parameter(tensor.clone()) for name, tensor in start.items()}
    adam, reference = Adam(ours, *betas, 1e-8), torch.optim.Adam(theirs.values(), lr=0.01, betas=betas, eps=1e-8)
    assert bool(adam.first) == (betas[0] > 0), "no first moment is kept where beta1 is zero"
    for t in range(25):
        for name, gradient in gradients(t).items():
            theirs[name].grad = gradient.clone()
        reference.step()
        adam.begin_step()
        adam.update(gradients(t), 0.01)
        for name, tensor in ours.items():
            torch.testing.assert_close(tensor, theirs[name].detach(), rtol=1e-5, atol=1e-6)


def test_rows_that_waited_through_steps_without_gradient_move_as_if_they_had_not():
    present, waiting = ({name: tensor.clone() for name, tensor in gradients(100).items()} for _ in range(2))
    every, late = Adam(present, 0.0, 0.9, 1e-8), Adam(waiting, 0.0, 0.9, 1e-8)
    for adam in (every, late):
        adam.begin_step()
        adam.update(gradients(0), 0.01)
    nothing = {name: torch.zeros_like(tensor) for name, tensor in gradients(0).items()}
    for _ in range(5):
        every.begin_step()
        every.update(nothing, 0.01)
        late.begin_step()
        late.update({"b_enc": nothing["b_enc"]}, 0.01)  # the matrices' rows are left out
    assert late.last_L.tolist() == [1] * 6
    for adam in (every, late):
        adam.begin_step()
        adam.update(gradients(1), 0.01)
    for name, tensor in present.items():
        torch.testing.assert_close(waiting[name], tensor)
    assert late.last_L.tolist() == [7] * 6
