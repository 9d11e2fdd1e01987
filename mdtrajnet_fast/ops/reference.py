"""The attention block in plain torch: the factorised equations, and the only reference.

Notation of one block, centre i and neighbour j: r = R_j - R_i, w = v_j - v_i, d = |r|, u = r / d,
s = [species channels, time channels]. A key or value is a fully connected tensor product of
(s_i, -r/2, -w/2) with the spherical harmonics of u; its weights are an affine function of a hidden
layer H(d, time channels of i). Written out (e3nn's normalisation, l <= 1 on both sides),

    scalars:  p0 sum_u s_i[u] W[u]  -  p0 / (2 sqrt 3) (d W_r + (w.u) W_w)
    vectors:  A u + B w + G (w.u) u,   A = p1 sum_u s_i[u] W[u] + d A_r

with one weight per path and channel. Because everything is linear in H, the per-atom sums over s_i
are done once per atom and not once per edge, the query is folded into the key's weights and the
output map into the vector values', and for scalar values the softmax average is taken of H before
the weights act: nothing of the size of an edge's weights is ever formed. The constant of the
affine function rides along as a last hidden unit of 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
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
    x, tangent = forward_ad.unpack_dual(x)
    mu = torch.linspace(0, cutoff, centres, dtype=torch.float64, device=x.device).to(x.dtype)
    steps = (x[..., None] - mu) * ((centres - 1) / cutoff)
    basis = torch.exp(-(steps**2)) / 1.12
    if tangent is None:
        return basis
    # written out: torch takes 0.2 ms for the tangent of each operation that has a constant
    slope = basis * steps * (-2 * (centres - 1) / cutoff)
    return forward_ad.make_dual(basis, slope * tangent[..., None])


def cutoff_envelope(d: Tensor, cutoff: float) -> Tensor:
    """1 - 10 x^3 + 15 x^4 - 6 x^5 with x = d / cutoff, and 0 beyond: two continuous derivatives.

    In factors, (1 - x)^3 (1 + 3 x + 6 x^2), so that it never rounds to less than 0.
    """
    x = (d / cutoff).clamp(max=1.0)
    return (1 - x) ** 3 * (1 + 3 * x * (1 + 2 * x))


class FoldedWeights(NamedTuple):
    """Weights with normalisation, query, bilinear form and output map worked in.

    What a kernel reads. Columns that belong to channels and heads have the head running fastest.
    """

    key_layers: list[tuple[Tensor, Tensor]]
    value_layers: list[tuple[Tensor, Tensor]]
    query: Tensor  # [S, c0 h]: s_j into the query, bilinear form included
    key_atom: Tensor  # [S, n, c0 h + 2 h]: s_i into the columns: scalar key, d, w.u
    key_edge: Tensor  # [n, 2 c0 h + 4 h]: d and w.u times scalar key, d^2, d (w.u), |w|^2, (w.u)^2
    value_atom: Tensor  # [S, m, 2 h]: s_i into the columns along u of (position, velocity)
    value_edge: Tensor  # [m, 6 h]: columns times r, w, (w.u) u, each (position, velocity)
    scalar_atom: Tensor  # [h, m, S v0]: the mean hidden layer times s_i into scalar values
    scalar_edge: Tensor  # [h, 2 m, v0]: the means times d and times w.u into scalar values
    out: Tensor  # [h v0, S]

    @property
    def heads(self) -> int:
        """Number of attention heads."""
        return self.scalar_atom.shape[0]

    def tensors(self) -> list[Tensor]:
        """All tensors in order, the layers as weight, bias, weight, bias, ..."""
        layers = [x for layer in (*self.key_layers, *self.value_layers) for x in layer]
        return [  # by name: torch 2.7 compiles no slice of a NamedTuple
            *layers,
            self.query,
            self.key_atom,
            self.key_edge,
            self.value_atom,
            self.value_edge,
            self.scalar_atom,
            self.scalar_edge,
            self.out,
        ]

    @classmethod
    def from_tensors(cls, tensors: Sequence[Tensor], key_layers: int) -> FoldedWeights:
        """What :meth:`tensors` listed, given the number of hidden layers of the key network."""
        (
            *layers,
            query,
            key_atom,
            key_edge,
            value_atom,
            value_edge,
            scalar_atom,
            scalar_edge,
            out,
        ) = tensors
        pairs = list(zip(layers[::2], layers[1::2], strict=True))
        return cls(
            pairs[:key_layers],
            pairs[key_layers:],
            query,
            key_atom,
            key_edge,
            value_atom,
            value_edge,
            scalar_atom,
            scalar_edge,
            out,
        )


def fold(weights: BlockWeights) -> FoldedWeights:
    """Work normalisation, query, bilinear form and output map into a block's path weights."""
    n, paths, h, c0 = weights.key_scalar.shape
    s = paths - 2
    m, _, _, v0 = weights.value_scalar.shape
    c1, v1 = weights.key_vector.shape[3], weights.value_vector.shape[3]
    q0, q1 = weights.query_scalar.shape[2], weights.query_vector.shape[2]
    p0, p1 = 1 / math.sqrt(s + 2), 1 / math.sqrt(s + 4)  # norms of paths into scalars, vectors
    logit = 1 / math.sqrt((q0 * c0 + q1 * c1) * (c0 + 3 * c1))  # bilinear form, then key size

    # What comes from r and w is -1 / (2 sqrt 3) of what comes from s_i; the norm p0, common to
    # both, waits for the query and the output map, which are smaller.
    key_scalar, key_scalar_edge = weights.key_scalar.transpose(2, 3).flatten(2).split([s, 2], 1)
    value_scalar, value_scalar_edge = weights.value_scalar.split([s, 2], 1)
    query = torch.einsum("shq,qc->sch", weights.query_scalar, weights.bilinear_scalar)
    out = weights.out_scalar.reshape(h * v0, s) * (p0 / math.sqrt(h * v0))

    # the query's vector is query_vector . (r/2, w/2): per head one vector for each of r and w
    dots = torch.einsum("xhq,qc->hcx", weights.query_vector, weights.bilinear_vector)
    key = _dot_heads(weights.key_vector, dots * (p1 * logit / (2 * math.sqrt(2) * math.sqrt(3))))
    key_vector, (a, b, g) = key[:, :s], _edge_paths(key[:, s:])
    (a_r, a_w), (b_r, b_w), (g_r, g_w) = (x.split(h, 1) for x in (a, b, g))
    key_edge = [*(key_scalar_edge * (-1 / (2 * math.sqrt(3)))).unbind(1)]
    key_edge += [a_r, b_r + g_r + a_w, b_w, g_w]  # d^2, d (w.u), |w|^2, (w.u)^2
    value = _dot_heads(weights.value_vector, weights.out_vector * (p1 / math.sqrt(h * v1)))

    return FoldedWeights(
        key_layers=weights.key_layers,
        value_layers=weights.value_layers,
        query=query.reshape(s, c0 * h) * (p0 * logit / math.sqrt(s)),
        key_atom=torch.cat([key_scalar, key_vector], dim=2).transpose(0, 1),
        key_edge=torch.cat(key_edge, dim=1),
        value_atom=value[:, :s].transpose(0, 1),
        value_edge=torch.cat(_edge_paths(value[:, s:]), dim=1),
        scalar_atom=value_scalar.permute(2, 0, 1, 3).reshape(h, m, s * v0),
        scalar_edge=value_scalar_edge.permute(2, 1, 0, 3).reshape(h, 2 * m, v0)
        * (-1 / (2 * math.sqrt(3))),
        out=out,
    )


def _dot_heads(x: Tensor, y: Tensor) -> Tensor:  # [n, p, h, c], [h, c, z] -> [n, p, z h]
    """x . y head by head: one product with a matrix that has a block for each head."""
    h, c, z = y.shape
    blocks = torch.einsum("hcz,hk->hczk", y, torch.eye(h, dtype=y.dtype, device=y.device))
    return x.flatten(2) @ blocks.reshape(h * c, z * h)


def _edge_paths(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # [n, 4, .] -> [n, .] each
    """Paths r x Y0, w x Y0, r x Y2, w x Y2 as what multiplies r, w and (w.u) u."""
    r_y0, w_y0, r_y2, w_y2 = x.unbind(1)
    return -0.5 * r_y0 - _KAPPA * r_y2, 0.5 * _KAPPA * w_y2 - 0.5 * w_y0, -1.5 * _KAPPA * w_y2


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
    queries = scalars @ folded.query
    state = torch.cat([displacement, velocity_change], dim=1)
    padded = graph.padded
    atoms, slots = padded.mask.shape
    if slots == 0:
        zero = displacement * 0
        return scalars * 0, zero, zero
    h, m = folded.scalar_atom.shape[:2]
    n, c0 = folded.key_edge.shape[0], folded.query.shape[1] // h
    v0 = folded.scalar_edge.shape[2]
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
        d_, wu_ = d[..., None], wu[..., None]

        # logits: columns that depend on the centre, then those that do not
        hidden = _hidden(folded.key_layers, distance, time)
        own = torch.bmm(hidden, (s @ folded.key_atom.flatten(1)).view(len(s), n, -1))
        k_s, along, across = own.split([c0 * h, h, h], -1)
        same = hidden @ folded.key_edge
        k_r, k_w, dd, dw, ww, wuwu = same.split([c0 * h, c0 * h, h, h, h, h], -1)
        k0 = k_s + d_ * k_r + wu_ * k_w
        logits = (
            (queries[neighbor] * k0).unflatten(-1, (c0, h)).sum(-2)
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

        # scalar values: average the hidden layer, then apply the weights
        hidden = _hidden(folded.value_layers, distance, time)
        mix = torch.stack([a, d_ * a, wu_ * a], dim=1).transpose(2, 3)  # [i, 3, h, k]
        mean = torch.bmm(mix.flatten(1, 2), hidden).view(len(s), 3, h, m)
        mean, mean_edge = mean.permute(2, 0, 1, 3).split([1, 2], 2)  # [h, i, ., m]
        value = torch.bmm(mean.squeeze(2), folded.scalar_atom)
        value = torch.einsum("hisc,is->hic", value.view(h, len(s), -1, v0), s)
        value = value + torch.bmm(mean_edge.flatten(2), folded.scalar_edge)

        # vector values: one column per head and output, summed over heads before the vector acts
        own = torch.bmm(hidden, (s @ folded.value_atom.flatten(1)).view(len(s), m, -1))
        along_r, along_w, along_u = (hidden @ folded.value_edge).split(2 * h, -1)
        along = own + d_ * along_r + wu_ * along_u
        weight_u, weight_w = (
            (x.unflatten(-1, (2, h)) * a[..., None, :]).sum(-1) for x in (along, along_w)
        )
        vector = torch.einsum("ikz,ikx->izx", weight_u, u)
        vector = vector + torch.einsum("ikz,ikx->izx", weight_w, w)
        return value.transpose(0, 1).flatten(1) @ folded.out, vector.reshape(len(s), 6)

    parts = [centres(slice(k, k + step)) for k in range(0, atoms, step)]
    out, vector = (torch.cat(x) if len(x) > 1 else x[0] for x in zip(*parts, strict=True))
    return out, vector[:, :3], vector[:, 3:]
