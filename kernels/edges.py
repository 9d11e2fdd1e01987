"""Kernels of an edge's own numbers: geometry, softmax over a centre's edges, and their gradients.

They move a few dozen bytes an edge and compute next to nothing: memory bounds them, and all of them
together take a few per cent of a block. Per-edge numbers lie as one array a quantity, [9, edges]:
d, w.u, |w|^2, u (3), w (3), so that neighbouring threads read neighbouring addresses.
"""

import triton
import triton.language as tl

DISTANCE, RADIAL, SPEED = 0, 1, 2  # d, w.u and |w|^2 in the array of geometry
FEATURES = 9

_INTEGERS = ["first", "last", "edges"]


@triton.jit
def _edge_vector(fixed, moved, e, i, j, valid, X: tl.constexpr):
    """Component X of an edge's vector after its ends have moved; `fixed` None for tangents."""
    x = tl.load(moved + j * 3 + X, mask=valid, other=0.0)
    x -= tl.load(moved + i * 3 + X, mask=valid, other=0.0)
    if fixed is not None:
        x += tl.load(fixed + e * 3 + X, mask=valid, other=1.0)
    return x


@triton.jit(do_not_specialize=_INTEGERS)
def geometry(
    r, w, centre, neighbor, dx, dv, feature,
    dx_t, dv_t, feature_t,
    edges,
    BLOCK: tl.constexpr, TANGENT: tl.constexpr,
):  # fmt: skip
    """d, w.u, |w|^2, u and w of every edge; with TANGENT their tangents too."""
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    n = tl.zeros([1], tl.int64) + edges
    valid = e < n
    i = tl.load(centre + e, mask=valid, other=0)
    j = tl.load(neighbor + e, mask=valid, other=0)
    rx = _edge_vector(r, dx, e, i, j, valid, 0)
    ry = _edge_vector(r, dx, e, i, j, valid, 1)
    rz = _edge_vector(r, dx, e, i, j, valid, 2)
    wx = _edge_vector(w, dv, e, i, j, valid, 0)
    wy = _edge_vector(w, dv, e, i, j, valid, 1)
    wz = _edge_vector(w, dv, e, i, j, valid, 2)
    rr = rx * rx + ry * ry + rz * rz
    inv = 1 / tl.sqrt(tl.maximum(rr, 1e-20))
    d = tl.sqrt(tl.maximum(rr, 1e-20))
    ux, uy, uz = rx * inv, ry * inv, rz * inv
    tl.store(feature + e, d, mask=valid)
    tl.store(feature + n + e, wx * ux + wy * uy + wz * uz, mask=valid)
    tl.store(feature + 2 * n + e, wx * wx + wy * wy + wz * wz, mask=valid)
    tl.store(feature + 3 * n + e, ux, mask=valid)
    tl.store(feature + 4 * n + e, uy, mask=valid)
    tl.store(feature + 5 * n + e, uz, mask=valid)
    tl.store(feature + 6 * n + e, wx, mask=valid)
    tl.store(feature + 7 * n + e, wy, mask=valid)
    tl.store(feature + 8 * n + e, wz, mask=valid)
    if TANGENT:
        ax = _edge_vector(None, dx_t, e, i, j, valid, 0)
        ay = _edge_vector(None, dx_t, e, i, j, valid, 1)
        az = _edge_vector(None, dx_t, e, i, j, valid, 2)
        bx = _edge_vector(None, dv_t, e, i, j, valid, 0)
        by = _edge_vector(None, dv_t, e, i, j, valid, 1)
        bz = _edge_vector(None, dv_t, e, i, j, valid, 2)
        d_t = tl.where(rr >= 1e-20, ux * ax + uy * ay + uz * az, 0.0)
        ux_t, uy_t, uz_t = (ax - ux * d_t) * inv, (ay - uy * d_t) * inv, (az - uz * d_t) * inv
        wu_t = bx * ux + by * uy + bz * uz + wx * ux_t + wy * uy_t + wz * uz_t
        tl.store(feature_t + e, d_t, mask=valid)
        tl.store(feature_t + n + e, wu_t, mask=valid)
        tl.store(feature_t + 2 * n + e, 2 * (wx * bx + wy * by + wz * bz), mask=valid)
        tl.store(feature_t + 3 * n + e, ux_t, mask=valid)
        tl.store(feature_t + 4 * n + e, uy_t, mask=valid)
        tl.store(feature_t + 5 * n + e, uz_t, mask=valid)
        tl.store(feature_t + 6 * n + e, bx, mask=valid)
        tl.store(feature_t + 7 * n + e, by, mask=valid)
        tl.store(feature_t + 8 * n + e, bz, mask=valid)


@triton.jit
def _partial_sums(partial, feature: tl.constexpr, count: tl.constexpr, n, e, valid,
                  CHUNKS: tl.constexpr):  # fmt: skip
    x = tl.load(partial + feature * n + e, mask=valid, other=0.0)
    for c in tl.static_range(1, CHUNKS):
        x += tl.load(partial + (c * count + feature) * n + e, mask=valid, other=0.0)
    return x


@triton.jit(do_not_specialize=_INTEGERS)
def geometry_backward(
    feature, from_value, from_key, from_softmax, g_r, g_w,
    edges,
    VALUE_CHUNKS: tl.constexpr, KEY_CHUNKS: tl.constexpr, BLOCK: tl.constexpr,
    ENVELOPE: tl.constexpr,
):  # fmt: skip
    """Gradients of r and w [edges, 3] from those of d, w.u, |w|^2, u and w."""
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    n = tl.zeros([1], tl.int64) + edges
    valid = e < n
    d = tl.load(feature + e, mask=valid, other=1.0)
    ux = tl.load(feature + 3 * n + e, mask=valid, other=0.0)
    uy = tl.load(feature + 4 * n + e, mask=valid, other=0.0)
    uz = tl.load(feature + 5 * n + e, mask=valid, other=0.0)
    wx = tl.load(feature + 6 * n + e, mask=valid, other=0.0)
    wy = tl.load(feature + 7 * n + e, mask=valid, other=0.0)
    wz = tl.load(feature + 8 * n + e, mask=valid, other=0.0)
    g_d = _partial_sums(from_value, 0, 8, n, e, valid, VALUE_CHUNKS)
    g_wu = _partial_sums(from_value, 1, 8, n, e, valid, VALUE_CHUNKS)
    gux = _partial_sums(from_value, 2, 8, n, e, valid, VALUE_CHUNKS)
    guy = _partial_sums(from_value, 3, 8, n, e, valid, VALUE_CHUNKS)
    guz = _partial_sums(from_value, 4, 8, n, e, valid, VALUE_CHUNKS)
    gwx = _partial_sums(from_value, 5, 8, n, e, valid, VALUE_CHUNKS)
    gwy = _partial_sums(from_value, 6, 8, n, e, valid, VALUE_CHUNKS)
    gwz = _partial_sums(from_value, 7, 8, n, e, valid, VALUE_CHUNKS)
    g_d += _partial_sums(from_key, 0, 3, n, e, valid, KEY_CHUNKS)
    g_wu += _partial_sums(from_key, 1, 3, n, e, valid, KEY_CHUNKS)
    g_ww = _partial_sums(from_key, 2, 3, n, e, valid, KEY_CHUNKS)
    if ENVELOPE:
        g_d += tl.load(from_softmax + e, mask=valid, other=0.0)
    gux, guy, guz = gux + g_wu * wx, guy + g_wu * wy, guz + g_wu * wz
    gwx, gwy, gwz = gwx + g_wu * ux, gwy + g_wu * uy, gwz + g_wu * uz
    inv = 1 / d
    # where d rests on its floor it is no function of r: |u| < 1 there
    moves = ux * ux + uy * uy + uz * uz > 0.5
    g_d = tl.where(moves, g_d - (gux * ux + guy * uy + guz * uz) * inv, 0.0)
    tl.store(g_r + e * 3, gux * inv + g_d * ux, mask=valid)
    tl.store(g_r + e * 3 + 1, guy * inv + g_d * uy, mask=valid)
    tl.store(g_r + e * 3 + 2, guz * inv + g_d * uz, mask=valid)
    tl.store(g_w + e * 3, gwx + 2 * g_ww * wx, mask=valid)
    tl.store(g_w + e * 3 + 1, gwy + 2 * g_ww * wy, mask=valid)
    tl.store(g_w + e * 3 + 2, gwz + 2 * g_ww * wz, mask=valid)


@triton.jit(do_not_specialize=_INTEGERS)
def gather(
    row_ptr, rev_ptr, rev_edge, g_r, g_w, g_edge_query, g_dx, g_dv, g_query,
    edges,
    CP: tl.constexpr, CHUNKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of one atom: the edges that end in it less those that start, and its query's gradient."""
    i = tl.program_id(0)
    n = tl.zeros([1], tl.int64) + edges
    x = tl.arange(0, 4)[None, :]
    c = tl.arange(0, CP)[None, :]
    slot = tl.arange(0, BLOCK)[:, None]
    rx = tl.zeros([BLOCK, 4], tl.float32)
    wx = tl.zeros([BLOCK, 4], tl.float32)
    q = tl.zeros([BLOCK, CP], tl.float32)
    begin = tl.load(rev_ptr + i)
    end = tl.load(rev_ptr + i + 1)
    while begin < end:
        valid = begin + slot < end
        e = tl.load(rev_edge + begin + slot, mask=valid, other=0)
        rx += tl.load(g_r + e * 3 + x, mask=valid & (x < 3), other=0.0)
        wx += tl.load(g_w + e * 3 + x, mask=valid & (x < 3), other=0.0)
        for k in tl.static_range(CHUNKS):
            q += tl.load(g_edge_query + (k * n[:, None] + e) * CP + c, mask=valid, other=0.0)
        begin += BLOCK
    begin = tl.load(row_ptr + i)
    end = tl.load(row_ptr + i + 1)
    while begin < end:
        e = begin + slot
        rx -= tl.load(g_r + e * 3 + x, mask=(e < end) & (x < 3), other=0.0)
        wx -= tl.load(g_w + e * 3 + x, mask=(e < end) & (x < 3), other=0.0)
        begin += BLOCK
    one = tl.arange(0, 4)
    tl.store(g_dx + i.to(tl.int64) * 3 + one, tl.sum(rx, axis=0), mask=one < 3)
    tl.store(g_dv + i.to(tl.int64) * 3 + one, tl.sum(wx, axis=0), mask=one < 3)
    tl.store(g_query + i.to(tl.int64) * CP + tl.arange(0, CP), tl.sum(q, axis=0))


@triton.jit
def _envelope(d, inv_cutoff):
    """1 - 10 x^3 + 15 x^4 - 6 x^5 with x = d / cutoff, zero beyond 1; and its derivative.

    In factors, so that it never rounds below 0: the weight of a lone neighbour is f exp(l) over
    itself.
    """
    x = tl.minimum(d * inv_cutoff, 1.0)
    rest = 1 - x
    slope = -30 * inv_cutoff * x * x * rest * rest
    return rest * rest * rest * (1 + 3 * x * (1 + 2 * x)), slope


@triton.jit
def _head_sums(partial, n, e, head, valid, HEADS: tl.constexpr, CHUNKS: tl.constexpr, other):
    """Sum over the chunks of hidden units of a number per edge and head."""
    x = tl.load(partial + e * HEADS + head, mask=valid, other=other)
    for c in tl.static_range(1, CHUNKS):
        x += tl.load(partial + (c * n + e) * HEADS + head, mask=valid, other=0.0)
    return x


@triton.jit
def _softmax_tile(row_ptr, first, last, CENTRES: tl.constexpr, SLOT: tl.constexpr,
                  HP: tl.constexpr):  # fmt: skip
    """First edge [CENTRES, SLOT, 1] and end of the edges [CENTRES, 1, 1] of each centre; heads."""
    centre = first + tl.program_id(0) * CENTRES + tl.arange(0, CENTRES)
    inside = centre < last
    begin = tl.load(row_ptr + centre, mask=inside, other=0)[:, None, None]
    end = tl.load(row_ptr + centre + 1, mask=inside, other=0)[:, None, None]
    return begin + tl.arange(0, SLOT)[None, :, None], end, tl.arange(0, HP)[None, None, :]


@triton.jit(do_not_specialize=_INTEGERS)
def softmax(
    row_ptr, distance, logits, weights,
    distance_t, logits_t, weights_t,
    first, last, edges, inv_cutoff,
    HEADS: tl.constexpr, HP: tl.constexpr, CHUNKS: tl.constexpr, CENTRES: tl.constexpr,
    SLOT: tl.constexpr, ENVELOPE: tl.constexpr, TANGENT: tl.constexpr,
):  # fmt: skip
    """Attention weights [edges, heads] of logits [chunks, edges, heads], summed over the chunks."""
    begin, end, head = _softmax_tile(row_ptr, first, last, CENTRES, SLOT, HP)
    n = tl.zeros([1, 1, 1], tl.int64) + edges
    longest = tl.max(tl.max(tl.max(end - begin, axis=2), axis=1), axis=0)
    top = tl.full([CENTRES, 1, HP], -1e30, tl.float32)
    t = 0
    while t < longest:
        e = begin + t
        valid = (e < end) & (head < HEADS)
        x = _head_sums(logits, n, e, head, valid, HEADS, CHUNKS, -1e30)
        top = tl.maximum(top, tl.max(x, axis=1)[:, None, :])
        t += SLOT
    total = tl.zeros([CENTRES, 1, HP], tl.float32)
    total_t = tl.zeros([CENTRES, 1, HP], tl.float32)
    t = 0
    while t < longest:
        e = begin + t
        valid = (e < end) & (head < HEADS)
        x = _head_sums(logits, n, e, head, valid, HEADS, CHUNKS, -1e30)
        p = tl.where(valid, tl.exp(x - top), 0.0)
        if TANGENT:
            p_t = p * _head_sums(logits_t, n, e, head, valid, HEADS, CHUNKS, 0.0)
        if ENVELOPE:
            f, slope = _envelope(tl.load(distance + e, mask=e < end, other=0.0), inv_cutoff)
            if TANGENT:
                f_t = slope * tl.load(distance_t + e, mask=e < end, other=0.0)
                p_t = p_t * f + p * f_t
            p = p * f
        total += tl.sum(p, axis=1)[:, None, :]
        if TANGENT:
            total_t += tl.sum(p_t, axis=1)[:, None, :]
        t += SLOT
    # a centre without neighbours, or with all of them at the cutoff, divides 0 by the floor
    inv = 1 / tl.maximum(total, 1e-30)
    t = 0
    while t < longest:
        e = begin + t
        valid = (e < end) & (head < HEADS)
        x = _head_sums(logits, n, e, head, valid, HEADS, CHUNKS, -1e30)
        a = tl.where(valid, tl.exp(x - top), 0.0) * inv
        if TANGENT:
            a_t = a * _head_sums(logits_t, n, e, head, valid, HEADS, CHUNKS, 0.0)
        if ENVELOPE:
            f, slope = _envelope(tl.load(distance + e, mask=e < end, other=0.0), inv_cutoff)
            if TANGENT:
                f_t = slope * tl.load(distance_t + e, mask=e < end, other=0.0)
                a_t = (a_t * f + a * f_t - a * f * (total_t * inv)) * f + a * f * f_t
            a = a * f * f
        elif TANGENT:
            a_t -= a * (total_t * inv)
        tl.store(weights + e * HEADS + head, a, mask=valid)
        if TANGENT:
            tl.store(weights_t + e * HEADS + head, a_t, mask=valid)
        t += SLOT


@triton.jit(do_not_specialize=_INTEGERS)
def softmax_backward(
    row_ptr, distance, logits, g_weights, g_logits, g_distance,
    first, last, edges, inv_cutoff,
    HEADS: tl.constexpr, HP: tl.constexpr, CHUNKS: tl.constexpr, VALUE_CHUNKS: tl.constexpr,
    CENTRES: tl.constexpr, SLOT: tl.constexpr, ENVELOPE: tl.constexpr,
):  # fmt: skip
    """Gradients of logits [edges, heads] and, through the envelope, of distances [edges]."""
    begin, end, head = _softmax_tile(row_ptr, first, last, CENTRES, SLOT, HP)
    n = tl.zeros([1, 1, 1], tl.int64) + edges
    longest = tl.max(tl.max(tl.max(end - begin, axis=2), axis=1), axis=0)
    top = tl.full([CENTRES, 1, HP], -1e30, tl.float32)
    t = 0
    while t < longest:
        e = begin + t
        valid = (e < end) & (head < HEADS)
        x = _head_sums(logits, n, e, head, valid, HEADS, CHUNKS, -1e30)
        top = tl.maximum(top, tl.max(x, axis=1)[:, None, :])
        t += SLOT
    total = tl.zeros([CENTRES, 1, HP], tl.float32)
    mean = tl.zeros([CENTRES, 1, HP], tl.float32)  # of the gradient, under the weights
    t = 0
    while t < longest:
        e = begin + t
        valid = (e < end) & (head < HEADS)
        x = _head_sums(logits, n, e, head, valid, HEADS, CHUNKS, -1e30)
        g = _head_sums(g_weights, n, e, head, valid, HEADS, VALUE_CHUNKS, 0.0)
        p = tl.where(valid, tl.exp(x - top), 0.0)
        if ENVELOPE:
            f, slope = _envelope(tl.load(distance + e, mask=e < end, other=0.0), inv_cutoff)
            p, g = p * f, g * f
        total += tl.sum(p, axis=1)[:, None, :]
        mean += tl.sum(p * g, axis=1)[:, None, :]
        t += SLOT
    inv = 1 / tl.maximum(total, 1e-30)
    mean *= inv
    t = 0
    while t < longest:
        e = begin + t
        valid = (e < end) & (head < HEADS)
        x = _head_sums(logits, n, e, head, valid, HEADS, CHUNKS, -1e30)
        g = _head_sums(g_weights, n, e, head, valid, HEADS, VALUE_CHUNKS, 0.0)
        p = tl.where(valid, tl.exp(x - top), 0.0) * inv
        if ENVELOPE:
            # weights are f p with p = f exp(l) / sum f exp(l): f acts twice
            f, slope = _envelope(tl.load(distance + e, mask=e < end, other=0.0), inv_cutoff)
            g_f = tl.sum(p * (g * f + g * f - mean), axis=2)[:, :, None]
            tl.store(g_distance + e, g_f * slope, mask=e < end)
            tl.store(g_logits + e * HEADS + head, p * f * (g * f - mean), mask=valid)
        else:
            tl.store(g_logits + e * HEADS + head, p * (g - mean), mask=valid)
        t += SLOT
