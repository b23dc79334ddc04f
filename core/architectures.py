"""Which dictionary a name stands for, and which step trains it fastest."""

import logging
from typing import TYPE_CHECKING

import torch

from core.adam import Adam
from core.baselines import BatchTopK, Gated, ReLU, TopK
from core.dense_step import DenseStep
from core.dictionary import TrainingDictionary
from core.jumprelu import JumpReLUDictionary
from core.sparse_baselines import SparseGatedStep, SparseTopKStep
from core.sparse_step import SparseStep
from core.spec import DictionarySpec
from core.tanh import TanhDictionary
from core.training import Training

if TYPE_CHECKING:
    from core.cuda_step import CudaStep

log = logging.getLogger(__name__)


def begin(dimensions: int, width: int, spec: DictionarySpec, training: Training) -> TrainingDictionary:
    """A dictionary before its first step.

    Args:
        width: L, or how many of the latents are this process's.
    """
    seed = spec.seed
    start_share = training.threshold_start * spec.target_l0 / spec.width if training.threshold_start and spec.target_l0 else None
    match spec.architecture:
        case "relu-l1":
            return ReLU(dimensions, width, seed=seed)
        case "gated":
            return Gated(dimensions, width, seed=seed, start_share=start_share)
        case "topk" | "batch-topk":
            assert spec.target_l0 is not None
            kind = TopK if spec.architecture == "topk" else BatchTopK
            return kind(dimensions, width, seed=seed, k=round(spec.target_l0), dead_rows=training.dead_rows)
    if training.objective == "tanh":
        return TanhDictionary(dimensions, width, seed=seed, threshold_init=training.threshold_init)
    return JumpReLUDictionary(
        dimensions,
        width,
        seed=seed,
        threshold_init=training.threshold_init,
        log_threshold=training.threshold_parameter == "log",
        start_share=start_share,
    )


def step_of(
    dictionary: TrainingDictionary, adam: Adam, spec: DictionarySpec, training: Training, device: torch.device, *, sharded: bool = False
) -> "SparseStep | CudaStep | DenseStep":
    """Sparse where there is such a step for the architecture and the device, else dense."""
    if sharded:
        return DenseStep(dictionary, adam, spec, training)
    match dictionary:
        case TopK() if device.type == "cpu" and not isinstance(dictionary, BatchTopK):
            return SparseTopKStep(dictionary, adam, spec, training)
        case Gated() if device.type == "cpu":
            return SparseGatedStep(dictionary, adam, spec, training)
        case JumpReLUDictionary() if not (isinstance(dictionary, TanhDictionary) or training.matryoshka_prefixes):
            if device.type == "cpu":
                return SparseStep(dictionary, adam, spec, training)
            if device.type == "cuda" and not training.frequency_coefficient and (kind := _cuda_step()):
                return kind(dictionary, adam, spec, training)
    return DenseStep(dictionary, adam, spec, training)


def _cuda_step() -> "type[CudaStep] | None":
    try:
        from core.cuda_step import CudaStep  # here, for Triton is needed on CUDA alone
    except ModuleNotFoundError as missing:
        log.warning("training takes dense steps, several times slower, for %s is not installed; pip install triton", missing.name)
        return None
    return CudaStep
