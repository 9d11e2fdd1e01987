"""A network that gives every atom a scalar, by densities of neighbours: potentials, charges."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..ops import Graph, cutoff_envelope, gaussian_basis
from ..ops.graph import Padded
from .config import DipoleConfig, WindowPotentialsConfig
from .initial import normal

# Of the harmonics l = 0, 1, 2 as Cartesian tensors: 1, u, and u u^T - 1/3 in six parts.
_COMPONENTS = (1, 3, 6)
# Linear maps of the density of a layer: two of each l for the products, and one more vector.
_MAPS = 7


class DensityNetwork(nn.Module):
    """Scalars of atoms, functions of their surroundings, by layers that pass messages.

    In each layer an atom i has a density of its neighbours j,

        A_iclm = sum_j R_c(d_ij) f_jc Y_lm(u_ij),    l = 0, 1, 2

    with R_c from Gaussians of the distance that fall smoothly to zero at the cutoff, and f_j a
    linear map of what the layer before knows of j; its element, in the first. Of linear maps of A
    come invariants: A_ic00, products summed over m for each l, and a . Q b of two vectors and a
    traceless tensor (three and four bodies of the atomic cluster expansion: Drautz, Phys. Rev. B
    2019, 99, 014104). Two hidden layers make of these what the layer knows of i, and each adds to
    the scalar of i. The biases of the first and the maps to scalars differ between roles, of which
    one network can have several.

    config: sizes. species: number of elements. cutoff: Å. roles: their number.
    """

    def __init__(
        self,
        config: WindowPotentialsConfig | DipoleConfig,
        species: int,
        cutoff: float,
        roles: int = 1,
    ):
        super().__init__()
        self.config, self.cutoff, self.roles = config, cutoff, roles
        c, p, h, layers = config.channels, config.products, config.hidden, config.layers
        features = c + 4 * p

        def random(n: int, *rest: int, width: float = 1.0) -> nn.Parameter:
            return nn.Parameter(normal(n, *rest, scale=width / math.sqrt(n)))

        self.radial = random(config.radial, layers, c, width=2.0)
        self.neighbor_element = nn.Parameter(normal(layers, species, c))
        self.neighbor = random(h, layers - 1, c)
        self.maps = random(c, layers, _MAPS, p)
        self.scale = nn.Parameter(torch.full((layers, species, features), 0.3))
        self.first = random(features, layers, h, width=0.6)
        self.element = nn.Parameter(normal(layers, species, h, scale=0.5))
        self.role = nn.Parameter(torch.zeros(layers, roles, h))
        self.before = random(h, layers - 1, h, width=0.6)
        self.second = random(h, layers, h, width=0.6)
        self.second_bias = nn.Parameter(torch.zeros(layers, h))
        self.last = nn.Parameter(
            normal(layers, 1, h, scale=0.5 / math.sqrt(h)).repeat_interleave(roles, 1)
        )

    def forward(self, graph: Graph, role: Tensor) -> Tensor:
        """The scalars [atoms], in the roles of the atoms [atoms]."""
        last = _among(role, self.roles, self.last) @ self.last
        return (self.known(graph, role) * last.transpose(0, 1)).sum((1, 2))

    def known(self, graph: Graph, role: Tensor, at_once: int | None = None) -> Tensor:
        """What each layer knows of atoms [atoms, layers, hidden], in their roles [atoms].

        at_once: so many atoms at a time, which bounds the memory but for what is returned; None:
        all of them. Only rounding depends on it.
        """
        step = at_once or max(1, graph.atoms)
        parts = [slice(begin, begin + step) for begin in range(0, graph.atoms, step)]
        # rows of tables are taken by products: many rows of a few are slow to add up again
        element = _among(graph.species, self.element.shape[1], self.element)
        of_role = _among(role, self.roles, self.role)
        surroundings: tuple[Tensor, Tensor] | None = None
        layers: list[Tensor] = []
        for k in range(self.config.layers):
            seen = element @ self.neighbor_element[k]
            bias = element @ self.element[k] + of_role @ self.role[k]
            if layers:
                seen = seen + layers[-1] @ self.neighbor[:, k - 1]
                bias = bias + layers[-1] @ self.before[:, k - 1]
            found = []
            for own in parts:
                if surroundings is None or len(parts) > 1:  # kept, they would be all of the memory
                    surroundings = self._surroundings(graph.padded, own)
                radial, harmonics = surroundings
                slots = graph.padded.neighbor[own]
                neighbors = seen.index_select(0, slots.flatten()).view(*slots.shape, seen.shape[1])
                density = harmonics @ ((radial @ self.radial[:, k]) * neighbors)
                features = _invariants(density, self.maps[:, k]) * (element[own] @ self.scale[k])
                x = functional.silu(features @ self.first[:, k] + bias[own])
                found.append(x + functional.silu(x @ self.second[:, k] + self.second_bias[k]))
            layers.append(torch.cat(found) if len(found) > 1 else found[0])
        return torch.stack(layers, 1)

    def _surroundings(self, padded: Padded, own: slice) -> tuple[Tensor, Tensor]:
        """Gaussians [atoms, slots, radial] and harmonics [atoms, 10, slots] of atoms' edges."""
        r = padded.r[own]
        d = r.square().sum(-1).sqrt()
        envelope = cutoff_envelope(d, self.cutoff) * padded.mask[own]
        radial = gaussian_basis(d, self.cutoff, self.config.radial) * envelope[..., None]
        return radial, _harmonics(r / d[..., None]).transpose(1, 2)


def _among(index: Tensor, count: int, like: Tensor) -> Tensor:
    """[atoms, count], 1 at each index [atoms] and 0 elsewhere."""
    return (index[:, None] == torch.arange(count, device=index.device)).to(like.dtype)


def _invariants(density: Tensor, maps: Tensor) -> Tensor:
    """[atoms, channels + 4 products] of the densities [atoms, 10, channels]."""
    scalar, vector, tensor = density.split(_COMPONENTS, 1)
    maps = maps.transpose(0, 1)
    a, q = vector @ maps[2], tensor @ maps[4]
    products = [
        (scalar @ maps[0]) * (scalar @ maps[1]),
        (a * (vector @ maps[3])).sum(1, keepdim=True),
        (q * (tensor @ maps[5])).sum(1, keepdim=True),
    ]
    ax, ay, az = a.unbind(1)
    bx, by, bz = (vector @ maps[6]).unbind(1)
    xx, yy, zz, xy, xz, yz = q.unbind(1)
    mixed = xy * (ax * by + ay * bx) + xz * (ax * bz + az * bx) + yz * (ay * bz + az * by)
    bent = xx * ax * bx + yy * ay * by + zz * az * bz + mixed / math.sqrt(2)
    return torch.cat([scalar[:, 0], *(x[:, 0] for x in products), bent], -1)


def _harmonics(u: Tensor) -> Tensor:
    """Of unit vectors [..., 3]: [..., 10]. Sums over the components of an l are invariant."""
    square, x, y, z = u.square() - 1 / 3, *u.unbind(-1)
    mixed = math.sqrt(2) * torch.stack([x * y, x * z, y * z], -1)
    return torch.cat([torch.ones_like(u[..., :1]), u, square, mixed], -1)
