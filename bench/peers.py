"""The published formulation of MDtrajNet with e3nn: the peer that ours is measured against.

Written from the model's description (Ge, Chen, Dral, arXiv 2505.16301) and the structure of the
published implementation (MLatom 3.25, e3nn 0.5.0): every edge gets the weights of its own fully
connected tensor products, 1472 for the key and 1472 for the value at the published sizes.

* dense, what the published code does: systems of equal size as a batch, distances of all pairs
  (through 27 images in a periodic cell, in every block), the nearest ones gathered into rows of
  equal length.
* sparse, the same tensor products on our neighbour list: what e3nn takes once the N x N matrices
  are gone.

Velocities are the published ones, a one-sided finite difference in float32: two passes.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn

from mdtrajnet_fast.model.config import ModelConfig, irreps_channels
from mdtrajnet_fast.model.network import AttentionBlock, MDtrajNet
from mdtrajnet_fast.ops import Graph

# e3nn's table of Wigner symbols is a pickle of tensors and slices.
with torch.serialization.safe_globals([slice]):
    from e3nn import o3
    from e3nn.math import soft_one_hot_linspace

# fs; the published default for velocities, (R(t + step) - R(t)) / step.
TIME_STEP = -1e-4


def _flat(pieces: list[Tensor], start: int = 0) -> Tensor:
    return torch.cat([p.flatten(start) for p in pieces], dim=-1)


def _path_weights(scalar: Tensor, vector: Tensor, config: ModelConfig) -> Tensor:
    """Weights [n, numel] of a fully connected tensor product, from ours by path.

    e3nn's order: each pair of input irrep and harmonic, each head, [multiplicity in, channels].
    """
    sp, t = config.sp_embed_dim, config.t_embed_dim
    sp0, t0, r_y1, w_y1 = scalar.split([sp, t, 1, 1], dim=1)
    sp1, t1, r_y0, w_y0, r_y2, w_y2 = vector.split([sp, t, 1, 1, 1, 1], dim=1)
    pieces = [sp0, sp1, r_y0, r_y1, r_y2, w_y0, w_y1, w_y2, t0, t1]
    return _flat([p.transpose(1, 2) for p in pieces], start=1)


def _mlp(layers: nn.ModuleList, last: Tensor) -> nn.Sequential:
    """Linear-GELU-...-Linear; last: [n + 1, out], the biases in the last row."""
    modules: list[nn.Module] = []
    for layer in layers:
        own = nn.Linear(layer.in_features, layer.out_features)
        own.load_state_dict(layer.state_dict())
        modules += [own, nn.GELU()]
    final = nn.Linear(last.shape[0] - 1, last.shape[1])
    final.weight.data.copy_(last[:-1].T)
    final.bias.data.copy_(last[-1])
    return nn.Sequential(*modules, final)


class Block(nn.Module):
    """One attention block out of e3nn's operations, with the weights of one of ours."""

    def __init__(self, config: ModelConfig, block: AttentionBlock):
        super().__init__()
        self.config = config
        h, sp, t = config.num_heads, config.sp_embed_dim, config.t_embed_dim

        def heads(irreps: str) -> o3.Irreps:
            return o3.Irreps(" + ".join([irreps] * h))

        state = o3.Irreps(f"{sp}x0e + 1x1o + 1x1o + {t}x0e")
        self.parts = state.slices()  # torch.compile takes no Irreps, whose length is not defined
        harmonics = o3.Irreps.spherical_harmonics(config.lmax)
        self.harmonics = o3.SphericalHarmonics(harmonics, True, normalization="norm")
        self.query = o3.Linear(state, heads(config.irreps_query))
        self.key, self.value = (
            o3.FullyConnectedTensorProduct(
                state,
                harmonics,
                heads(irreps),
                shared_weights=False,
                internal_weights=False,
            )
            for irreps in (config.irreps_key, config.irreps_value)
        )
        self.dot = o3.FullyConnectedTensorProduct(config.irreps_query, config.irreps_key, "0e")
        self.out = o3.Linear(heads(config.irreps_value), state)
        k0, k1 = irreps_channels(config.irreps_key)
        self.key_size = k0 + 3 * k1

        with torch.no_grad():
            key = _path_weights(block.key_scalar, block.key_vector, config)
            value = _path_weights(block.value_scalar, block.value_vector, config)
            self.key_weights = _mlp(block.key_layers, key)
            self.value_weights = _mlp(block.value_layers, value)
            q_sp, q_t = block.query_scalar.transpose(0, 1).split([sp, t], dim=1)
            q_r, q_w = block.query_vector
            self.query.weight.copy_(_flat([q_sp, q_r, q_w, q_t]))
            self.dot.weight.copy_(_flat([block.bilinear_scalar, block.bilinear_vector]))
            o_sp, o_t = block.out_scalar.split([sp, t], dim=2)
            o_r, o_w = block.out_vector.unbind(2)
            pieces = [x[k] for k in range(h) for x in (o_sp, o_t, o_r, o_w)]
            self.out.weight.copy_(_flat(pieces))

    def edges(
        self,
        own: tuple[Tensor, Tensor],  # species and time channels of the centre, [..., 16], [..., 4]
        other: tuple[Tensor, Tensor],  # of the neighbour
        r: Tensor,  # [..., 3] Å
        w: Tensor,  # [..., 3] Å/fs
    ) -> tuple[Tensor, Tensor]:
        """Logits [..., heads, 1] and values [..., heads, channels] of edges."""
        config = self.config
        distance = soft_one_hot_linspace(
            r.norm(dim=-1), 0, config.radial_cutoff, config.d_embed_dim, "gaussian", cutoff=False
        )
        radial = torch.cat([distance, own[1]], dim=-1)
        harmonics = self.harmonics(r)
        query = self.query(torch.cat([other[0], r / 2, w / 2, other[1]], dim=-1))
        source = torch.cat([own[0], r / -2, w / -2, own[1]], dim=-1)
        key = self.key(source, harmonics, self.key_weights(radial))
        value = self.value(source, harmonics, self.value_weights(radial))
        query, key, value = (x.unflatten(-1, (config.num_heads, -1)) for x in (query, key, value))
        return self.dot(query, key) / math.sqrt(self.key_size), value

    def increments(self, mean: Tensor) -> tuple[Tensor, ...]:
        """Species, position, velocity and time increments from averaged values [..., heads, c]."""
        out = self.out(mean.flatten(-2))
        return tuple(out[..., part] for part in self.parts)


def pair_vectors(x: Tensor, cell: Tensor | None = None) -> Tensor:
    """x_j - x_i [systems, i, j, 3]; with a cell the shortest of its 27 images."""
    vectors = x[:, None] - x[:, :, None]
    if cell is None:
        return vectors
    steps = torch.arange(-1, 2).to(cell)
    images = torch.stack([vectors + shift for shift in torch.cartesian_prod(*[steps] * 3) @ cell])
    nearest = images.norm(dim=-1).argmin(0, keepdim=True)
    return images.gather(0, nearest[..., None].expand(-1, -1, -1, -1, 3)).squeeze(0)


class E3nnNetwork(nn.Module):
    """The published function with the weights of a model of ours (its only member).

    Raises ValueError for a model that is not the published function.
    """

    def __init__(self, model: MDtrajNet):
        super().__init__()
        config = model.config
        published = config.residual == "input" and config.head == "published"
        if not published or config.envelope or len(model.members) != 1:
            raise ValueError(
                "the e3nn peer is the published function with one member; got "
                f"residual={config.residual!r}, head={config.head!r}, envelope={config.envelope}, "
                f"{len(model.members)} members"
            )
        (member,) = model.members
        self.config = config
        self.species_embedding = nn.Parameter(member.species_embedding.detach().clone())
        with warnings.catch_warnings():  # one a compiled tensor product
            warnings.filterwarnings("ignore", message="The TorchScript type system")
            warnings.filterwarnings("ignore", message="`torch.jit")
            blocks = [Block(config, block) for block in member.blocks]
        self.blocks = nn.ModuleList(blocks).to(model.dtype)

    def _time(self, t: Tensor) -> Tensor:
        c = self.config
        return soft_one_hot_linspace(t, 0, c.time_cutoff, c.t_embed_dim, "gaussian", cutoff=False)

    def dense(
        self,
        species: Tensor,  # [systems, atoms]
        positions: Tensor,  # [systems, atoms, 3] Å
        velocities: Tensor,  # [systems, atoms, 3] Å/fs
        t: Tensor,  # [systems] fs
        cell: Tensor | None = None,  # [3, 3] Å, periodic in all directions
    ) -> Tensor:
        """Positions [systems, atoms, 3] at the times t, unwrapped."""
        sp0 = self.species_embedding[species]
        tau0 = self._time(t)[:, None].expand(-1, species.shape[1], -1)
        distances = pair_vectors(positions, cell).norm(dim=-1)
        near = (distances > 0) & (distances <= self.config.radial_cutoff)
        slots = int(near.sum(-1).max())
        index = distances.masked_fill(~near, torch.inf).topk(slots, dim=-1, largest=False).indices
        padding = ~near.gather(-1, index)[..., None, None]

        def rows(x: Tensor) -> Tensor:  # [systems, i, j, c] -> [systems, i, slots, c]
            return x.gather(2, index[..., None].expand(-1, -1, -1, x.shape[-1]))

        def own(x: Tensor) -> Tensor:
            return x[:, :, None].expand(-1, -1, slots, -1)

        def other(x: Tensor) -> Tensor:
            return rows(x[:, None].expand(-1, x.shape[1], -1, -1))

        sp, x, v, tau = sp0, positions, velocities, tau0
        for block in self.blocks:
            logits, values = block.edges(
                (own(sp), own(tau)),
                (other(sp), other(tau)),
                rows(pair_vectors(x, cell)),
                rows(pair_vectors(v)),
            )
            attention = logits.masked_fill(padding, -torch.inf).softmax(2)
            dsp, dx, dv, dtau = block.increments((attention * values).sum(2))
            sp, x, v, tau = sp0 + dsp, positions + dx, velocities + dv, tau0 + dtau
        return x

    def sparse(self, graph: Graph, t: Tensor) -> Tensor:
        """Displacements [atoms, 3] (Å) at times t [atoms] (fs), on a neighbour list."""
        sp0, tau0 = self.species_embedding[graph.species], self._time(t)
        degree = graph.row_ptr.diff()
        i = torch.repeat_interleave(torch.arange(graph.atoms, device=degree.device), degree)
        j = graph.neighbor
        sp, tau = sp0, tau0
        dx = dv = torch.zeros_like(graph.velocities)
        for block in self.blocks:
            logits, values = block.edges(
                (sp[i], tau[i]),
                (sp[j], tau[j]),
                graph.r + dx[j] - dx[i],
                graph.w + dv[j] - dv[i],
            )
            top = logits.new_full((graph.atoms, *logits.shape[1:]), -torch.inf)
            rows = i[:, None, None].expand_as(logits)
            top = top.scatter_reduce(0, rows, logits.detach(), "amax")
            weight = (logits - top[i]).exp()
            total = torch.zeros_like(top).index_add(0, i, weight)
            mean = values.new_zeros(graph.atoms, *values.shape[1:])
            mean = mean.index_add(0, i, weight / total[i] * values)
            dsp, dx, dv, dtau = block.increments(mean)
            sp, tau = sp0 + dsp, tau0 + dtau
        return dx
