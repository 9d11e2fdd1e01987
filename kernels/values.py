"""Kernels of the values and of their gradients.

Grid, chunks and partial sums as in :mod:`.keys`. For scalar values the hidden layer is averaged
with the attention weights, plain and times d and w.u: the mix, columns (1, d, w.u, 0) x HP. For
vector values every edge has columns along u and along w, each (position, velocity) x HP:

    own   [HIDDEN + 1, 2 HP]  of a centre: along u
    edge  [HIDDEN + 1, 6 HP]  of the model: d times (along u); along w; (w.u) times (along u)

The last row is the bias, added by the first chunk.
"""

import triton
import triton.language as tl

from .common import (
    basis,
    collect,
    gelu,
    membership,
    packed_centres,
    spread,
    stack,
    sum_paths,
    sum_rows,
    tile_rows,
    total,
    unstack,
)

_INTEGERS = ["first", "last", "edges"]


@triton.jit
def _heads(weights, e, column, valid, HEADS: tl.constexpr, HP: tl.constexpr):
    """Weights of the edges, at the heads of the columns."""
    head = (column % HP)[None, :]
    return tl.load(weights + e[:, None] * HEADS + head, mask=valid[:, None] & (head < HEADS),
                   other=0.0)  # fmt: skip


@triton.jit
def _mix_factor(d, wu, x):
    """What multiplies the weights in the mix [rows, 4 HP]."""
    return tl.where(x == 0, 1.0, tl.where(x == 1, d[:, None], tl.where(x == 2, wu[:, None], 0.0)))


@triton.jit
def _column_factor(d, wu, path):
    """What multiplies the columns [rows, 8 HP] before the vector acts."""
    return tl.where(
        path == 0, d[:, None], tl.where(path == 1, 1.0, tl.where(path == 2, wu[:, None], 0.0))
    )


@triton.jit
def _per_output(x, HP: tl.constexpr):
    """[rows, paths * 2 HP] -> [rows, 2]: sums over paths and heads."""
    x = tl.reshape(x, [x.shape[0], x.shape[1] // (2 * HP), 2, HP])
    return total(total(x, axis=3), axis=1)


@triton.jit
def _to_columns(x, WIDTH: tl.constexpr, HP: tl.constexpr):
    """[rows, 2] -> [rows, WIDTH]: a number per output, at the columns."""
    x = tl.broadcast_to(x[:, None, :, None], [x.shape[0], WIDTH // (2 * HP), 2, HP])
    return tl.reshape(x, [x.shape[0], WIDTH])


@triton.jit(do_not_specialize=_INTEGERS)
def values(
    row_ptr, feature, weights, own, edge, layer, offset, mean, sums, vector,
    feature_t, weights_t, own_t, offset_t, mean_t, sums_t, vector_t,
    first, last, edges, inv_step,
    HIDDEN: tl.constexpr, BASIS: tl.constexpr, STRIDE: tl.constexpr, HEADS: tl.constexpr,
    HP: tl.constexpr, KB: tl.constexpr, BP: tl.constexpr, SLOT: tl.constexpr,
    PACK: tl.constexpr, TANGENT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Means of the hidden layer, and the vector values, of the centres first .. last.

    mean [heads, slice, 3, HIDDEN], sums of the mix [heads, slice, 3], vector [chunks, slice, 2, 3];
    with TANGENT their tangents too.
    """
    OWN: tl.constexpr = 2 * HP
    EDGE: tl.constexpr = 6 * HP
    chunk = tl.program_id(1)
    lead = tl.zeros([1], tl.int32) + chunk == 0  # the chunk that adds biases
    n = tl.zeros([1], tl.int64) + edges
    count = tl.zeros([1], tl.int64) + (last - first)
    k = chunk * KB + tl.arange(0, KB)
    real = k < HIDDEN
    b = tl.arange(0, BP)
    co = tl.arange(0, 4 * HP)  # the mix, and own columns in its first half
    cv = tl.arange(0, 8 * HP)
    member = membership(SLOT, PACK)
    bias_v = tl.load(edge + HIDDEN * EDGE + cv, mask=(cv < EDGE) & lead, other=0.0)
    path = (cv // (2 * HP))[None, :]
    group = tl.program_id(0)
    while first + group * PACK < last:
        centre, inside, begin, end = tile_rows(row_ptr, group, first, last, SLOT, PACK)
        longest = tl.max(end - begin)
        start = tl.where(inside, centre - first, 0).to(tl.int64)[:, None] * ((HIDDEN + 1) * OWN)
        start += HIDDEN * OWN
        once = inside[:, None] & (co < OWN)[None, :] & lead[:, None]
        own_bias = tl.load(own + start + co[None, :], mask=once, other=0.0)
        local, column, here = packed_centres(group, first, last, 4 * HP, PACK)
        at_own = (local * ((HIDDEN + 1) * OWN) + column)[None, :] + k[:, None] * OWN
        here = (here & (column < OWN))[None, :] & real[:, None]
        at = centre.to(tl.int64)[:, None] * HIDDEN + k[None, :]
        shift = tl.load(offset + at, mask=inside[:, None] & real[None, :], other=0.0)
        sum_mean = tl.zeros([PACK * 4 * HP, KB], tl.float32)
        sum_mix = tl.zeros([PACK, 4 * HP], tl.float32)
        sum_x = tl.zeros([SLOT * PACK, 2], tl.float32)
        sum_y = tl.zeros([SLOT * PACK, 2], tl.float32)
        sum_z = tl.zeros([SLOT * PACK, 2], tl.float32)
        if TANGENT:
            own_bias_d = tl.load(own_t + start + co[None, :], mask=once, other=0.0)
            shift_d = tl.load(offset_t + at, mask=inside[:, None] & real[None, :], other=0.0)
            sum_mean_d = tl.zeros([PACK * 4 * HP, KB], tl.float32)
            sum_mix_d = tl.zeros([PACK, 4 * HP], tl.float32)
            sum_x_d = tl.zeros([SLOT * PACK, 2], tl.float32)
            sum_y_d = tl.zeros([SLOT * PACK, 2], tl.float32)
            sum_z_d = tl.zeros([SLOT * PACK, 2], tl.float32)
        t = 0
        while t < longest:
            jump = tl.minimum(t, 0)  # 0: see .attention
            inner = tl.load(layer + jump + k[None, :] * STRIDE + b[:, None],
                            mask=real[None, :] & (b < BASIS)[:, None], other=0.0)  # fmt: skip
            edge_v = tl.load(edge + jump + k[:, None] * EDGE + cv[None, :],
                             mask=real[:, None] & (cv < EDGE)[None, :], other=0.0)  # fmt: skip
            own_v = tl.load(own + jump + at_own, mask=here, other=0.0)
            e = begin + t
            valid = e < end
            d = tl.load(feature + e, mask=valid, other=1.0)
            wu = tl.load(feature + n + e, mask=valid, other=0.0)
            g, slope = basis(d, inv_step, BP)
            if TANGENT:
                d_d = tl.load(feature_t + e, mask=valid, other=0.0)
                g = stack(g, slope * d_d[:, None])
            z = tl.dot(g, inner, input_precision=PRECISION)
            if TANGENT:
                z, z_d = unstack(z)
            h, h_slope = gelu(z + shift)
            hh = h
            if TANGENT:
                h_d = h_slope * (z_d + shift_d)
                hh = stack(h, h_d)
            # one group of columns after the other, so that few are alive at a time
            x = (co // HP)[None, :]
            a = _heads(weights, e, co, valid, HEADS, HP)
            mix = a * _mix_factor(d, wu, x)
            mix_s = tl.trans(spread(mix, member, PACK))
            sum_mean = tl.dot(mix_s, h, sum_mean, input_precision=PRECISION)
            sum_mix += sum_rows(mix, SLOT, PACK)
            if TANGENT:
                wu_d = tl.load(feature_t + n + e, mask=valid, other=0.0)
                a_d = _heads(weights_t, e, co, valid, HEADS, HP)
                f_d = tl.where(x == 1, d_d[:, None], tl.where(x == 2, wu_d[:, None], 0.0))
                mix_d = a_d * _mix_factor(d, wu, x) + a * f_d
                sum_mean_d = tl.dot(mix_s, h_d, sum_mean_d, input_precision=PRECISION)
                mix_s = tl.trans(spread(mix_d, member, PACK))
                sum_mean_d = tl.dot(mix_s, h, sum_mean_d, input_precision=PRECISION)
                sum_mix_d += sum_rows(mix_d, SLOT, PACK)

            y = tl.dot(hh, own_v, input_precision=PRECISION)
            if TANGENT:
                y, y_d = unstack(y)
                own_v_d = tl.load(own_t + jump + at_own, mask=here, other=0.0)
                y_d = collect(tl.dot(h, own_v_d, y_d, input_precision=PRECISION), member, PACK)
            y = collect(y, member, PACK) + own_bias
            s_u = _per_output(a * y, HP)
            if TANGENT:
                s_u_d = _per_output(a_d * y + a * (y_d + own_bias_d), HP)

            a8 = _heads(weights, e, cv, valid, HEADS, HP)
            f = _column_factor(d, wu, path)
            y = tl.dot(hh, edge_v, input_precision=PRECISION)
            if TANGENT:
                y, y_d = unstack(y)
            bare = y + bias_v[None, :]
            y = f * bare
            along_w = tl.where(path == 1, a8 * y, 0.0)
            s_u += _per_output(a8 * y - along_w, HP)
            s_w = _per_output(along_w, HP)
            if TANGENT:
                a8_d = _heads(weights_t, e, cv, valid, HEADS, HP)
                f_d = tl.where(path == 0, d_d[:, None], tl.where(path == 2, wu_d[:, None], 0.0))
                y_d = a8_d * y + a8 * (f_d * bare + f * y_d)
                along_w = tl.where(path == 1, y_d, 0.0)
                s_u_d += _per_output(y_d - along_w, HP)
                s_w_d = _per_output(along_w, HP)

            ux = tl.load(feature + 3 * n + e, mask=valid, other=0.0)[:, None]
            uy = tl.load(feature + 4 * n + e, mask=valid, other=0.0)[:, None]
            uz = tl.load(feature + 5 * n + e, mask=valid, other=0.0)[:, None]
            wx = tl.load(feature + 6 * n + e, mask=valid, other=0.0)[:, None]
            wy = tl.load(feature + 7 * n + e, mask=valid, other=0.0)[:, None]
            wz = tl.load(feature + 8 * n + e, mask=valid, other=0.0)[:, None]
            sum_x += s_u * ux + s_w * wx
            sum_y += s_u * uy + s_w * wy
            sum_z += s_u * uz + s_w * wz
            if TANGENT:
                ux_d = tl.load(feature_t + 3 * n + e, mask=valid, other=0.0)[:, None]
                uy_d = tl.load(feature_t + 4 * n + e, mask=valid, other=0.0)[:, None]
                uz_d = tl.load(feature_t + 5 * n + e, mask=valid, other=0.0)[:, None]
                wx_d = tl.load(feature_t + 6 * n + e, mask=valid, other=0.0)[:, None]
                wy_d = tl.load(feature_t + 7 * n + e, mask=valid, other=0.0)[:, None]
                wz_d = tl.load(feature_t + 8 * n + e, mask=valid, other=0.0)[:, None]
                sum_x_d += s_u_d * ux + s_w_d * wx + s_u * ux_d + s_w * wx_d
                sum_y_d += s_u_d * uy + s_w_d * wy + s_u * uy_d + s_w * wy_d
                sum_z_d += s_u_d * uz + s_w_d * wz + s_u * uz_d + s_w * wz_d
            t += SLOT
        m = tl.arange(0, PACK * 4 * HP)
        i = group * PACK + m // (4 * HP)
        head = m % HP
        x = (m // HP) % 4
        write = (first + i < last) & (head < HEADS) & (x < 3)
        at = (((head * count + i) * 3 + x) * HIDDEN)[:, None] + k[None, :]
        tl.store(mean + at, sum_mean, mask=write[:, None] & real[None, :])
        if TANGENT:
            tl.store(mean_t + at, sum_mean_d, mask=write[:, None] & real[None, :])
        i = (group * PACK + tl.arange(0, PACK))[:, None]
        head = (co % HP)[None, :]
        x = (co // HP)[None, :]
        write = (first + i < last) & (head < HEADS) & (x < 3) & lead[:, None]
        at = (head * count[:, None] + i) * 3 + x
        tl.store(sums + at, sum_mix, mask=write)
        if TANGENT:
            tl.store(sums_t + at, sum_mix_d, mask=write)
        at = (chunk * count[:, None] + i) * 6 + tl.arange(0, 2)[None, :] * 3
        write = first + i < last
        tl.store(vector + at, sum_rows(sum_x, SLOT, PACK), mask=write)
        tl.store(vector + at + 1, sum_rows(sum_y, SLOT, PACK), mask=write)
        tl.store(vector + at + 2, sum_rows(sum_z, SLOT, PACK), mask=write)
        if TANGENT:
            tl.store(vector_t + at, sum_rows(sum_x_d, SLOT, PACK), mask=write)
            tl.store(vector_t + at + 1, sum_rows(sum_y_d, SLOT, PACK), mask=write)
            tl.store(vector_t + at + 2, sum_rows(sum_z_d, SLOT, PACK), mask=write)
        group += tl.num_programs(0)


@triton.jit(do_not_specialize=_INTEGERS)
def values_backward(
    row_ptr, feature, weights, own, edge, layer, offset, g_mean, g_sums, g_vector,
    mean, sums, g_weights, g_feature, g_own, g_offset, g_edge, g_layer,
    first, last, edges, inv_step,
    HIDDEN: tl.constexpr, BASIS: tl.constexpr, STRIDE: tl.constexpr, HEADS: tl.constexpr,
    HP: tl.constexpr, KB: tl.constexpr, BP: tl.constexpr, SLOT: tl.constexpr,
    PACK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients from those of the means, sums and vectors; the means and sums themselves too.

    g_weights [chunks, edges, heads]; g_feature [chunks, 8, edges] of d, w.u, u and w; g_own as own,
    g_offset as offset, g_edge [programs, HIDDEN + 1, 6 HP], g_layer [programs, BASIS, HIDDEN].
    """
    OWN: tl.constexpr = 2 * HP
    EDGE: tl.constexpr = 6 * HP
    chunk = tl.program_id(1)
    lead = tl.zeros([1], tl.int32) + chunk == 0  # the chunk that adds biases
    n = tl.zeros([1], tl.int64) + edges
    count = tl.zeros([1], tl.int64) + (last - first)
    k = chunk * KB + tl.arange(0, KB)
    real = k < HIDDEN
    b = tl.arange(0, BP)
    co = tl.arange(0, 4 * HP)
    cv = tl.arange(0, 8 * HP)
    z = tl.arange(0, 2)
    member = membership(SLOT, PACK)
    bias_v = tl.load(edge + HIDDEN * EDGE + cv, mask=(cv < EDGE) & lead, other=0.0)
    path = (cv // (2 * HP))[None, :]
    x = (co // HP)[None, :]
    sum_edge = tl.zeros([KB, 8 * HP], tl.float32)
    sum_bias = tl.zeros([8 * HP], tl.float32)
    sum_layer = tl.zeros([BP, KB], tl.float32)
    group = tl.program_id(0)
    while first + group * PACK < last:
        centre, inside, begin, end = tile_rows(row_ptr, group, first, last, SLOT, PACK)
        longest = tl.max(end - begin)
        start = tl.where(inside, centre - first, 0).to(tl.int64)[:, None]
        row = start * ((HIDDEN + 1) * OWN) + HIDDEN * OWN + co[None, :]
        once = inside[:, None] & lead[:, None]
        own_bias = tl.load(own + row, mask=once & (co < OWN)[None, :], other=0.0)
        head = (co % HP)[None, :]
        row = (head * count[:, None] + start) * 3 + x
        g_sum = tl.load(g_sums + row, mask=once & (head < HEADS) & (x < 3), other=0.0)
        local, column, here = packed_centres(group, first, last, 4 * HP, PACK)
        at_own = (local * ((HIDDEN + 1) * OWN) + column)[None, :] + k[:, None] * OWN
        at_bias = local * ((HIDDEN + 1) * OWN) + HIDDEN * OWN + column
        here_own = here & (column < OWN)
        row_head, row_x = column % HP, column // HP
        here_mean = here & (row_head < HEADS) & (row_x < 3)
        at_mean = (((row_head * count + local) * 3 + row_x) * HIDDEN)[:, None] + k[None, :]
        row = centre.to(tl.int64)[:, None] * HIDDEN + k[None, :]
        shift = tl.load(offset + row, mask=inside[:, None] & real[None, :], other=0.0)
        row = centre.to(tl.int64)[:, None] * 6 + z[None, :] * 3
        g_x = tl.load(g_vector + row, mask=inside[:, None], other=0.0)
        g_y = tl.load(g_vector + row + 1, mask=inside[:, None], other=0.0)
        g_z = tl.load(g_vector + row + 2, mask=inside[:, None], other=0.0)
        sum_mean = tl.zeros([PACK * 4 * HP, KB], tl.float32)
        sum_mix = tl.zeros([PACK, 4 * HP], tl.float32)
        sum_own = tl.zeros([KB, PACK * 4 * HP], tl.float32)
        sum_own_bias = tl.zeros([PACK * 4 * HP], tl.float32)
        sum_shift = tl.zeros([PACK, KB], tl.float32)
        t = 0
        while t < longest:
            jump = tl.minimum(t, 0)  # 0: see .attention
            inner = tl.load(layer + jump + k[None, :] * STRIDE + b[:, None],
                            mask=real[None, :] & (b < BASIS)[:, None], other=0.0)  # fmt: skip
            edge_v = tl.load(edge + jump + k[:, None] * EDGE + cv[None, :],
                             mask=real[:, None] & (cv < EDGE)[None, :], other=0.0)  # fmt: skip
            own_v = tl.load(own + jump + at_own, mask=here_own[None, :] & real[:, None], other=0.0)
            g_m = tl.load(
                g_mean + jump + at_mean, mask=here_mean[:, None] & real[None, :], other=0.0
            )
            e = begin + t
            valid = e < end
            d = tl.load(feature + e, mask=valid, other=1.0)
            wu = tl.load(feature + n + e, mask=valid, other=0.0)
            ux = tl.load(feature + 3 * n + e, mask=valid, other=0.0)[:, None]
            uy = tl.load(feature + 4 * n + e, mask=valid, other=0.0)[:, None]
            uz = tl.load(feature + 5 * n + e, mask=valid, other=0.0)[:, None]
            wx = tl.load(feature + 6 * n + e, mask=valid, other=0.0)[:, None]
            wy = tl.load(feature + 7 * n + e, mask=valid, other=0.0)[:, None]
            wz = tl.load(feature + 8 * n + e, mask=valid, other=0.0)[:, None]
            g, slope = basis(d, inv_step, BP)
            h, h_slope = gelu(tl.dot(g, inner, input_precision=PRECISION) + shift)
            a4 = _heads(weights, e, co, valid, HEADS, HP)
            a8 = _heads(weights, e, cv, valid, HEADS, HP)
            mix = a4 * _mix_factor(d, wu, x)
            mix_s = spread(mix, member, PACK)
            xo = collect(tl.dot(h, own_v, input_precision=PRECISION), member, PACK) + own_bias
            xv = tl.dot(h, edge_v, input_precision=PRECISION) + bias_v[None, :]
            xm = tl.dot(h, tl.trans(g_m), input_precision=PRECISION)
            xm = collect(xm, member, PACK) + g_sum
            f = _column_factor(d, wu, path)
            # projections of the vectors' gradients on u and w, at the columns
            on_u = g_x * ux + g_y * uy + g_z * uz
            on_w = g_x * wx + g_y * wy + g_z * wz
            p_o = _to_columns(on_u, 4 * HP, HP)
            p_v = tl.where(path == 1, _to_columns(on_w, 8 * HP, HP), _to_columns(on_u, 8 * HP, HP))
            # attention weights
            ga = sum_paths(p_v * f * xv, HP) + sum_paths(p_o * xo + _mix_factor(d, wu, x) * xm, HP)
            heads = tl.arange(0, HP)[None, :]
            at = (chunk.to(tl.int64) * n + e)[:, None] * HEADS + heads
            tl.store(g_weights + at, ga, mask=valid[:, None] & (heads < HEADS))
            # vectors
            along_w = tl.where(path == 1, a8 * xv, 0.0)
            s_u = _per_output(a8 * f * xv - along_w, HP) + _per_output(a4 * xo, HP)
            s_w = _per_output(along_w, HP)
            at = chunk.to(tl.int64) * 8 * n + e
            tl.store(g_feature + at + 2 * n, total(s_u * g_x, axis=1), mask=valid)
            tl.store(g_feature + at + 3 * n, total(s_u * g_y, axis=1), mask=valid)
            tl.store(g_feature + at + 4 * n, total(s_u * g_z, axis=1), mask=valid)
            tl.store(g_feature + at + 5 * n, total(s_w * g_x, axis=1), mask=valid)
            tl.store(g_feature + at + 6 * n, total(s_w * g_y, axis=1), mask=valid)
            tl.store(g_feature + at + 7 * n, total(s_w * g_z, axis=1), mask=valid)
            # the hidden layer
            y_v = a8 * f * p_v
            y_o = spread(tl.where(x < 2, a4 * p_o, 0.0), member, PACK)
            gx = tl.dot(y_v, tl.trans(edge_v), input_precision=PRECISION)
            gx = tl.dot(y_o, tl.trans(own_v), gx, input_precision=PRECISION)
            gx = tl.dot(mix_s, g_m, gx, input_precision=PRECISION) * h_slope
            # d and w.u
            xv, xm = a8 * p_v * xv, a4 * xm
            g_d = total(slope * tl.dot(gx, tl.trans(inner), input_precision=PRECISION), axis=1)
            g_d += total(tl.where(path == 0, xv, 0.0), axis=1)
            g_d += total(tl.where(x == 1, xm, 0.0), axis=1)
            g_wu = total(tl.where(path == 2, xv, 0.0), axis=1)
            g_wu += total(tl.where(x == 2, xm, 0.0), axis=1)
            tl.store(g_feature + at, g_d, mask=valid)
            tl.store(g_feature + at + n, g_wu, mask=valid)
            # the weights
            ht = tl.trans(h)
            sum_edge = tl.dot(ht, y_v, sum_edge, input_precision=PRECISION)
            sum_own = tl.dot(ht, y_o, sum_own, input_precision=PRECISION)
            sum_mean = tl.dot(tl.trans(mix_s), h, sum_mean, input_precision=PRECISION)
            sum_layer = tl.dot(tl.trans(g), gx, sum_layer, input_precision=PRECISION)
            sum_bias += tl.sum(y_v, axis=0)
            sum_own_bias += tl.sum(y_o, axis=0)
            sum_mix += sum_rows(mix, SLOT, PACK)
            sum_shift += sum_rows(gx, SLOT, PACK)
            t += SLOT
        tl.store(g_own + at_own, sum_own, mask=here_own[None, :] & real[:, None])
        tl.store(g_own + at_bias, sum_own_bias, mask=here_own & lead)
        tl.store(mean + at_mean, sum_mean, mask=here_mean[:, None] & real[None, :])
        i = (group * PACK + tl.arange(0, PACK))[:, None]
        write = (first + i < last) & (head < HEADS) & (x < 3) & lead[:, None]
        tl.store(sums + (head * count[:, None] + i) * 3 + x, sum_mix, mask=write)
        tl.store(g_offset + (first + i).to(tl.int64) * HIDDEN + k[None, :], sum_shift,
                 mask=(first + i < last) & real[None, :])  # fmt: skip
        group += tl.num_programs(0)
    part = tl.program_id(0).to(tl.int64) * (HIDDEN + 1) * EDGE
    tl.store(g_edge + part + k[:, None] * EDGE + cv[None, :], sum_edge,
             mask=real[:, None] & (cv < EDGE)[None, :])  # fmt: skip
    tl.store(g_edge + part + HIDDEN * EDGE + cv, sum_bias, mask=(cv < EDGE) & lead)
    part = tl.program_id(0).to(tl.int64) * BASIS * HIDDEN
    tl.store(g_layer + part + b[:, None] * HIDDEN + k[None, :], sum_layer,
             mask=(b < BASIS)[:, None] & real[None, :])  # fmt: skip
