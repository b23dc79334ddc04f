"""Rows of activations moved and summed in one pass, on the CPU: a harvest does both to every number that a model gives.

Compiled by Numba, in one thread each, so that several threads may do so at once and every sum has one order. bfloat16 comes as its bits.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from core.kernels import serial, value_of

Array = npt.NDArray[Any]

_LANES = 8
"""Sums beside each other, so that they vectorise without being reordered."""


def bits_of(x_BD: Tensor) -> Array:
    """A contiguous tensor's own memory, as the functions here take it: float32, or a bfloat16's bits."""
    return x_BD.view(torch.uint16).numpy() if x_BD.dtype == torch.bfloat16 else x_BD.numpy()


@serial
def move(source_XD: Array, source_E: Array, target_YD: Array, target_E: Array) -> None:
    """target[target_E[e]] = source[source_E[e]], for every e."""
    for e in range(len(source_E)):
        target_YD[target_E[e]] = source_XD[source_E[e]]


@serial
def sums(x_BD: Array, total_D: Array, norm_B: Array) -> float:
    """The sum of the rows and the norm of each; gives the sum of their squares, which is finite only if every number is.

    Args:
        x_BD: float32, or a bfloat16's bits as uint16. total_D: float64. norm_B: float32.
    """
    B, D = x_BD.shape
    row_D = np.empty(D, np.float32)
    lanes = np.empty(_LANES)
    total_D[:] = 0
    square = 0.0
    for b in range(B):
        for d in range(D):
            row_D[d] = value_of(x_BD[b, d])
        lanes[:] = 0
        for first in range(0, D - D % _LANES, _LANES):
            for lane in range(_LANES):
                value = np.float64(row_D[first + lane])
                lanes[lane] += value * value
        for d in range(D - D % _LANES, D):
            lanes[0] += np.float64(row_D[d]) * np.float64(row_D[d])
        for d in range(D):
            total_D[d] += np.float64(row_D[d])
        of_row = lanes.sum()
        norm_B[b] = np.sqrt(of_row)
        square += of_row
    return square
