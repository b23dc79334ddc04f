"""A training step by autograd through all entries of B x L: what the papers write, on any device, and the measure of `core/sparse_step.py`."""

import torch
from torch import Tensor

from core.adam import Adam, clipping, squared_norm
from core.dictionary import TrainingDictionary
from core.objective import loss
from core.sharding import on_all
from core.spec import DictionarySpec
from core.training import Training


class DenseStep:
    """The training step of one dictionary.

    Args:
        dictionary, adam: changed in place by every step.
    """

    def __init__(self, dictionary: TrainingDictionary, adam: Adam, spec: DictionarySpec, training: Training) -> None:
        self.dictionary, self.adam, self.spec, self.training = dictionary, adam, spec, training

    def refresh(self) -> None:
        """Nothing is kept here beside the weights."""

    def __call__(self, x_BD: Tensor, learning_rate: float, warmth: float) -> tuple[float, float]:
        """One step on a batch of normalised rows; gives its squared error and its mean L0.

        Args:
            warmth: share of the sparsity penalty that is switched on.
        """
        parameters = dict(self.dictionary.named_parameters())
        total, error, f_BL = loss(self.dictionary, x_BD, self.spec, self.training, warmth)
        gradients = dict(zip(parameters, torch.autograd.grad(total, list(parameters.values())), strict=True))
        if self.dictionary.unit_decoder:
            project_rows(gradients["W_dec"], self.dictionary.W_dec)
        clip = clipping(squared_norm(gradients), self.training.gradient_clip) if self.training.gradient_clip is not None else 1.0
        self.adam.begin_step()
        self.adam.update({name: gradient * clip for name, gradient in gradients.items()}, learning_rate)
        self.dictionary.restore_constraints()
        self.dictionary.observe(f_BL)
        return float(on_all(error)), float(on_all((f_BL > 0).sum(1).float().mean()))


@torch.no_grad()
def project_rows(gradient_LD: Tensor, W_dec_LD: Tensor) -> None:
    """Take out of the decoder's gradient, in place, the part that would change its rows' norms (GS, section 3.2)."""
    gradient_LD.addcmul_((gradient_LD * W_dec_LD).sum(1, keepdim=True), W_dec_LD, value=-1)
