"""A potential energy of geometries, so that rollouts can conserve the total energy.

The trajectories that a motion is learned from say what it is: where the total energy is conserved,
V(R') - V(R) = K - K'. Only differences count, so that it is defined up to a constant for each
molecule.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..ops import Graph, cutoff_envelope, gaussian_basis
from .config import PotentialConfig
from .initial import normal

# Of the harmonics l = 0, 1, 2 as Cartesian tensors: 1, u, and u u^T - 1/3 in six parts.
_COMPONENTS = (1, 3, 6)


class Potential(nn.Module):
    """Sum of atomic energies, functions of invariants of the density of neighbours.

    A_iznlm = sum_j R_n(d_ij) Y_lm(u_ij) over the neighbours j of element z; from A for each l come
    products of two linear maps, summed over m (three-body terms of the atomic cluster expansion:
    Drautz, Phys. Rev. B 2019, 99, 014104), and from these and A_izn00 an energy, by two hidden
    layers that know the element of i. The R_n fall smoothly to zero at the cutoff.

    config: sizes. species: number of elements. cutoff: Å.
    """

    def __init__(self, config: PotentialConfig, species: int, cutoff: float):
        super().__init__()
        self.radial, self.species, self.cutoff = config.radial, species, cutoff
        basis, products, hidden = species * config.radial, config.products, config.hidden
        features = basis + len(_COMPONENTS) * products
        maps = normal(2, len(_COMPONENTS), basis, products, scale=1 / math.sqrt(basis))
        self.left, self.right = (nn.Parameter(x) for x in maps)
        self.scale = nn.Parameter(torch.full((species, features), 0.3))
        self.element = nn.Parameter(normal(species, hidden))
        self.first = nn.Linear(features, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, 1, bias=False)

    def forward(self, graph: Graph) -> Tensor:
        """Atomic energies [atoms] (eV)."""
        d = graph.r.square().sum(-1).sqrt()
        u = graph.r / d[:, None]
        radial = gaussian_basis(d, self.cutoff, self.radial)
        radial = radial * cutoff_envelope(d, self.cutoff)[:, None]
        parts = (_harmonics(u)[:, :, None] * radial[:, None]).flatten(1)
        row = graph.centre * self.species + graph.species[graph.neighbor]
        rows = (graph.atoms + 1) * self.species  # the last are for edges that no atom has
        density = parts.new_zeros(rows, parts.shape[1]).index_add(0, row, parts)[: -self.species]
        density = density.view(graph.atoms, self.species, -1, self.radial)
        density = density.transpose(1, 2).flatten(2)
        features = [density[:, 0]]
        for a, left, right in zip(
            density.split(_COMPONENTS, 1), self.left, self.right, strict=True
        ):
            features.append(((a @ left) * (a @ right)).sum(1))
        x = torch.cat(features, 1) * self.scale[graph.species]
        x = functional.silu(self.first(x) + self.element[graph.species])
        x = x + functional.silu(self.second(x))
        return self.last(x)[:, 0]


def _harmonics(u: Tensor) -> Tensor:
    """Of unit vectors [edges, 3]: [edges, 10]. Sums over the components of an l are invariant."""
    square, x, y, z = u.square() - 1 / 3, *u.unbind(-1)
    mixed = math.sqrt(2) * torch.stack([x * y, x * z, y * z], -1)
    return torch.cat([torch.ones_like(u[:, :1]), u, square, mixed], -1)
