"""The loops of a sparse training step as Triton kernels, for CUDA. What they compute together is told in `core/cuda_step.py`.

Tensors are contiguous and float32 unless said. B rows, D dimensions, L latents, E entries: the (row, latent) pairs that carry value or
gradient. E may hold candidates that turned out to be no entries: their latent is -1, and every kernel passes over them.

Every sum belongs to one program, which takes it in one order, and nothing is added atomically: so a step's bits do not depend on how the
GPU happened to schedule it, and a run that was killed and resumed ends in the bits of one that was not.

Kernels are above their launchers, which have the types and tell what is computed. `do_not_specialize` names the integers that change from
step to step, and for whose values no kernel is to be compiled anew.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from core.adam import ROWS, Adam

TILE_LATENTS = 512
"""Latents of a row that are counted together."""
_TILE_ROWS = 4
"""Rows that a program looks through beside each other: they share the loads of what belongs to the latents."""
_TILE = 8_192
"""Floats of the tile in which a program gathers rows of D: many loads are under way at once, and the registers still hold it."""
_ENTRIES = 32
"""Entries of a latent whose scalars are summed together."""


# Finding the entries: one pass that counts, one that writes down


@triton.jit
def _hits(
    z_BL, cut_L, slack_B, slack_L, B, L, ROWS: tl.constexpr, LATENTS: tl.constexpr
):  # fmt: skip
    """One tile: its rows, its latents, its z, and which of them are above cut - slack_B * slack_L."""
    b = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    l = tl.program_id(1) * LATENTS + tl.arange(0, LATENTS)
    inside = (b < B)[:, None] & (l < L)[None, :]
    z = tl.load(z_BL + b[:, None] * L + l[None, :], mask=inside, other=0.0).to(tl.float32)
    cut = tl.load(cut_L + l, mask=l < L, other=0.0)
    slack = tl.load(slack_B + b, mask=b < B, other=0.0)[:, None] * tl.load(slack_L + l, mask=l < L, other=0.0)[None, :]
    return b, l, z, inside & (z > cut[None, :] - slack)


@triton.jit
def _count_above(
    z_BL, cut_L, slack_B, slack_L, count_BT, B, L, T, ROWS: tl.constexpr, LATENTS: tl.constexpr
):  # fmt: skip
    b, _, _, above = _hits(z_BL, cut_L, slack_B, slack_L, B, L, ROWS, LATENTS)
    tl.store(count_BT + b * T + tl.program_id(1), tl.sum(above.to(tl.int32), 1), mask=b < B)


@triton.jit(do_not_specialize=["first_row", "room"])
def _list_above(
    z_BL, cut_L, slack_B, slack_L, start_BT, first_row, room, row_E, latent_E, z_E,
    B, L, T, ROWS: tl.constexpr, LATENTS: tl.constexpr,
):  # fmt: skip
    b, l, z, above = _hits(z_BL, cut_L, slack_B, slack_L, B, L, ROWS, LATENTS)
    start = tl.load(start_BT + b * T + tl.program_id(1), mask=b < B, other=0)
    e = start[:, None] + tl.cumsum(above.to(tl.int32), 1) - 1
    wanted = above & (e < room)
    tl.store(row_E + e, tl.zeros_like(e).to(tl.int32) + first_row + b[:, None], mask=wanted)
    tl.store(latent_E + e, tl.zeros_like(e).to(tl.int32) + l[None, :], mask=wanted)
    tl.store(z_E + e, z, mask=wanted)


def count_above(z_BL: Tensor, cut_L: Tensor, slack_B: Tensor, slack_L: Tensor) -> Tensor:
    """How many z of each row, float32 or bfloat16, are above cut - slack_B * slack_L, in every tile of latents: B x T, int32."""
    B, L = z_BL.shape
    T = triton.cdiv(L, TILE_LATENTS)
    count_BT = torch.empty(B, T, dtype=torch.int32, device=z_BL.device)
    _count_above[triton.cdiv(B, _TILE_ROWS), T](z_BL, cut_L, slack_B, slack_L, count_BT, B, L, T, _TILE_ROWS, TILE_LATENTS)
    return count_BT


def list_above(
    z_BL: Tensor, cut_L: Tensor, slack_B: Tensor, slack_L: Tensor, start_BT: Tensor, first_row: int, row_E: Tensor, latent_E: Tensor, z_E: Tensor
) -> None:
    """Which those are, in the order of rows and then of latents, from start_BT on; what has no room in E is left out.

    Args:
        start_BT: int64, one after another. first_row: what the first row here is called. row_E, latent_E: int32.
    """
    B, L = z_BL.shape
    T = triton.cdiv(L, TILE_LATENTS)
    _list_above[triton.cdiv(B, _TILE_ROWS), T](
        z_BL, cut_L, slack_B, slack_L, start_BT, first_row, len(z_E), row_E, latent_E, z_E, B, L, T, _TILE_ROWS, TILE_LATENTS, num_warps=8
    )  # fmt: skip


# By row: reconstruction, and products at entries


@triton.jit
def _gather(W_LD, l, wanted, d, D):
    """The rows l of W that are wanted, and zeros for the others."""
    return tl.load(W_LD + l.to(tl.int64)[:, None] * D + d[None, :], mask=wanted[:, None] & (d < D)[None, :], other=0.0)


@triton.jit
def _reconstruct(
    x_BD, W_dec, b_dec, theta_L, start_B, latent_E, z_E, g_BD, error_B, l0_B,
    scale, D, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    b, d = tl.program_id(0).to(tl.int64), tl.arange(0, COLUMNS)
    r = tl.load(b_dec + d, mask=d < D, other=0.0) - tl.load(x_BD + b * D + d, mask=d < D, other=0.0)
    l0 = tl.zeros([ROWS], tl.int32)
    begin, end = tl.load(start_B + b), tl.load(start_B + b + 1)
    for first in range(begin, end, ROWS):
        e = first + tl.arange(0, ROWS)
        l = tl.load(latent_E + e, mask=e < end, other=-1)
        z = tl.load(z_E + e, mask=e < end, other=0.0)
        active = (l >= 0) & (z > tl.load(theta_L + l, mask=l >= 0, other=0.0))
        r += tl.sum(z[:, None] * _gather(W_dec, l, active, d, D), 0)
        l0 += active.to(tl.int32)
    tl.store(g_BD + b * D + d, r * scale, mask=d < D)
    tl.store(error_B + b, tl.sum(r * r, 0))
    tl.store(l0_B + b, tl.sum(l0, 0))


@triton.jit
def _dots_at_entries(
    v_BD, W_LD, start_B, latent_E, dot_E, D, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    b, d = tl.program_id(0).to(tl.int64), tl.arange(0, COLUMNS)
    v = tl.load(v_BD + b * D + d, mask=d < D, other=0.0)
    begin, end = tl.load(start_B + b), tl.load(start_B + b + 1)
    for first in range(begin, end, ROWS):
        e = first + tl.arange(0, ROWS)
        l = tl.load(latent_E + e, mask=e < end, other=-1)
        tl.store(dot_E + e, tl.sum(v[None, :] * _gather(W_LD, l, l >= 0, d, D), 1), mask=e < end)


def reconstruct(
    x_BD: Tensor, W_dec: Tensor, b_dec: Tensor, theta_L: Tensor, start_B: Tensor, latent_E: Tensor, z_E: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of every row: the batch mean's gradient g_b = 2 (x_hat - x) / B, its squared error, and its L0; only active entries decode."""
    B, D = x_BD.shape
    g_BD, error_B, l0_B = torch.empty_like(x_BD), x_BD.new_empty(B), torch.empty(B, dtype=torch.int32, device=x_BD.device)
    _reconstruct[(B,)](x_BD, W_dec, b_dec, theta_L, start_B, latent_E, z_E, g_BD, error_B, l0_B, 2.0 / B, D, **_row_tile(D))
    return g_BD, error_B, l0_B


def dots_at_entries(v_BD: Tensor, W_LD: Tensor, start_B: Tensor, latent_E: Tensor) -> Tensor:
    """v_b . w_l at every entry, E."""
    B, D = v_BD.shape
    dot_E = v_BD.new_empty(len(latent_E))
    _dots_at_entries[(B,)](v_BD, W_LD, start_B, latent_E, dot_E, D, **_row_tile(D))
    return dot_E


# By latent


class Terms(NamedTuple):
    """What latents' weight gradients are sums of: the entries sorted by latent, and the rows that they weigh.

    Latent l has those from start_K[2 l] to start_K[2 l + 2], the active ones first, to start_K[2 l + 1], and of both the rows in order; K is
    2 L + 1.
    """

    start_K: Tensor
    row_E: Tensor
    z_E: Tensor
    gradient_E: Tensor
    """dL/df."""
    x_BD: Tensor
    """The encoder's input."""
    g_BD: Tensor
    """The loss's gradient in x_hat."""
    order_L: Tensor
    """In which latents are begun, those with the most active entries first: a program works one off, and none should be left for the end."""


@triton.jit
def _sum_by_latent(
    start_K, row_E, z_E, gradient_E, theta_L, slope_B, half, bias_L, along_L, edge_L, ENTRIES: tl.constexpr
):  # fmt: skip
    l = tl.program_id(0)
    begin, active, end = tl.load(start_K + 2 * l), tl.load(start_K + 2 * l + 1), tl.load(start_K + 2 * l + 2)
    theta = tl.load(theta_L + l)
    bias, along, edge = tl.zeros([ENTRIES], tl.float32), tl.zeros([ENTRIES], tl.float32), tl.zeros([ENTRIES], tl.float32)
    for first in range(begin, end, ENTRIES):
        e = first + tl.arange(0, ENTRIES)
        z = tl.load(z_E + e, mask=e < end, other=0.0)
        gradient = tl.load(gradient_E + e, mask=e < end, other=0.0)
        slope = tl.load(slope_B + tl.load(row_E + e, mask=e < end, other=0), mask=e < end, other=0.0)
        dz = tl.where(e < active, gradient, 0.0)
        bias += dz
        along += z * dz
        edge += tl.where((e < end) & (tl.abs(z - theta) < half), theta * gradient + slope, 0.0)
    tl.store(bias_L + l, tl.sum(bias, 0))
    tl.store(along_L + l, tl.sum(along, 0))
    tl.store(edge_L + l, tl.sum(edge, 0))


@triton.jit
def _weight_gradients(begin, active, row_E, z_E, gradient_E, x_BD, g_BD, d, D, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """One latent's: sum f_b g_b, and sum dL/dz_b x_b."""
    dec, enc = tl.zeros([COLUMNS], tl.float32), tl.zeros([COLUMNS], tl.float32)
    for first in range(begin, active, ROWS):
        e = first + tl.arange(0, ROWS)
        b = tl.load(row_E + e, mask=e < active, other=0)
        f = tl.load(z_E + e, mask=e < active, other=0.0)
        dz = tl.load(gradient_E + e, mask=e < active, other=0.0)
        dec += tl.sum(f[:, None] * _gather(g_BD, b, e < active, d, D), 0)
        enc += tl.sum(dz[:, None] * _gather(x_BD, b, e < active, d, D), 0)
    return dec, enc


@triton.jit
def _squared_norms(
    start_K, row_E, z_E, gradient_E, x_BD, g_BD, order_L, along_L, W_dec, square_L, D, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    l = tl.load(order_L + tl.program_id(0))
    begin, active = tl.load(start_K + 2 * l), tl.load(start_K + 2 * l + 1)
    square = 0.0
    if begin < active:
        d = tl.arange(0, COLUMNS)
        dec, enc = _weight_gradients(begin, active, row_E, z_E, gradient_E, x_BD, g_BD, d, D, ROWS, COLUMNS)
        dec -= tl.load(along_L + l) * tl.load(W_dec + l * D + d, mask=d < D, other=0.0)
        square = tl.sum(dec * dec + enc * enc, 0)
    tl.store(square_L + l, square)


@triton.jit
def _adam(
    w_D, gradient_D, first_D, second_D, inside, decay, clip, rate, beta1, beta2, epsilon, correction, FIRST: tl.constexpr
):  # fmt: skip
    """Where one row's Adam step leads; its moments are stored. `decay` is beta2 to the number of steps since the last."""
    g = gradient_D * clip
    second = tl.load(second_D, mask=inside, other=0.0) * decay + (1 - beta2) * g * g
    tl.store(second_D, second, mask=inside)
    if FIRST:
        g = tl.load(first_D, mask=inside, other=0.0) * beta1 + (1 - beta1) * g
        tl.store(first_D, g, mask=inside)
    return w_D - rate * g / (tl.sqrt(second) * correction + epsilon)


@triton.jit(do_not_specialize=["step"])
def _step_latents(
    start_K, row_E, z_E, gradient_E, x_BD, g_BD, order_L, along_L,
    W_dec, W_enc, first_dec, first_enc, second_dec, second_enc, last_L, decay_L, copy_LD, norm_L,
    clip, step, rate, beta1, beta2, epsilon, correction, D,
    FIRST: tl.constexpr, COPY: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    l = tl.load(order_L + tl.program_id(0))
    begin, active = tl.load(start_K + 2 * l), tl.load(start_K + 2 * l + 1)
    if (begin < active) | FIRST:
        d = tl.arange(0, COLUMNS)
        at, inside = l * D + d, d < D
        decay, cut = tl.load(decay_L + l), tl.load(clip)
        dec, enc = _weight_gradients(begin, active, row_E, z_E, gradient_E, x_BD, g_BD, d, D, ROWS, COLUMNS)

        d_D = tl.load(W_dec + at, mask=inside, other=0.0)
        dec -= tl.load(along_L + l) * d_D  # GS, section 3.2: no part along d_l, which is sum f_b (g_b . d_l)
        d_D = _adam(d_D, dec, first_dec + at, second_dec + at, inside, decay, cut, rate, beta1, beta2, epsilon, correction, FIRST)
        tl.store(W_dec + at, d_D / tl.sqrt(tl.sum(d_D * d_D, 0)), mask=inside)

        w_D = tl.load(W_enc + at, mask=inside, other=0.0)
        w_D = _adam(w_D, enc, first_enc + at, second_enc + at, inside, decay, cut, rate, beta1, beta2, epsilon, correction, FIRST)
        tl.store(W_enc + at, w_D, mask=inside)
        if COPY:
            tl.store(copy_LD + at, w_D.to(tl.bfloat16), mask=inside)
            tl.store(norm_L + l, tl.sqrt(tl.sum(w_D * w_D, 0)))
        tl.store(last_L + l, step)


def sum_by_latent(terms: Terms, theta_L: Tensor, slope_B: Tensor, bandwidth: float) -> tuple[Tensor, Tensor, Tensor]:
    """Each latent's sums: of dL/dz and of f dL/df over its active entries, and of theta dL/df + c_b over those near the threshold.

    Args:
        slope_B: c_b, the penalty's slope in the row's L0.
    """
    bias_L, along_L, edge_L = (torch.empty_like(theta_L) for _ in range(3))
    entries = terms.start_K, terms.row_E, terms.z_E, terms.gradient_E
    _sum_by_latent[(len(theta_L),)](*entries, theta_L, slope_B, bandwidth / 2, bias_L, along_L, edge_L, _ENTRIES, num_warps=1)
    return bias_L, along_L, edge_L


def squared_norms(terms: Terms, along_L: Tensor, W_dec: Tensor) -> Tensor:
    """The squared norm of each latent's two weight gradients, L, which clipping needs before the step.

    Args:
        along_L: sum of f dL/df.
    """
    L, D = W_dec.shape
    square_L = torch.empty_like(along_L)
    _squared_norms[(L,)](*terms, along_L, W_dec, square_L, D, **_row_tile(D))
    return square_L


def step_latents(terms: Terms, along_L: Tensor, adam: Adam, copy: tuple[Tensor, Tensor] | None, clip: Tensor, learning_rate: float) -> None:
    """Gradients, projection, Adam on both rows of a latent, and the decoder's back to unit norm, in one pass over all latents.

    Without a first moment a latent that is not active stays as it is.

    Args:
        along_L: sum of f dL/df. copy: the encoder's rows in bfloat16, and their norms, where they are to be kept up to date.
        clip: the gradients' factor, a scalar.
    """
    decoder, encoder = ROWS
    W_dec, W_enc = adam.parameters[decoder], adam.parameters[encoder]
    L, D = W_dec.shape
    second = adam.second[decoder], adam.second[encoder]
    first = (adam.first[decoder], adam.first[encoder]) if adam.first else second
    decay_L = adam.beta2 ** (adam.step - adam.last_L).float()
    _step_latents[(L,)](
        *terms, along_L, W_dec, W_enc, *first, *second, adam.last_L, decay_L, *(copy or (None, None)),
        clip, adam.step, adam.rate(learning_rate), adam.beta1, adam.beta2, adam.epsilon, adam.correction, D,
        FIRST=bool(adam.first), COPY=copy is not None, **_row_tile(D),
    )  # fmt: skip


def _row_tile(dimensions: int) -> dict[str, int]:
    """How a program that gathers rows of D holds them: all of a row, and a few rows beside each other."""
    columns = triton.next_power_of_2(dimensions)
    warps = 4 if columns <= 1_024 else 8 if columns <= 4_096 else 16  # so that registers need not be spilt
    return {"ROWS": max(1, min(8, _TILE // columns)), "COLUMNS": columns, "num_warps": warps}
