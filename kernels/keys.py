"""Kernels of the logits and of their gradients.

A program has one chunk of KB hidden units (second axis of the grid) and walks over groups of PACK
centres (first axis), tile by tile. Logits, and gradients per edge, are partial sums over chunks,
[chunks, edges, ..], that a later kernel adds up; gradients of shared weights stay in the program's
registers over its whole walk and are partial sums over programs. No number depends on the order in
which programs run.

Columns, C of them a head-and-channel, padded to CP = channels * HP with the head running fastest:

    own   [HIDDEN + 1, CP + 2 HP]    of a centre: scalar key; times d, w.u
    edge  [HIDDEN + 1, 2 CP + 4 HP]  of the model: d and w.u times scalar key; d^2, d (w.u), |w|^2,
                                     (w.u)^2

Each column's product with the hidden layer is multiplied by a factor of the edge (the query of the
neighbour, d, w.u, ..) and added to its head. The last row is the bias, added by the first chunk.
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
    tile_rows,
    total,
    unstack,
)

_INTEGERS = ["first", "last", "edges"]


@triton.jit
def _tail_factor(d, wu, ww, path):
    """What multiplies the columns of the tail [rows, 4 HP]."""
    d, wu, ww = d[:, None], wu[:, None], ww[:, None]
    return tl.where(path < 2, d * tl.where(path == 0, d, wu), tl.where(path == 2, ww, wu * wu))


@triton.jit(do_not_specialize=_INTEGERS)
def logits(
    row_ptr, neighbor, feature, query, own, edge, layer, offset, out,
    feature_t, query_t, own_t, offset_t, out_t,
    first, last, edges, inv_step,
    HIDDEN: tl.constexpr, BASIS: tl.constexpr, STRIDE: tl.constexpr, HEADS: tl.constexpr,
    HP: tl.constexpr, CP: tl.constexpr, KB: tl.constexpr, BP: tl.constexpr, SLOT: tl.constexpr,
    PACK: tl.constexpr, TANGENT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Logits [chunks, edges, heads] of the centres first .. last; with TANGENT tangents too."""
    OWN: tl.constexpr = CP + 2 * HP
    EDGE: tl.constexpr = 2 * CP + 4 * HP
    chunk = tl.program_id(1)
    lead = tl.zeros([1], tl.int32) + chunk == 0  # the chunk that adds biases
    n = tl.zeros([1], tl.int64) + edges
    k = chunk * KB + tl.arange(0, KB)
    real = k < HIDDEN
    b = tl.arange(0, BP)
    c = tl.arange(0, CP)
    cq = tl.arange(0, 2 * CP)
    ct = tl.arange(0, 4 * HP)
    head = tl.arange(0, HP)
    member = membership(SLOT, PACK)
    bias_q = tl.load(edge + HIDDEN * EDGE + cq, mask=lead, other=0.0)
    bias_t = tl.load(edge + HIDDEN * EDGE + 2 * CP + ct, mask=lead, other=0.0)
    group = tl.program_id(0)
    while first + group * PACK < last:
        centre, inside, begin, end = tile_rows(row_ptr, group, first, last, SLOT, PACK)
        longest = tl.max(end - begin)
        # the centres' own columns
        start = tl.where(inside, centre - first, 0).to(tl.int64)[:, None] * ((HIDDEN + 1) * OWN)
        start += HIDDEN * OWN
        once = inside[:, None] & lead[:, None]
        own_bias = tl.load(own + start + c[None, :], mask=once, other=0.0)
        own_bias_t = tl.load(own + start + CP + ct[None, :], mask=once & (ct < 2 * HP)[None, :],
                             other=0.0)  # fmt: skip
        local, column, here_c = packed_centres(group, first, last, CP, PACK)
        at_c = (local * ((HIDDEN + 1) * OWN) + column)[None, :] + k[:, None] * OWN
        local, column, here_s = packed_centres(group, first, last, 4 * HP, PACK)
        here_s = here_s & (column < 2 * HP)
        at_s = (local * ((HIDDEN + 1) * OWN) + column)[None, :] + k[:, None] * OWN + CP
        if TANGENT:
            own_bias_d = tl.load(own_t + start + c[None, :], mask=once, other=0.0)
            own_bias_t_d = tl.load(own_t + start + CP + ct[None, :],
                                   mask=once & (ct < 2 * HP)[None, :], other=0.0)  # fmt: skip
        row = centre.to(tl.int64)[:, None] * HIDDEN + k[None, :]
        shift = tl.load(offset + row, mask=inside[:, None] & real[None, :], other=0.0)
        if TANGENT:
            shift_d = tl.load(offset_t + row, mask=inside[:, None] & real[None, :], other=0.0)
        t = 0
        while t < longest:
            jump = tl.minimum(t, 0)  # 0: see .attention
            inner = tl.load(layer + jump + k[None, :] * STRIDE + b[:, None],
                            mask=real[None, :] & (b < BASIS)[:, None], other=0.0)  # fmt: skip
            edge_q = tl.load(
                edge + jump + k[:, None] * EDGE + cq[None, :], mask=real[:, None], other=0.0
            )
            edge_t = tl.load(
                edge + jump + k[:, None] * EDGE + 2 * CP + ct[None, :],
                mask=real[:, None],
                other=0.0,
            )
            own_c = tl.load(own + jump + at_c, mask=here_c[None, :] & real[:, None], other=0.0)
            own_s = tl.load(own + jump + at_s, mask=here_s[None, :] & real[:, None], other=0.0)
            e = begin + t
            valid = e < end
            d = tl.load(feature + e, mask=valid, other=1.0)
            wu = tl.load(feature + n + e, mask=valid, other=0.0)
            ww = tl.load(feature + 2 * n + e, mask=valid, other=0.0)
            j = tl.load(neighbor + e, mask=valid, other=0)[:, None] * CP
            g, slope = basis(d, inv_step, BP)
            if TANGENT:
                d_d = tl.load(feature_t + e, mask=valid, other=0.0)
                wu_d = tl.load(feature_t + n + e, mask=valid, other=0.0)
                ww_d = tl.load(feature_t + 2 * n + e, mask=valid, other=0.0)
                g = stack(g, slope * d_d[:, None])
            z = tl.dot(g, inner, input_precision=PRECISION)
            if TANGENT:
                z, z_d = unstack(z)
            h, h_slope = gelu(z + shift)
            hh = h
            if TANGENT:
                hh = stack(h, h_slope * (z_d + shift_d))
            # one group of columns after the other, so that few are alive at a time
            f = tl.load(query + j + c[None, :], mask=valid[:, None], other=0.0)
            x = tl.dot(hh, own_c, input_precision=PRECISION)
            if TANGENT:
                x, x_d = unstack(x)
                f_d = tl.load(query_t + j + c[None, :], mask=valid[:, None], other=0.0)
                own_d = tl.load(
                    own_t + jump + at_c, mask=here_c[None, :] & real[:, None], other=0.0
                )
                x_d = collect(tl.dot(h, own_d, x_d, input_precision=PRECISION), member, PACK)
            x = collect(x, member, PACK) + own_bias
            y = sum_paths(f * x, HP)
            if TANGENT:
                y_d = sum_paths(f_d * x + f * (x_d + own_bias_d), HP)

            q = tl.load(query + j + (cq % CP)[None, :], mask=valid[:, None], other=0.0)
            f = tl.where((cq < CP)[None, :], d[:, None], wu[:, None])
            x = tl.dot(hh, edge_q, input_precision=PRECISION)
            if TANGENT:
                x, x_d = unstack(x)
                q_d = tl.load(query_t + j + (cq % CP)[None, :], mask=valid[:, None], other=0.0)
                f_d = tl.where((cq < CP)[None, :], d_d[:, None], wu_d[:, None])
            x += bias_q[None, :]
            y += sum_paths(q * f * x, HP)
            if TANGENT:
                y_d += sum_paths((q_d * f + q * f_d) * x + q * f * x_d, HP)

            path = (ct // HP)[None, :]
            f = tl.where(path == 0, d[:, None], wu[:, None])
            x = tl.dot(hh, own_s, input_precision=PRECISION)
            if TANGENT:
                x, x_d = unstack(x)
                f_d = tl.where(path == 0, d_d[:, None], wu_d[:, None])
                own_s_d = tl.load(
                    own_t + jump + at_s, mask=here_s[None, :] & real[:, None], other=0.0
                )
                x_d = collect(tl.dot(h, own_s_d, x_d, input_precision=PRECISION), member, PACK)
            x = collect(x, member, PACK) + own_bias_t
            y += sum_paths(f * x, HP)
            if TANGENT:
                y_d += sum_paths(f_d * x + f * (x_d + own_bias_t_d), HP)

            f = _tail_factor(d, wu, ww, path)
            x = tl.dot(hh, edge_t, input_precision=PRECISION)
            if TANGENT:
                x, x_d = unstack(x)
                f_d = tl.where(
                    path < 2,
                    tl.where(path == 0, (2 * d * d_d)[:, None], (d_d * wu + d * wu_d)[:, None]),
                    tl.where(path == 2, ww_d[:, None], (2 * wu * wu_d)[:, None]),
                )
            x += bias_t[None, :]
            y += sum_paths(f * x, HP)
            if TANGENT:
                y_d += sum_paths(f_d * x + f * x_d, HP)

            at = (chunk.to(tl.int64) * n + e)[:, None] * HEADS + head[None, :]
            write = valid[:, None] & (head < HEADS)[None, :]
            tl.store(out + at, y, mask=write)
            if TANGENT:
                tl.store(out_t + at, y_d, mask=write)
            t += SLOT
        group += tl.num_programs(0)


@triton.jit(do_not_specialize=_INTEGERS)
def logits_backward(
    row_ptr, neighbor, feature, query, own, edge, layer, offset, g_logits,
    g_query, g_feature, g_own, g_offset, g_edge, g_layer,
    first, last, edges, inv_step,
    HIDDEN: tl.constexpr, BASIS: tl.constexpr, STRIDE: tl.constexpr, HEADS: tl.constexpr,
    HP: tl.constexpr, CP: tl.constexpr, KB: tl.constexpr, BP: tl.constexpr, SLOT: tl.constexpr,
    PACK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients from those of the logits [edges, heads].

    g_query [chunks, edges, CP], g_feature [chunks, 3, edges], g_own as own, g_offset as offset,
    g_edge [programs, HIDDEN + 1, 2 CP + 4 HP], g_layer [programs, BASIS, HIDDEN].
    """
    OWN: tl.constexpr = CP + 2 * HP
    EDGE: tl.constexpr = 2 * CP + 4 * HP
    chunk = tl.program_id(1)
    lead = tl.zeros([1], tl.int32) + chunk == 0  # the chunk that adds biases
    n = tl.zeros([1], tl.int64) + edges
    k = chunk * KB + tl.arange(0, KB)
    real = k < HIDDEN
    b = tl.arange(0, BP)
    c = tl.arange(0, CP)
    cq = tl.arange(0, 2 * CP)
    ct = tl.arange(0, 4 * HP)
    member = membership(SLOT, PACK)
    bias_q = tl.load(edge + HIDDEN * EDGE + cq, mask=lead, other=0.0)
    bias_t = tl.load(edge + HIDDEN * EDGE + 2 * CP + ct, mask=lead, other=0.0)
    sum_q = tl.zeros([KB, 2 * CP], tl.float32)
    sum_t = tl.zeros([KB, 4 * HP], tl.float32)
    sum_bias_q = tl.zeros([2 * CP], tl.float32)
    sum_bias_t = tl.zeros([4 * HP], tl.float32)
    sum_layer = tl.zeros([BP, KB], tl.float32)
    group = tl.program_id(0)
    while first + group * PACK < last:
        centre, inside, begin, end = tile_rows(row_ptr, group, first, last, SLOT, PACK)
        longest = tl.max(end - begin)
        start = tl.where(inside, centre - first, 0).to(tl.int64)[:, None] * ((HIDDEN + 1) * OWN)
        start += HIDDEN * OWN
        once = inside[:, None] & lead[:, None]
        own_bias = tl.load(own + start + c[None, :], mask=once, other=0.0)
        own_bias_t = tl.load(own + start + CP + ct[None, :], mask=once & (ct < 2 * HP)[None, :],
                             other=0.0)  # fmt: skip
        local, column, here_c = packed_centres(group, first, last, CP, PACK)
        at_c = (local * ((HIDDEN + 1) * OWN) + column)[None, :] + k[:, None] * OWN
        bias_c = local * ((HIDDEN + 1) * OWN) + HIDDEN * OWN + column
        local, column, here_s = packed_centres(group, first, last, 4 * HP, PACK)
        here_s = here_s & (column < 2 * HP)
        at_s = (local * ((HIDDEN + 1) * OWN) + column)[None, :] + k[:, None] * OWN + CP
        bias_s = local * ((HIDDEN + 1) * OWN) + HIDDEN * OWN + CP + column
        row = centre.to(tl.int64)[:, None] * HIDDEN + k[None, :]
        shift = tl.load(offset + row, mask=inside[:, None] & real[None, :], other=0.0)
        sum_c = tl.zeros([KB, PACK * CP], tl.float32)
        sum_s = tl.zeros([KB, PACK * 4 * HP], tl.float32)
        sum_bias_c = tl.zeros([PACK * CP], tl.float32)
        sum_bias_s = tl.zeros([PACK * 4 * HP], tl.float32)
        sum_shift = tl.zeros([PACK, KB], tl.float32)
        t = 0
        while t < longest:
            jump = tl.minimum(t, 0)  # 0: see .attention
            inner = tl.load(layer + jump + k[None, :] * STRIDE + b[:, None],
                            mask=real[None, :] & (b < BASIS)[:, None], other=0.0)  # fmt: skip
            edge_q = tl.load(
                edge + jump + k[:, None] * EDGE + cq[None, :], mask=real[:, None], other=0.0
            )
            edge_t = tl.load(
                edge + jump + k[:, None] * EDGE + 2 * CP + ct[None, :],
                mask=real[:, None],
                other=0.0,
            )
            own_c = tl.load(own + jump + at_c, mask=here_c[None, :] & real[:, None], other=0.0)
            own_s = tl.load(own + jump + at_s, mask=here_s[None, :] & real[:, None], other=0.0)
            e = begin + t
            valid = e < end
            d = tl.load(feature + e, mask=valid, other=1.0)
            wu = tl.load(feature + n + e, mask=valid, other=0.0)
            ww = tl.load(feature + 2 * n + e, mask=valid, other=0.0)
            j = tl.load(neighbor + e, mask=valid, other=0)[:, None] * CP
            g, slope = basis(d, inv_step, BP)
            h, h_slope = gelu(tl.dot(g, inner, input_precision=PRECISION) + shift)
            at = e[:, None] * HEADS
            gl = tl.load(g_logits + at + (c % HP)[None, :],
                         mask=valid[:, None] & (c % HP < HEADS)[None, :], other=0.0)  # fmt: skip
            gl2 = tl.load(g_logits + at + (cq % HP)[None, :],
                          mask=valid[:, None] & (cq % HP < HEADS)[None, :], other=0.0)  # fmt: skip
            gl4 = tl.load(g_logits + at + (ct % HP)[None, :],
                          mask=valid[:, None] & (ct % HP < HEADS)[None, :], other=0.0)  # fmt: skip
            q = tl.load(query + j + c[None, :], mask=valid[:, None], other=0.0)
            q2 = tl.load(query + j + (cq % CP)[None, :], mask=valid[:, None], other=0.0)
            f2 = tl.where((cq < CP)[None, :], d[:, None], wu[:, None])
            path = (ct // HP)[None, :]
            # gradients of the columns
            y = gl * q
            y2 = gl2 * q2 * f2
            y4 = gl4 * _tail_factor(d, wu, ww, path)
            ys = spread(y, member, PACK)
            yo = spread(gl4 * tl.where(path == 0, d[:, None],
                                       tl.where(path == 1, wu[:, None], 0.0)),
                        member, PACK)  # fmt: skip
            # beside what they sum: at the end of the loop they spill registers
            sum_bias_q += tl.sum(y2, axis=0)
            sum_bias_t += tl.sum(y4, axis=0)
            sum_bias_c += tl.sum(ys, axis=0)
            sum_bias_s += tl.sum(yo, axis=0)
            # the columns, for the gradients of their factors
            x = collect(tl.dot(h, own_c, input_precision=PRECISION), member, PACK) + own_bias
            x2 = tl.dot(h, edge_q, input_precision=PRECISION) + bias_q[None, :]
            x4 = tl.dot(h, edge_t, input_precision=PRECISION) + bias_t[None, :]
            xo = collect(tl.dot(h, own_s, input_precision=PRECISION), member, PACK) + own_bias_t
            gq = gl * (x + sum_paths(f2 * x2, CP))
            at = (chunk.to(tl.int64) * n + e)[:, None] * CP + c[None, :]
            tl.store(g_query + at, gq, mask=valid[:, None])
            x2 = gl2 * q2 * x2
            x4, xo = gl4 * x4, gl4 * xo
            g_d = total(tl.where((cq < CP)[None, :], x2, 0.0), axis=1)
            g_d += total(
                tl.where(path == 0, xo + 2 * d[:, None] * x4,
                         tl.where(path == 1, wu[:, None] * x4, 0.0)), axis=1)  # fmt: skip
            g_wu = total(tl.where((cq < CP)[None, :], 0.0, x2), axis=1)
            g_wu += total(
                tl.where(path == 1, xo + d[:, None] * x4,
                         tl.where(path == 3, 2 * wu[:, None] * x4, 0.0)), axis=1)  # fmt: skip
            g_ww = total(tl.where(path == 2, x4, 0.0), axis=1)
            # the hidden layer
            gx = tl.dot(ys, tl.trans(own_c), input_precision=PRECISION)
            gx = tl.dot(y2, tl.trans(edge_q), gx, input_precision=PRECISION)
            gx = tl.dot(y4, tl.trans(edge_t), gx, input_precision=PRECISION)
            gx = tl.dot(yo, tl.trans(own_s), gx, input_precision=PRECISION) * h_slope
            g_d += total(slope * tl.dot(gx, tl.trans(inner), input_precision=PRECISION), axis=1)
            at = chunk.to(tl.int64) * 3 * n + e
            tl.store(g_feature + at, g_d, mask=valid)
            tl.store(g_feature + at + n, g_wu, mask=valid)
            tl.store(g_feature + at + 2 * n, g_ww, mask=valid)
            # the weights
            ht = tl.trans(h)
            sum_q = tl.dot(ht, y2, sum_q, input_precision=PRECISION)
            sum_t = tl.dot(ht, y4, sum_t, input_precision=PRECISION)
            sum_c = tl.dot(ht, ys, sum_c, input_precision=PRECISION)
            sum_s = tl.dot(ht, yo, sum_s, input_precision=PRECISION)
            sum_layer = tl.dot(tl.trans(g), gx, sum_layer, input_precision=PRECISION)
            sum_shift += tl.sum(tl.reshape(gx, [PACK, SLOT, KB]), axis=1)
            t += SLOT
        tl.store(g_own + at_c, sum_c, mask=here_c[None, :] & real[:, None])
        tl.store(g_own + at_s, sum_s, mask=here_s[None, :] & real[:, None])
        tl.store(g_own + bias_c, sum_bias_c, mask=here_c & lead)
        tl.store(g_own + bias_s, sum_bias_s, mask=here_s & lead)
        i = first + group * PACK + tl.arange(0, PACK)
        tl.store(g_offset + i.to(tl.int64)[:, None] * HIDDEN + k[None, :], sum_shift,
                 mask=(i < last)[:, None] & real[None, :])  # fmt: skip
        group += tl.num_programs(0)
    part = tl.program_id(0).to(tl.int64) * (HIDDEN + 1) * EDGE
    tl.store(g_edge + part + k[:, None] * EDGE + cq[None, :], sum_q, mask=real[:, None])
    tl.store(g_edge + part + k[:, None] * EDGE + 2 * CP + ct[None, :], sum_t, mask=real[:, None])
    tl.store(g_edge + part + HIDDEN * EDGE + cq, sum_bias_q, mask=lead)
    tl.store(g_edge + part + HIDDEN * EDGE + 2 * CP + ct, sum_bias_t,
             mask=lead)  # fmt: skip
    part = tl.program_id(0).to(tl.int64) * BASIS * HIDDEN
    tl.store(g_layer + part + b[:, None] * HIDDEN + k[None, :], sum_layer,
             mask=(b < BASIS)[:, None] & real[None, :])  # fmt: skip
