"""Control of L0: how the coefficient of a sparsity penalty is moved until a dictionary's mean L0 is its target.

A penalty that pulls towards a target leaves L0 a little above it, where pull and fidelity balance. As in the method of multipliers, the
integral of what is missing takes the remainder away: it is moved after every step, and rests only where L0 is on its target.
"""

from torch import Tensor

from core.spec import DictionarySpec
from core.training import Training

LARGEST = 15.0
"""Of the integral either way: where a target cannot be reached it must stay a number that a way back leads from."""

L1_PRICE = 0.1
"""The price of activation, ||f||_1, that control begins with where no coefficient is given, for inputs of unit mean square."""


def next_price(price: float, l0: Tensor | float, warmth: float, spec: DictionarySpec, training: Training) -> float:
    """The integral after a step on which the mean L0 was `l0`; zero at the start, and for ever without a target.

    The miss counts as a share of the target, at most once the target, and as much as the penalty is switched on (`warmth`): a start with half
    of all latents active, or before there is a penalty, says nothing of the end.
    """
    if spec.target_l0 is None or not training.l0_control:
        return price
    miss = max(-1.0, min(1.0, float(l0) / spec.target_l0 - 1))
    return max(-LARGEST, min(LARGEST, price + training.l0_control * warmth * miss))
