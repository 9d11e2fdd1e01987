"""The attention block in plain torch: the factorised equations, and the only reference.

Notation of one block, centre i and neighbour j: r = R_j - R_i, w = v_j - v_i, d = |r|, u = r / d,
s = [species channels, time channels]. A key or value is a fully connected tensor product of
(s_i, -r/2, -w/2) with the spherical harmonics of u; its weights are an affine function of a hidden
layer H(d, time channels of i). Written out (e3nn's normalisation, l <= 1 on both sides),

    scalars:  p0 sum_u s_i[u] W[u]  -  p0 / (2 sqrt 3) (d W_r + (w.u) W_w)
    vectors:  A u + B w + G (w.u) u,   A = p1 sum_u s_i[u] W[u] + d A_r

with one weight per path and channel. Because everything is linear in H, the per-atom sums over s_i
are done once per atom and not once per edge, the query is folded into the key's weights, and
the softmax average is taken of H before the value weights act: nothing of the size of an edge's
weights is ever formed. The constant of the affine function rides along as a last hidden unit of 1.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .graph import Graph

# Centres are processed in slices of at most this many hidden values an intermediate (64 MB of
# float32), so that memory beyond state and neighbours does not grow with the system.
_SLICE = 1 << 24

# The Wigner symbol of 1 x 2 -> 1 along the axis, sqrt(3) / sqrt(30): what an l = 2 path weighs.
_KAPPA = 1 / math.sqrt(10)


class BlockWeights(NamedTuple):
    """Weights of a block, in the order of their paths and without normalisation.

    n, m: hidden units of key and value plus one, the last row holding the biases.
    S: scalars of the state. h: heads. q0, q1, c0, c1, v0, v1: scalar and vector channels of a
    head's query, key and value.
    """

    key_layers: list[tuple[Tensor, Tensor]]  # (weight [out, in], bias [out]); in: distance, time
    value_layers: list[tuple[Tensor, Tensor]]
    key_scalar: Tensor  # [n, S + 2, h, c0], paths: s, r, w
    key_vector: Tensor  # [n, S + 4, h, c1], paths: s, r x Y0, w x Y0, r x Y2, w x Y2
    value_scalar: Tensor  # [m, S + 2, h, v0]
    value_vector: Tensor  # [m, S + 4, h, v1]
    query_scalar: Tensor  # [S, h, q0]
    query_vector: Tensor  # [2, h, q1], paths: r, w
    bilinear_scalar: Tensor  # [q0, c0]
    bilinear_vector: Tensor  # [q1, c1]
    out_scalar: Tensor  # [h, v0, S]
    out_vector: Tensor  # [h, v1, 2], into position and velocity


def gaussian_basis(x: Tensor, cutoff: float, centres: int) -> Tensor:
    """Gaussians [..., centres] of x [...]: exp(-((x - mu_k) / step)^2) / 1.12, mu on [0, cutoff].

    The 'gaussian' basis of e3nn.math.soft_one_hot_linspace.
    """
    mu = torch.linspace(0, cutoff, centres, dtype=torch.float64).to(x)
    return torch.exp(-(((x[..., None] - mu) * ((centres - 1) / cutoff)) ** 2)) / 1.12


def cutoff_envelope(d: Tensor, cutoff: float) -> Tensor:
    """1 - 10 x^3 + 15 x^4 - 6 x^5 with x = d / cutoff, and 0 beyond: two continuous derivatives."""
    x = (d / cutoff).clamp(max=1.0)
    return 1 - x**3 * (10 - x * (15 - 6 * x))


class _Paths(NamedTuple):
    """Normalised weights of a key or value, the closed forms' constants worked in."""

    s0: Tensor  # [n, S, h, c0]: s_i into scalars
    r0: Tensor  # [n, h, c0]: times d
    w0: Tensor  # [n, h, c0]: times w.u
    s1: Tensor  # [n, S, h, c1]: s_i into vectors, times u
    a: Tensor  # [n, h, c1]: times r
    b: Tensor  # [n, h, c1]: times w
    g: Tensor  # [n, h, c1]: times (w.u) u


def _paths(scalar: Tensor, vector: Tensor) -> _Paths:
    s = scalar.shape[1] - 2
    p0 = 1 / math.sqrt(s + 2)
    p1 = 1 / math.sqrt(s + 4)
    kappa = _KAPPA
    s0, rw = scalar.split([s, 2], 1)
    r0, w0 = rw.unbind(1)
    s1, rw = vector.split([s, 4], 1)
    r_y0, w_y0, r_y2, w_y2 = rw.unbind(1)
    return _Paths(
        s0=p0 * s0,
        r0=-p0 / (2 * math.sqrt(3)) * r0,
        w0=-p0 / (2 * math.sqrt(3)) * w0,
        s1=p1 * s1,
        a=-p1 * (r_y0 / 2 + kappa * r_y2),
        b=p1 * (kappa / 2 * w_y2 - w_y0 / 2),
        g=-1.5 * p1 * kappa * w_y2,
    )


class FoldedWeights(NamedTuple):
    """What is the same for all atoms: weights with query, bilinear form and output worked in."""

    weights: BlockWeights
    atom_key: Tensor  # [S, n * (h c0 + 2 h)]: s_i into the key's columns of an atom
    edge_key: Tensor  # [n, 2 h c0 + 5 h]: columns that do not depend on the centre
    query: Tensor  # [S, h c0]: s_j into the query, bilinear form included
    value_scalar: Tensor  # [h, m, S v0]
    value_scalar_edge: Tensor  # [h, 2 m, v0]: the parts times d and w.u
    value_vector: Tensor  # [S, m * h * 2]
    value_vector_edge: Tensor  # [h * 3 m, 2]: the parts times r, w and (w.u) u
    out_scalar: Tensor  # [h v0, S]


def fold(weights: BlockWeights) -> FoldedWeights:
    """Work normalisation, query, bilinear form and output map into a block's path weights."""
    key = _paths(weights.key_scalar, weights.key_vector)
    value = _paths(weights.value_scalar, weights.value_vector)
    n, s, h, c0 = key.s0.shape
    c1 = key.s1.shape[3]
    q0, q1 = weights.query_scalar.shape[2], weights.query_vector.shape[2]
    logit = 1 / math.sqrt((q0 * c0 + q1 * c1) * (c0 + 3 * c1))  # bilinear form, then key size
    query = torch.einsum("shq,qc->shc", weights.query_scalar, weights.bilinear_scalar)
    # the query's vector is query_vector . (r/2, w/2): one vector per head for each of r and w
    from_r, from_w = torch.einsum("xhq,qc->xhc", weights.query_vector, weights.bilinear_vector) * (
        logit / (2 * math.sqrt(2) * math.sqrt(3))
    )

    def dot(x: Tensor, y: Tensor) -> Tensor:  # [.., h, c], [h, c] -> [.., h]
        return torch.einsum("...hc,hc->...h", x, y)

    atom_key = torch.cat(
        [key.s0.reshape(n, s, h * c0), dot(key.s1, from_r), dot(key.s1, from_w)], dim=2
    )
    edge_key = torch.cat(
        [
            key.r0.reshape(n, h * c0),
            key.w0.reshape(n, h * c0),
            dot(key.a, from_r),  # d^2
            dot(key.b + key.g, from_r) + dot(key.a, from_w),  # d (w.u)
            dot(key.b, from_w),  # |w|^2
            dot(key.g, from_w),  # (w.u)^2
        ],
        dim=1,
    )
    m, v0, v1 = value.s0.shape[0], value.s0.shape[3], value.s1.shape[3]
    out_vector = weights.out_vector / math.sqrt(h * v1)

    def out(x: Tensor) -> Tensor:  # [.., h, c1] -> [.., h, 2]
        return torch.einsum("...hc,hcz->...hz", x, out_vector)

    vector_edge = torch.stack([out(value.a), out(value.b), out(value.g)])  # [3, m, h, 2]
    return FoldedWeights(
        weights=weights,
        atom_key=atom_key.transpose(0, 1).reshape(s, -1),
        edge_key=edge_key,
        query=query.reshape(s, h * c0) * (logit / math.sqrt(s)),
        value_scalar=value.s0.permute(2, 0, 1, 3).reshape(h, m, s * v0),
        value_scalar_edge=torch.cat([value.r0, value.w0]).transpose(0, 1),
        value_vector=out(value.s1).transpose(0, 1).reshape(s, -1),
        value_vector_edge=vector_edge.permute(2, 0, 1, 3).reshape(h * 3 * m, 2),
        out_scalar=weights.out_scalar.reshape(h * v0, s) / math.sqrt(h * v0),
    )


def _hidden(
    layers: list[tuple[Tensor, Tensor]], distance: Tensor, time: Tensor
) -> Tensor:  # [i, k, b], [i, t] -> [i, k, n]
    weight, bias = layers[0]
    b = distance.shape[-1]
    x = distance @ weight[:, :b].T + functional.linear(time, weight[:, b:], bias)[:, None]
    x = functional.gelu(x)
    for weight, bias in layers[1:]:
        x = functional.gelu(functional.linear(x, weight, bias))
    return functional.pad(x, (0, 1), value=1.0)


def edge_attention(
    scalars: Tensor,  # [atoms, S]: species channels, then time channels
    displacement: Tensor,  # [atoms, 3] Å, from the input geometry
    velocity_change: Tensor,  # [atoms, 3] Å/fs, from the input velocities
    graph: Graph,
    folded: FoldedWeights,
    *,
    radial_cutoff: float,
    distance_centres: int,
    time_channels: int,
    envelope: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:  # increments [atoms, S], [atoms, 3], [atoms, 3]
    """One attention block: the increments of scalars, positions (Å) and velocities (Å/fs).

    The geometry is that of the graph moved by `displacement` and `velocity_change`; the neighbours
    stay those of the graph. An atom without neighbours gets zero increments. With `envelope`, f(d)
    being :func:`cutoff_envelope`, softmax weights become f_j exp(l_j) / sum_k f_k exp(l_k) and
    messages are multiplied by f_j once more, so that even the last neighbour leaves smoothly.
    """
    weights = folded.weights
    queries = scalars @ folded.query
    state = torch.cat([displacement, velocity_change], dim=1)
    padded = graph.padded
    atoms, slots = padded.mask.shape
    if slots == 0:
        zero = displacement * 0
        return scalars * 0, zero, zero
    n, _, h, c0 = weights.key_scalar.shape
    m, v0 = weights.value_scalar.shape[0], weights.value_scalar.shape[3]
    needs_grad = torch.is_grad_enabled() and scalars.requires_grad
    step = atoms if needs_grad else max(1, _SLICE // (slots * max(n, m)))

    def centres(i: slice) -> tuple[Tensor, Tensor]:
        neighbor, mask = padded.neighbor[i], padded.mask[i]
        s = scalars[i]
        moved = state[neighbor] - state[i, None]
        dr, dw = moved.split(3, -1)
        r, w = padded.r[i] + dr, padded.w[i] + dw
        # a floor far below any distance keeps the derivative finite where atoms coincide
        d = (r * r).sum(-1).clamp(min=1e-20).sqrt()
        u = r / d[..., None]
        wu = (w * u).sum(-1)
        distance = gaussian_basis(d, radial_cutoff, distance_centres)
        time = s[:, -time_channels:]

        # logits: columns that depend on the centre, then those that do not
        hidden = _hidden(weights.key_layers, distance, time)
        own = torch.bmm(hidden, (s @ folded.atom_key).view(len(s), n, -1))
        same = hidden @ folded.edge_key
        d_, wu_ = d[..., None], wu[..., None]
        k_s, along, across = own.split([h * c0, h, h], -1)
        k_r, k_w, dd, dw, ww, wuwu = same.split([h * c0, h * c0, h, h, h, h], -1)
        k0 = k_s + d_ * k_r + wu_ * k_w
        logits = (
            (queries[neighbor] * k0).unflatten(-1, (h, c0)).sum(-1)
            + d_ * (along + d_ * dd + wu_ * dw)
            + wu_ * (across + wu_ * wuwu)
            + (w * w).sum(-1, keepdim=True) * ww
        )
        f = mask
        if envelope:
            f = torch.where(mask, cutoff_envelope(d, radial_cutoff), 0.0)
        logits = logits.masked_fill(~mask[..., None], -1e30)
        top = logits.detach().amax(1, keepdim=True)
        a = torch.exp(logits - top) * f[..., None]
        # an atom without neighbours (or with all of them at the cutoff) divides 0 by the floor
        a = a / a.sum(1, keepdim=True).clamp(min=1e-30)
        if envelope:
            a = a * f[..., None]

        # values: average the hidden layer with every geometric factor, then apply the weights
        hidden = _hidden(weights.value_layers, distance, time)
        one = torch.ones_like(d_)
        factors = torch.cat([one, d_, wu_, u, r, w, wu_ * u], dim=-1)  # [i, k, 15]
        mix = torch.einsum("ikh,ikf->ihfk", a, factors).reshape(len(s), h * 15, -1)
        mean = torch.bmm(mix, hidden).view(len(s), h, 15, m)
        e_1, e_dw, v_u, v_rest = mean.split([1, 2, 3, 9], 2)
        value = torch.bmm(e_1.squeeze(2).transpose(0, 1), folded.value_scalar)
        value = torch.einsum("hisc,is->ihc", value.view(h, len(s), -1, v0), s) + torch.bmm(
            e_dw.reshape(len(s), h, 2 * m).transpose(0, 1), folded.value_scalar_edge
        ).transpose(0, 1)
        own = (s @ folded.value_vector).view(len(s), m, h, 2)
        vector = torch.einsum("ihxm,imhz->izx", v_u, own)
        rest = v_rest.unflatten(2, (3, 3)).permute(0, 3, 1, 2, 4)  # [i, x, h, factor, m]
        vector = vector + (rest.reshape(len(s), 3, -1) @ folded.value_vector_edge).transpose(1, 2)
        return value.reshape(len(s), -1) @ folded.out_scalar, vector.reshape(len(s), 6)

    parts = [centres(slice(k, k + step)) for k in range(0, atoms, step)]
    out, vector = (torch.cat(x) if len(x) > 1 else x[0] for x in zip(*parts, strict=True))
    return out, vector[:, :3], vector[:, 3:]
