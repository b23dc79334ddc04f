"""Rows of activations moved and summed in one pass, on the CPU: a harvest does both to every number that a model gives.

Compiled by Numba, in one thread each, so that several threads may do so at once and every sum has one order. bfloat16 comes as its bits.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from core.kernels import bfloat16, serial, value_of

Array = npt.NDArray[Any]

_LANES = 8
"""Sums beside each other, so that they vectorise without being reordered."""
_LINE = 64
"""Bytes of a cache line."""


def bits_of(x_BD: Tensor) -> Array:
    """A contiguous tensor's own memory, as the functions here take it: float32, or a bfloat16's bits."""
    return x_BD.view(torch.uint16).numpy() if x_BD.dtype == torch.bfloat16 else x_BD.numpy()


def move(source_XD: Array, source_E: Array, target_YD: Array, target_E: Array) -> None:
    """target[target_E[e]] = source[source_E[e]], for every e. Neither has gaps; they have one type, or float32 is rounded to a bfloat16's bits."""
    if source_XD.dtype != target_YD.dtype:
        _move_rounded(source_XD, source_E, target_YD, target_E)
    elif target_YD.shape[1] * target_YD.itemsize % _LINE == 0 and target_YD.ctypes.data % _LINE == 0:
        _move_lines(source_XD.view(np.uint64), source_E, target_YD.view(np.uint64), target_E)
    else:
        _move(source_XD, source_E, target_YD, target_E)


@serial
def _move(source_XD: Array, source_E: Array, target_YD: Array, target_E: Array) -> None:
    for e in range(len(source_E)):
        target_YD[target_E[e]] = source_XD[source_E[e]]


@serial
def _move_rounded(source_XD: Array, source_E: Array, target_YD: Array, target_E: Array) -> None:
    for e in range(len(source_E)):
        source_D, target_D = source_XD[source_E[e]], target_YD[target_E[e]]
        for d in range(len(source_D)):
            value = source_D[d]
            target_D[d] = bfloat16(value) if value == value else np.uint16(0x7FC0)


@intrinsic  # type: ignore[untyped-decorator]
def _move_row(_context: Any, target_D: Any, source_D: Any) -> Any:
    """target_D[:] = source_D, of uint64, in whole lines that go by the caches to memory.

    Rows that are shuffled fill more than any cache before they are used; written the usual way, each line is first read from memory, which
    takes three times as long.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        line, index = ir.VectorType(ir.IntType(64), _LINE // 8), ir.IntType(64)
        target, source = (context.make_array(of)(context, builder, array) for of, array in zip(signature.args, arguments, strict=True))
        lines = builder.udiv(builder.extract_value(target.shape, 0), index(_LINE // 8))
        to, of = (builder.bitcast(row.data, line.as_pointer()) for row in (target, source))
        past_caches = builder.module.add_metadata([ir.IntType(32)(1)])
        with cgutils.for_range(builder, lines) as loop:
            written = builder.store(builder.load(builder.gep(of, [loop.index]), align=1), builder.gep(to, [loop.index]), align=_LINE)
            written.set_metadata("nontemporal", past_caches)
        return context.get_dummy_value()

    return types.void(target_D, source_D), generate


@intrinsic  # type: ignore[untyped-decorator]
def _fence(_context: Any) -> Any:
    """Before other threads are told of rows that went by the caches."""

    def generate(context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@serial
def _move_lines(source_XD: Array, source_E: Array, target_YD: Array, target_E: Array) -> None:
    for e in range(len(source_E)):
        _move_row(target_YD[target_E[e]], source_XD[source_E[e]])
    _fence()


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
