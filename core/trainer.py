"""Training: one dictionary's steps, and all dictionaries of a site on one read of its rows.

A trainer's state after step t is a function of its configuration and of the batches 0 to t - 1, so that it can be stored, loaded
and continued to the bit. How a step is computed: `core/sparse_step.py`, `core/cuda_step.py`, `core/dense_step.py`; which: `core/architectures.py`.
"""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from core.adam import Adam
from core.architectures import begin, step_of
from core.control import next_price
from core.dictionary import Dictionary
from core.errors import SickDictionary
from core.jumprelu import JumpReLUDictionary
from core.sharding import Shards, copy_whole, fold, on_all, own, whole
from core.spec import DictionarySpec
from core.statistics import Normaliser
from core.training import Training

CHECK_STEPS = 50
"""Steps between two looks at a dictionary's health, and between two points of its history."""


def steps_of(warmup: float, num_steps: int) -> float:
    """A warm-up in steps, which up to one is a share of all."""
    return warmup * num_steps if warmup <= 1 else warmup


def learning_rate_factor(step: int, num_steps: int, training: Training) -> float:
    """Share of the learning rate in force at a step: cosine from 0.1 to 1 (GS, section 3.2), then, if asked, a linear fall to zero."""
    factor, warmup_steps = 1.0, steps_of(training.learning_rate_warmup, num_steps)
    if step < warmup_steps:
        factor = 0.1 + 0.9 * (1 - math.cos(math.pi * step / warmup_steps)) / 2
    decay_steps = training.learning_rate_decay * num_steps
    return factor * min(1.0, (num_steps - step) / decay_steps) if decay_steps else factor


def sparsity_warmth(step: int, num_steps: int, warmup: float) -> float:
    """Share of the sparsity penalty in force at a step: linear from zero (GS, section 3.2)."""
    warmup_steps = steps_of(warmup, num_steps)
    return min(1.0, step / warmup_steps) if warmup_steps else 1.0


class Trainer:
    """One dictionary in training.

    Args:
        spec: which. training: how. normaliser: of the site's inputs.
        shards: the processes that share its latents, each with a trainer that is given the same batches; None for this one alone.
    """

    def __init__(self, spec: DictionarySpec, training: Training, normaliser: Normaliser, device: torch.device, shards: Shards | None = None) -> None:
        self.spec = spec
        self.training = training
        self.shards = shards
        self.normaliser = normaliser.to(device)
        width = shards.share(spec.width) if shards else spec.width
        self.dictionary = begin(len(normaliser.mean), width, spec, training).to(device)
        if shards:
            shards.join(self.dictionary, spec.seed)
        parameters = {name: p.detach() for name, p in self.dictionary.named_parameters()}
        self.adam = Adam(parameters, training.adam_beta1, training.adam_beta2, training.adam_epsilon)
        self._step = step_of(self.dictionary, self.adam, spec, training, device, sharded=shards is not None)
        self.sick = False
        self.seconds: list[float] = []
        """Of each step in this process."""
        self.num_steps = training.num_steps(spec.tokens)
        self.sparsity_warmup = training.warmup_of(spec.architecture)
        self.begun_from: dict[str, Any] = {}
        """Of released weights that were taken for the start."""
        self.history: list[dict[str, float]] = []
        """Every CHECK_STEPS steps: step, error (share of the mean square), l0."""

    def begin_from(self, trained: Dictionary, facts: dict[str, Any]) -> None:
        """Before the first step: take the weights of a trained dictionary, on raw activations, in place of a random start.

        Args:
            facts: where they are from, which are remembered.
        """
        assert isinstance(self.dictionary, JumpReLUDictionary)
        self.begun_from = facts
        self.dictionary.begin_from(trained, self.normaliser)
        self._step.refresh()

    @property
    def step(self) -> int:
        """Steps behind it."""
        return self.adam.step

    @property
    def done(self) -> bool:
        return self.step >= self.num_steps

    def train_on(self, x_BD: Tensor) -> None:
        """One step on one batch of raw activations.

        Raises:
            SickDictionary: the loss is not finite, no latent fires, or L0 is stuck far above where it should be.
        """
        began = time.perf_counter()
        learning_rate = (self.spec.learning_rate or self.training.learning_rate) * learning_rate_factor(self.step, self.num_steps, self.training)
        x_BD = self.normaliser(x_BD)
        if self.step == 0:
            own(self.dictionary).start(x_BD)
            self._step.refresh()
        x_BD = self.shards.everywhere(x_BD) if self.shards else x_BD
        warmth = sparsity_warmth(self.step, self.num_steps, self.sparsity_warmup)
        error, l0 = self._step(x_BD, learning_rate, warmth)
        self.dictionary.price = next_price(self.dictionary.price, l0, warmth, self.spec, self.training)
        self.seconds.append(time.perf_counter() - began)
        if self.step % CHECK_STEPS == 0 or self.done:
            self._check(float(error), float(l0))

    def _check(self, error: float, l0: float) -> None:
        self.history.append({"step": self.step, "error": error, "l0": l0})
        if reason := self._sickness(error, l0):
            self.sick = True
            raise SickDictionary(f"{self.spec} was stopped at step {self.step:,} of {self.num_steps:,}: {reason}")

    def _sickness(self, error: float, l0: float) -> str | None:
        if not math.isfinite(error):
            return f"its error is {error}; expected a finite number; lower training.learning_rate"
        if l0 == 0:
            return "no latent fires; expected some; lower the sparsity (a higher target_l0, a lower l0_coefficient)"
        if not all(on_all(parameter.isfinite().all()) for parameter in self.dictionary.parameters()):
            return "its weights are not finite; expected numbers; lower training.learning_rate"
        if self.spec.target_l0 is None:
            return None
        expected = 4 * self.spec.target_l0
        halfway = self.step >= self.num_steps / 2 and sparsity_warmth(self.step, self.num_steps, self.sparsity_warmup) == 1
        if not halfway or l0 <= expected:
            return None
        before = [point["l0"] for point in self.history if point["step"] <= self.step * 0.8]
        if before and l0 > 0.95 * before[-1]:
            stuck = f"its L0 is stuck at {l0:,.0f}; expected at most {expected:,.0f}"
            if self.training.by_control(self.spec.architecture):
                return f"{stuck}; its sparsity coefficient moves by at most training.l0_control a step, so raise that or train longer"
            return (
                f"{stuck}; thresholds move about one learning rate a step, "
                "so raise training.learning_rate, train longer, or set training.threshold_parameter to linear"
            )
        return None

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything the next step depends on: tensors, and JSON values. The same however many shards there are; the first has it."""
        weights = {f"weight.{name}": tensor for name, tensor in self.dictionary.state_dict().items()}
        moments = {f"adam.{name}": tensor for name, tensor in self.adam.state().items()}
        values = {"step": self.step, "price": self.dictionary.price, "history": self.history}
        values |= {"begun_from": self.begun_from} if self.begun_from else {}
        return {name: whole(tensor) for name, tensor in (weights | moments).items()}, values

    @torch.no_grad()
    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        for name, tensor in self.dictionary.state_dict().items():
            copy_whole(tensors[f"weight.{name}"], tensor)
        self.dictionary.price = float(values["price"])
        self.adam.load_state({key.removeprefix("adam."): tensor for key, tensor in tensors.items()}, values["step"])
        self._step.refresh()
        self.history, self.begun_from = list(values["history"]), dict(values.get("begun_from", {}))

    def fold(self) -> Dictionary:
        """The dictionary for use, on the first of its processes (`core/sharding.py`)."""
        return fold(self.dictionary, self.normaliser)


def train_together(
    trainers: list[Trainer], batch: Callable[[int], Tensor], on_sick: Callable[[Trainer, SickDictionary], None], stop: int | None = None
) -> Iterator[int]:
    """Train all dictionaries of a site, each batch read once; yields the number of steps behind it after each one.

    Args:
        stop: the number of steps at which to leave off, if there are more.

    Trainers may stand at different steps: each waits for the batch that it has not seen. One that falls sick is reported and
    left; the others go on.
    """
    while waiting := [trainer for trainer in trainers if not (trainer.done or trainer.sick) and (stop is None or trainer.step < stop)]:
        t = min(trainer.step for trainer in waiting)
        x_BD = batch(t)
        for trainer in [trainer for trainer in waiting if trainer.step == t]:
            try:
                trainer.train_on(x_BD)
            except SickDictionary as sickness:
                on_sick(trainer, sickness)
        yield t + 1
