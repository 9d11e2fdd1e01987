"""Potentials whose kicks make a window: motion that is symplectic whatever the weights.

A window of h fs starts and ends with a kick of one potential, and has a kick of another one in
its middle; atoms fly freely between them (:mod:`..md.window`). Each kick is the slope of a function
of the positions alone. All three potentials share their layers:

    ENERGY  the potential energy itself, up to a constant for each molecule
    ENDS    of the kicks at both ends: h/6 of its slope
    MIDDLE  of the kick in the middle: 2h/3 of its slope

For h -> 0 they are the same; with terms of h^2 in MIDDLE the window is the fourth-order integrator
4A of S. A. Chin (Phys. Lett. A 226, 344 (1997)). For the window that they are trained for they take
in all that functions of the positions can: a vibration of frequency w is exact if its w^2 is, with
x = w h, 6 w^2 (2 - x cot(x / 2)) / x^2 in ENDS and 6 w^2 (1 - sin(x) / x) / x^2 in MIDDLE.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..ops import Graph, cutoff_envelope, gaussian_basis
from .config import WindowPotentialsConfig

ENERGY, ENDS, MIDDLE = ROLES = range(3)
# Of the harmonics l = 0, 1, 2 as Cartesian tensors: 1, u, and u u^T - 1/3 in six parts.
_COMPONENTS = (1, 3, 6)
# Linear maps of the density of a layer: two of each l for the products, and one more vector.
_MAPS = 7


class WindowPotentials(nn.Module):
    """Sums of atomic energies, by layers that pass messages.

    In each layer an atom i has a density of its neighbours j,

        A_iclm = sum_j R_c(d_ij) f_jc Y_lm(u_ij),    l = 0, 1, 2

    with R_c from Gaussians of the distance that fall smoothly to zero at the cutoff, and f_j a
    linear map of what the layer before knows of j; its element, in the first. Of linear maps of A
    come invariants: A_ic00, products summed over m for each l, and a . Q b of two vectors and a
    traceless tensor (three and four bodies of the atomic cluster expansion: Drautz, Phys. Rev. B
    2019, 99, 014104). Two hidden layers make of these what the layer knows of i, and each adds to
    the energy of i. The biases of the first and the maps to energies differ between the roles.

    config: sizes. species: number of elements. cutoff: Å.
    """

    def __init__(self, config: WindowPotentialsConfig, species: int, cutoff: float):
        super().__init__()
        self.config, self.cutoff = config, cutoff
        self.rigidity: Tensor
        c, p, h, layers = config.channels, config.products, config.hidden, config.layers
        features = c + 4 * p

        def random(n: int, *rest: int, width: float = 1.0) -> nn.Parameter:
            return nn.Parameter(torch.randn(n, *rest) * width / math.sqrt(n))

        self.radial = random(config.radial, layers, c, width=2.0)
        self.neighbor_element = nn.Parameter(torch.randn(layers, species, c))
        self.neighbor = random(h, layers - 1, c)
        self.maps = random(c, layers, _MAPS, p)
        self.scale = nn.Parameter(torch.full((layers, species, features), 0.3))
        self.first = random(features, layers, h, width=0.6)
        self.element = nn.Parameter(0.5 * torch.randn(layers, species, h))
        self.role = nn.Parameter(torch.zeros(layers, len(ROLES), h))
        self.before = random(h, layers - 1, h, width=0.6)
        self.second = random(h, layers, h, width=0.6)
        self.second_bias = nn.Parameter(torch.zeros(layers, h))
        self.last = nn.Parameter(
            0.5 / math.sqrt(h) * torch.randn(layers, 1, h).repeat(1, len(ROLES), 1)
        )
        if config.usual_uncertainty is not None:
            self.register_buffer("rigidity", torch.zeros(layers * h, layers * h))

    def forward(self, graph: Graph, role: Tensor) -> Tensor:
        """Atomic energies [atoms] (eV), in the roles of the atoms [atoms]."""
        return (self._known(graph, role) * self.last.transpose(0, 1)[role]).sum((1, 2))

    def uncertainties(self, graph: Graph) -> Tensor:
        """How far forces are expected to be off: [atoms] eV/Å, root mean square of a component.

        By the local prediction rigidity of the last layer: sqrt(f . A f) of what the layers know
        of an atom, f, where A is the inverse of its mean f f^T in the training data, times a factor
        that is set by true errors on validation data (Bigi, Chong, Ceriotti, Grasselli, Mach.
        Learn.: Sci. Technol. 2024, 5, 045018; :mod:`..train.calibrate`). The buffer `rigidity` is
        a square root of that. Only where the configuration has `usual_uncertainty`.
        """
        with torch.no_grad():
            return (self.features(graph) @ self.rigidity).square().sum(1).sqrt()

    def features(self, graph: Graph) -> Tensor:
        """What the layers know of each atom: [atoms, layers x hidden]."""
        return self._known(graph, torch.full_like(graph.species, ENERGY)).flatten(1)

    def _known(self, graph: Graph, role: Tensor) -> Tensor:
        """What each layer knows of atoms [atoms, layers, hidden], in their roles [atoms]."""
        config, padded = self.config, graph.padded
        d = padded.r.square().sum(-1).sqrt()
        envelope = cutoff_envelope(d, self.cutoff) * padded.mask
        radial = gaussian_basis(d, self.cutoff, config.radial) * envelope[..., None]
        harmonics = _harmonics(padded.r / d[..., None]).transpose(1, 2)  # [atoms, 10, slots]
        layers: list[Tensor] = []
        for k in range(config.layers):
            seen = self.neighbor_element[k][graph.species]
            bias = self.element[k][graph.species] + self.role[k][role]
            if layers:
                seen = seen + layers[-1] @ self.neighbor[:, k - 1]
                bias = bias + layers[-1] @ self.before[:, k - 1]
            density = harmonics @ ((radial @ self.radial[:, k]) * seen[padded.neighbor])
            features = _invariants(density, self.maps[:, k]) * self.scale[k][graph.species]
            x = functional.silu(features @ self.first[:, k] + bias)
            layers.append(x + functional.silu(x @ self.second[:, k] + self.second_bias[k]))
        return torch.stack(layers, 1)

    def slopes(
        self, graph: Graph, role: Tensor, *, learning: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Atomic energies [atoms] (eV), and the slopes of their sum [atoms, 3] (eV/Å).

        learning: whether gradients of the slopes will be asked for.
        """
        with torch.enable_grad():
            graph = replace(graph, r=graph.r.detach().requires_grad_(True))
            energy = self(graph, role)
            (along,) = torch.autograd.grad(energy.sum(), graph.r, create_graph=learning)
        slopes = along.new_zeros(graph.atoms, 3)
        slopes = slopes.index_add(0, graph.neighbor, along).index_add(0, graph.centre, -along)
        return energy if learning else energy.detach(), slopes


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
