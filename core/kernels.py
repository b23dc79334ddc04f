"""The loops of a sparse training step, compiled by Numba for the CPU. What they compute together is told in `core/sparse_step.py`.

Arrays are NumPy views of torch tensors, C-contiguous, float32 unless said. B rows, D dimensions, L latents, E entries: the (row,
latent) pairs that carry value or gradient.

Every sum is taken in one order, whichever threads take it, and the compiler may not change it (no `fastmath`): so neither the number of threads
nor the way the code was optimised changes a bit. It matters: Numba runs other machine code when it has just compiled a kernel than
when it finds it in its cache, and with sums that may be reordered a run that was killed and resumed ended in other bits.
"""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic, overload

Array = npt.NDArray[Any]

_BLOCK = 64
"""Numbers of a row looked at together; a shorter block is not vectorised."""
_PIECES = 128
"""Pieces that rows or latents are dealt out in; each has its own scratch memory."""


def serial(function: Any) -> Any:
    return numba.njit(cache=True, nogil=True, error_model="numpy")(function)


def _parallel(function: Any) -> Any:
    return numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")(function)


@serial
def _piece(piece: int, length: int) -> Any:
    return range(piece * length // _PIECES, (piece + 1) * length // _PIECES)


@serial
def _float(bits: Any) -> Any:
    """The float32 whose upper half is a bfloat16's bits."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


def value_of(z: Any) -> Any:
    """A float32 of what a product gave: a float32 itself, or a bfloat16's bits. Resolved when a kernel is compiled, by z's type."""
    raise NotImplementedError("for kernels alone")


def _value_of_type(z: Any) -> Any:
    def of_bits(z: Any) -> Any:
        return _float(z)

    def itself(z: Any) -> Any:
        return z

    return of_bits if z == numba.uint16 else itself


overload(value_of)(_value_of_type)


@serial
def bfloat16(value: Any) -> Any:
    """The bits of the bfloat16 nearest to a finite float32, ties to even."""
    bits = np.float32(value).view(np.uint32)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


_VECTOR, _CHAINS = 16, 4
"""Of a dot product: sums in a vector register, and registers that are added to in turn."""


@intrinsic  # type: ignore[untyped-decorator]
def _dot(_context: Any, a_D: Any, b_D: Any) -> Any:
    """a . b of contiguous float32 arrays, with 64 sums beside each other: the i-th takes the products at i, i + 64, ..., and they are added in pairs.

    Written in LLVM's terms, for a sum whose order is fixed is not vectorised, and one whose order is free is another on every machine.
    """

    if not all(array == types.Array(types.float32, 1, "C") for array in (a_D, b_D)):
        raise TypingError(f"_dot takes contiguous float32 rows, not {a_D} and {b_D}")

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number, vector, index = ir.FloatType(), ir.VectorType(ir.FloatType(), _VECTOR), ir.IntType(64)
        a, b = (context.make_array(of)(context, builder, array) for of, array in zip(signature.args, arguments, strict=True))
        length = builder.extract_value(a.shape, 0)
        whole = builder.and_(length, ir.Constant(index, -_VECTOR * _CHAINS))
        sums = [cgutils.alloca_once_value(builder, ir.Constant(vector, [0.0] * _VECTOR)) for _ in range(_CHAINS)]
        with cgutils.for_range_slice(builder, index(0), whole, index(_VECTOR * _CHAINS), index) as (at, _):
            for chain, total in enumerate(sums):
                here = builder.add(at, index(chain * _VECTOR))
                x, y = (builder.load(builder.bitcast(builder.gep(z.data, [here]), vector.as_pointer()), align=4) for z in (a, b))
                builder.store(builder.fadd(builder.load(total), builder.fmul(x, y)), total)
        rest = cgutils.alloca_once_value(builder, number(0.0))
        with cgutils.for_range_slice(builder, whole, length, index(1), index) as (at, _):
            x, y = (builder.load(builder.gep(z.data, [at])) for z in (a, b))
            builder.store(builder.fadd(builder.load(rest), builder.fmul(x, y)), rest)
        parts = [builder.load(total) for total in sums]
        while len(parts) > 1:
            parts = [builder.fadd(x, y) for x, y in zip(parts[::2], parts[1::2], strict=True)]
        (lanes,), width = parts, _VECTOR
        while width > 1:
            width //= 2
            low, high = (
                builder.shuffle_vector(lanes, lanes, ir.Constant(ir.VectorType(ir.IntType(32), width), [*range(first, first + width)]))
                for first in (0, width)
            )
            lanes = builder.fadd(low, high)
        return builder.fadd(builder.extract_element(lanes, ir.IntType(32)(0)), builder.load(rest))

    return types.float32(a_D, b_D), generate


@serial
def _add_rows(sum_D: Array, weight_E: Array, row_E: Array, rows_XD: Array) -> None:
    """sum_D += sum_e weight_e rows[row_e], one after another; four at a time, so that a sum is read and written once for four."""
    fours = len(row_E) // 4 * 4
    for e in range(0, fours, 4):
        v, w, x, y = weight_E[e], weight_E[e + 1], weight_E[e + 2], weight_E[e + 3]
        a, b, c, d = rows_XD[row_E[e]], rows_XD[row_E[e + 1]], rows_XD[row_E[e + 2]], rows_XD[row_E[e + 3]]
        for i in range(len(sum_D)):
            sum_D[i] = (((sum_D[i] + v * a[i]) + w * b[i]) + x * c[i]) + y * d[i]
    for e in range(fours, len(row_E)):
        weight, row = weight_E[e], rows_XD[row_E[e]]
        for i in range(len(sum_D)):
            sum_D[i] += weight * row[i]


# Finding the entries: one pass that counts, which vector registers do at the speed of the cache, and one that writes down


@_parallel
def count_above(z_BL: Array, cut_L: Array, slack_B: Array, slack_L: Array, counts_B: Array) -> None:
    """How many z of each row, float32 or bfloat16 given as uint16, are above cut - slack_B * slack_L."""
    L = z_BL.shape[1]
    for b in numba.prange(len(z_BL)):
        slack, count = slack_B[b], np.int32(0)
        for l in range(L):
            count += np.int32(value_of(z_BL[b, l]) > cut_L[l] - slack * slack_L[l])
        counts_B[b] = count


@_parallel
def list_above(z_BL: Array, cut_L: Array, slack_B: Array, slack_L: Array, start_B: Array, latent_E: Array, z_E: Array) -> None:
    """Which those are, row by row from start_B[b] on, and their z."""
    L = z_BL.shape[1]
    for b in numba.prange(len(z_BL)):
        slack, e = slack_B[b], start_B[b]
        for first in range(0, L, _BLOCK):
            z, cut, scale = z_BL[b, first : first + _BLOCK], cut_L[first : first + _BLOCK], slack_L[first : first + _BLOCK]
            hits = np.int32(0)
            if len(z) == _BLOCK:
                for l in range(_BLOCK):
                    hits += np.int32(value_of(z[l]) > cut[l] - slack * scale[l])
            if hits or len(z) < _BLOCK:
                for l in range(len(z)):
                    if value_of(z[l]) > cut[l] - slack * scale[l]:
                        latent_E[e], z_E[e] = first + l, value_of(z[l])
                        e += 1


@_parallel
def exact_products(x_BD: Array, W_LD: Array, start_B: Array, latent_E: Array, z_E: Array) -> None:
    """z_E = x_b . w_l in float32, for the entries that a bfloat16 product found."""
    for piece in numba.prange(_PIECES):
        for b in _piece(piece, len(x_BD)):
            for e in range(start_B[b], start_B[b + 1]):
                z_E[e] = _dot(x_BD[b], W_LD[latent_E[e]])


# By row: reconstruction, error, and the loss's gradient at every entry


@_parallel
def reconstruct(
    x_BD: Array, W_dec_LD: Array, b_dec_D: Array, threshold_L: Array, start_B: Array, latent_E: Array, z_E: Array,
    g_BD: Array, error_B: Array, gradient_E: Array,
) -> None:  # fmt: skip
    """error_B = ||x_hat - x||^2, g_BD, its batch mean's gradient 2 (x_hat - x) / B, and gradient_E = dL/df = g_b . d_l at every entry.

    Only entries above their threshold decode. A row's gradients follow at once, while the decoder's rows that it took are still in the cache.
    """
    B, D = x_BD.shape
    for piece in numba.prange(_PIECES):
        for b in _piece(piece, B):
            r, x, entries = g_BD[b], x_BD[b], slice(start_B[b], start_B[b + 1])
            for d in range(D):
                r[d] = b_dec_D[d] - x[d]
            latents, z, f_E = latent_E[entries], z_E[entries], gradient_E[entries]  # gradients follow when the activations have been used
            for e in range(len(latents)):
                f_E[e] = z[e] if z[e] > threshold_L[latents[e]] else np.float32(0)
            _add_rows(r, f_E, latents, W_dec_LD)
            error_B[b] = _dot(r, r)
            for d in range(D):
                r[d] *= np.float32(2) / np.float32(B)
            for e in range(start_B[b], start_B[b + 1]):
                gradient_E[e] = _dot(r, W_dec_LD[latent_E[e]])


@serial
def count_active(start_B: Array, latent_E: Array, z_E: Array, threshold_L: Array, l0_B: Array, active_L: Array) -> None:
    """The L0 of every row, and how many rows activate every latent."""
    for b in range(len(l0_B)):
        for e in range(start_B[b], start_B[b + 1]):
            if z_E[e] > threshold_L[latent_E[e]]:
                l0_B[b] += 1
                active_L[latent_E[e]] += 1


@serial
def by_latent(
    start_B: Array, latent_E: Array, z_E: Array, gradient_E: Array, threshold_L: Array, half: float, l0_B: Array,
    next_L: Array, row_E: Array, f_E: Array, g_E: Array,
    bias_L: Array, edge_L: Array, near_L: Array, near_l0_L: Array,
) -> None:  # fmt: skip
    """Active entries again, sorted by latent (from next_L[l] on, rows in order), and each latent's sums.

    bias_L: of dL/dz over its active entries. Over those within half a bandwidth of the threshold: edge_L of dL/df, near_L their number,
    near_l0_L the sum of their rows' L0.
    """
    for b in range(len(l0_B)):
        for e in range(start_B[b], start_B[b + 1]):
            l, z, gradient = latent_E[e], z_E[e], gradient_E[e]
            if z > threshold_L[l]:
                at = next_L[l]
                row_E[at], f_E[at], g_E[at] = b, z, gradient
                next_L[l] = at + 1
                bias_L[l] += gradient
            if abs(z - threshold_L[l]) < half:
                edge_L[l] += gradient
                near_L[l] += 1
                near_l0_L[l] += l0_B[b]


# By latent: gradients of the weights, and the step


@serial
def _weight_gradients(
    begin: int, end: int, row_E: Array, f_E: Array, g_E: Array, x_BD: Array, g_BD: Array, d_D: Array, dec_D: Array, enc_D: Array
) -> None:
    """One latent's: dec_D = sum f_b g_b less its part along d (GS, section 3.2); enc_D = sum dL/dz_b x_b."""
    dec_D[:] = 0
    enc_D[:] = 0
    _add_rows(dec_D, f_E[begin:end], row_E[begin:end], g_BD)
    _add_rows(enc_D, g_E[begin:end], row_E[begin:end], x_BD)
    _project(dec_D, d_D)


@serial
def _project(gradient_D: Array, d_D: Array) -> None:
    along = _dot(gradient_D, d_D)
    for d in range(len(d_D)):
        gradient_D[d] -= along * d_D[d]


@_parallel
def squared_norms(start_L: Array, row_E: Array, f_E: Array, g_E: Array, x_BD: Array, g_BD: Array, W_dec_LD: Array, square_L: Array) -> None:
    """The squared norm of each latent's two weight gradients, which clipping needs before the step."""
    L, D = W_dec_LD.shape
    for piece in numba.prange(_PIECES):
        dec_D, enc_D = np.empty(D, np.float32), np.empty(D, np.float32)
        for l in _piece(piece, L):
            square_L[l] = 0
            if start_L[l + 1] > start_L[l]:
                _weight_gradients(start_L[l], start_L[l + 1], row_E, f_E, g_E, x_BD, g_BD, W_dec_LD[l], dec_D, enc_D)
                square_L[l] = _dot(dec_D, dec_D) + _dot(enc_D, enc_D)


@serial
def _adam(w_D: Array, gradient_D: Array, first_D: Array, second_D: Array, decay: float, c: Any) -> None:
    """One row's Adam step; first_D is empty where there is no first moment. `decay` is beta2 to the number of steps since the last."""
    if len(first_D):
        for d in range(len(w_D)):
            first_D[d] = first_D[d] * c.beta1 + (np.float32(1) - c.beta1) * (gradient_D[d] * c.clip)
    for d in range(len(w_D)):
        g = gradient_D[d] * c.clip
        second_D[d] = second_D[d] * decay + (np.float32(1) - c.beta2) * g * g
    moved_D = first_D if len(first_D) else gradient_D
    rate = c.rate if len(first_D) else c.rate * c.clip
    for d in range(len(w_D)):
        w_D[d] -= rate * moved_D[d] / (np.sqrt(second_D[d]) * c.correction + c.epsilon)


@serial
def _keep_copy(w_D: Array, copy_D: Array) -> Any:
    """Put an encoder row, rounded to bfloat16, in its copy; gives the row's norm."""
    for d in range(len(copy_D)):
        copy_D[d] = bfloat16(w_D[d])
    return np.sqrt(_dot(w_D, w_D))


@serial
def _step_latent(
    l: int, dec_D: Array, enc_D: Array,
    W_dec: Array, W_enc: Array, first_dec: Array, first_enc: Array, second_dec: Array, second_enc: Array,
    last_L: Array, copy_LD: Array, norm_L: Array, c: Any,
) -> None:  # fmt: skip
    """Adam on both rows of a latent; the decoder's brought back to unit norm, the encoder's copied."""
    decay = c.beta2 ** np.float32(c.step - last_L[l])
    last_L[l] = c.step
    d_D, w_D = W_dec[l], W_enc[l]
    _adam(d_D, dec_D, first_dec[l], second_dec[l], decay, c)
    _adam(w_D, enc_D, first_enc[l], second_enc[l], decay, c)
    scale = np.float32(1) / np.sqrt(_dot(d_D, d_D))
    for d in range(len(d_D)):
        d_D[d] *= scale
    if len(copy_LD):
        norm_L[l] = _keep_copy(w_D, copy_LD[l])


@_parallel
def step_sparse(
    start_L: Array, row_E: Array, f_E: Array, g_E: Array, x_BD: Array, g_BD: Array,
    W_dec: Array, W_enc: Array, first_dec: Array, first_enc: Array, second_dec: Array, second_enc: Array,
    last_L: Array, copy_LD: Array, norm_L: Array, c: Any,
) -> None:  # fmt: skip
    """Gradients, Adam, projection and renormalisation of all latents in one pass; without a first moment an idle latent stays as it is."""
    L, D = W_dec.shape
    for piece in numba.prange(_PIECES):
        dec_D, enc_D = np.empty(D, np.float32), np.empty(D, np.float32)
        for l in _piece(piece, L):
            if start_L[l + 1] > start_L[l] or first_dec.shape[1]:
                _weight_gradients(start_L[l], start_L[l + 1], row_E, f_E, g_E, x_BD, g_BD, W_dec[l], dec_D, enc_D)
                _step_latent(
                    l, dec_D, enc_D, W_dec, W_enc, first_dec, first_enc, second_dec, second_enc, last_L, copy_LD, norm_L, c
                )  # fmt: skip


@_parallel
def step_dense(
    dec_LD: Array, enc_LD: Array,
    W_dec: Array, W_enc: Array, first_dec: Array, first_enc: Array, second_dec: Array, second_enc: Array,
    last_L: Array, copy_LD: Array, norm_L: Array, c: Any,
) -> None:  # fmt: skip
    """The same with the weights' gradients given; the decoder's is already projected."""
    for piece in numba.prange(_PIECES):
        for l in _piece(piece, len(W_dec)):
            _step_latent(
                l, dec_LD[l], enc_LD[l], W_dec, W_enc, first_dec, first_enc, second_dec, second_enc, last_L, copy_LD, norm_L, c
            )  # fmt: skip


@_parallel
def copy_rows(W_enc_LD: Array, copy_LD: Array, norm_L: Array) -> None:
    """`_keep_copy` of every row."""
    for piece in numba.prange(_PIECES):
        for l in _piece(piece, len(W_enc_LD)):
            norm_L[l] = _keep_copy(W_enc_LD[l], copy_LD[l])


@_parallel
def weighted_sum(weight_L: Array, W_LD: Array, sum_D: Array) -> None:
    """sum_l weight_l W_l; a library's matrix-vector product may group its terms by thread."""
    L, D = W_LD.shape
    of_piece_PD = np.zeros((_PIECES, D), np.float32)
    for piece in numba.prange(_PIECES):
        latents = _piece(piece, L)
        _add_rows(of_piece_PD[piece], weight_L[latents.start : latents.stop], np.arange(latents.start, latents.stop), W_LD)
    sum_D[:] = 0
    for piece in range(_PIECES):
        for d in range(D):
            sum_D[d] += of_piece_PD[piece, d]


# Dense batches, a few rows at a time


@_parallel
def activate(z_BL: Array, threshold_L: Array, f_BL: Array, l0_B: Array) -> None:
    """f = z H(z - theta), and the L0 of every row."""
    L = z_BL.shape[1]
    for b in numba.prange(len(z_BL)):
        count = np.int32(0)
        for l in range(L):
            active = z_BL[b, l] > threshold_L[l]
            f_BL[b, l] = z_BL[b, l] if active else np.float32(0)
            count += np.int32(active)
        l0_B[b] = count


@_parallel
def gate_gradient(
    z_BL: Array, threshold_L: Array, half: float, l0_B: Array, gradient_BL: Array,
    bias_L: Array, edge_L: Array, near_L: Array, near_l0_L: Array,
) -> None:  # fmt: skip
    """dL/df becomes dL/dz in place; the sums of `by_latent` are added to."""
    B, L = z_BL.shape
    for piece in numba.prange(_PIECES):
        for b in range(B):
            for l in _piece(piece, L):
                z, theta, gradient = z_BL[b, l], threshold_L[l], gradient_BL[b, l]
                near = np.float32(abs(z - theta) < half)
                edge_L[l] += near * gradient
                near_L[l] += near
                near_l0_L[l] += near * l0_B[b]
                active = np.float32(z > theta)
                gradient_BL[b, l] = active * gradient
                bias_L[l] += active * gradient
