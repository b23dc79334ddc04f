"""Adam (arXiv:1412.6980) as dictionaries need it: no first moment where beta1 is zero, and rows that may be left out of a step.

Without a first moment a parameter whose gradient is zero stays as it is, and only its second moment decays. So the row of a latent
that did not fire can wait: `last_L` says which step it saw last, and its second moment is decayed by all missed steps at once.
"""

import torch
from torch import Tensor

from core.sharding import copy_whole, on_all

ROWS = ("W_dec", "W_enc")
"""The parameters with one row a latent, whose rows may wait."""


class Adam:
    """The moments of a dictionary's parameters.

    Args:
        parameters: by name; changed in place.
    """

    def __init__(self, parameters: dict[str, Tensor], beta1: float, beta2: float, epsilon: float) -> None:
        self.parameters = parameters
        self.beta1, self.beta2, self.epsilon = beta1, beta2, epsilon
        self.first = {name: torch.zeros_like(p) for name, p in parameters.items()} if beta1 else {}
        self.second = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self.last_L = torch.zeros_like(parameters[ROWS[0]][:, 0], dtype=torch.int32)
        """L: the step at which each latent's rows were moved last."""
        self.step = 0

    def begin_step(self) -> None:
        self.step += 1

    @property
    def correction(self) -> float:
        """What brings the root of a second moment to its unbiased size."""
        return float((1 - self.beta2**self.step) ** -0.5)

    def rate(self, learning_rate: float) -> float:
        """The learning rate with the first moment's bias taken out."""
        return float(learning_rate / (1 - self.beta1**self.step))

    @torch.no_grad()
    def update(self, gradients: dict[str, Tensor], learning_rate: float) -> None:
        """Move the parameters named, all their rows."""
        for name, gradient in gradients.items():
            second = self.second[name]
            if name in ROWS:
                second.mul_((self.beta2 ** (self.step - self.last_L).to(second.dtype))[:, None])
            else:
                second.mul_(self.beta2)
            second.addcmul_(gradient, gradient, value=1 - self.beta2)
            if self.first:
                gradient = self.first[name].lerp_(gradient, 1 - self.beta1)
            size = second.sqrt().mul_(self.correction).add_(self.epsilon)
            self.parameters[name].addcdiv_(gradient, size, value=-self.rate(learning_rate))
        if all(name in gradients for name in ROWS):
            self.last_L.fill_(self.step)

    def state(self) -> dict[str, Tensor]:
        """The moments, for a checkpoint."""
        moments = {f"{moment}.{name}": tensor for moment in ("first", "second") for name, tensor in getattr(self, moment).items()}
        return moments | {"last": self.last_L}

    @torch.no_grad()
    def load_state(self, tensors: dict[str, Tensor], step: int) -> None:
        for name, tensor in self.state().items():
            copy_whole(tensors[name], tensor)
        self.step = step


def clipping(square: float, limit: float | None) -> float:
    """The factor that cuts a gradient with this squared norm to the limit; one for none."""
    return 1.0 if limit is None else min(1.0, limit / (square**0.5 + 1e-6))


def squared_norm(gradients: dict[str, Tensor]) -> float:
    """Of all of them together, summed in float64."""
    return sum(float(on_all(gradient.square().sum(dtype=torch.float64))) for gradient in gradients.values())
